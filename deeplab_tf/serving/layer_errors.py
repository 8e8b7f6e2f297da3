"""The quantisation error of each layer of an int8 file, in one form for all engines."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_WIDTH = 56


class LayerError(NamedTuple):
    """The quantisation error of a layer's output.

    Attributes:
        name: Name of the Keras layer.
        error: Root mean square error, in standard deviations of the exact output.
        is_float: Whether the layer was left in float32.
    """

    name: str
    error: float
    is_float: bool = False


def compute_errors(names: Sequence[str], sums: np.ndarray) -> list[LayerError]:
    """Returns the errors of layers.

    Args:
        names: Names of the layers.
        sums: `[layer, 2]`, the sums of squares of the error, and of the exact output
            without its mean.
    """
    errors = np.sqrt(sums[:, 0] / np.maximum(sums[:, 1], 1e-12))
    return [
        LayerError(name, float(error))
        for name, error in zip(names, errors, strict=True)
    ]


def rank_layers(errors: Sequence[LayerError]) -> list[str]:
    """Returns the names of the layers, the largest error first."""
    ranked = sorted(errors, key=lambda layer: -layer.error)
    return list(dict.fromkeys(layer.name for layer in ranked))


def format_table(errors: Sequence[LayerError]) -> str:
    """Returns the errors as a table to print."""
    lines = [f"{'layer':<{_WIDTH}}  {'error':>7}"]
    lines += [
        f"{layer.name[-_WIDTH:]:<{_WIDTH}}  {layer.error:>7.2%}" for layer in errors
    ]
    return "\n".join(lines)


def parse_layer_name(name: str) -> str:
    """Returns the layer of a tensor `deeplab_1/backbone_1/Conv.relu6_1/Relu6:0`.

    Tensors of variables have the form `backbone_1/Conv_1/add/ReadVariableOp:0`. In
    TFLite, further tensors may follow a semicolon.
    """
    parts = name.partition(";")[0].split("/")
    if parts[-1].startswith("ReadVariableOp"):
        parts.pop()
    return parts[-2].removesuffix("_1") if len(parts) > 1 else name
