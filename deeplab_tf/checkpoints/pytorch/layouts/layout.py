"""Describes how another framework names the variables of a network."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from deeplab_tf.config import ModelConfig

# The last parts of official names and of PyTorch names.
_CONVOLUTION = {"biases": "bias", "weights": "weight", "depthwise_weights": "weight"}
_NORMALIZATION = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class Convolution(NamedTuple):
    """A convolution and, if there is one, its batch normalisation.

    Attributes:
        scope: Official scope.
        name: Name of the module in PyTorch.
        normalization: Name of its batch normalisation in PyTorch; "" without one.
        roll: Number of input channels that come last in PyTorch but first here.
    """

    scope: str
    name: str
    normalization: str = ""
    roll: int = 0


class Layout(NamedTuple):
    """The variables of a family of networks.

    Attributes:
        name: Name of the project.
        identify: Returns the config of a network from the shapes of its variables and
            the content of a `config.json`, or None if it is from another family.
        convolutions: Returns the convolutions of a config.
        is_backbone: Whether the networks are classifiers, of which only the backbone is
            used.
    """

    name: str
    identify: Callable[[Mapping[str, tuple[int, ...]], Mapping], ModelConfig | None]
    convolutions: Callable[[ModelConfig], Iterator[Convolution]]
    is_backbone: bool = False

    def read_variables(
        self, config: ModelConfig, state: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Returns the official variables of a state dict, and the unused names."""
        arrays, unused = {}, dict.fromkeys(state)
        for convolution in self.convolutions(config):
            for name, source in _names(convolution):
                if source in state:
                    array = state[source]
                    arrays[name] = _to_official(array, name, convolution.roll)
                    del unused[source]
        return arrays, [x for x in unused if not x.endswith("num_batches_tracked")]

    def write_variables(
        self, config: ModelConfig, arrays: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Returns the state dict of official variables, and the unused names."""
        state, unused = {}, dict.fromkeys(arrays)
        for convolution in self.convolutions(config):
            for name, target in _names(convolution):
                if name in arrays:
                    array = arrays[name]
                    state[target] = _from_official(array, name, convolution.roll)
                    del unused[name]
        return state, list(unused)


def _names(convolution: Convolution) -> Iterator[tuple[str, str]]:
    """Yields the official and PyTorch names of the variables that may exist."""
    scope, name, normalization, _ = convolution
    is_depthwise = scope.endswith("depthwise")
    for ours, theirs in _CONVOLUTION.items():
        if ours != ("weights" if is_depthwise else "depthwise_weights"):
            yield f"{scope}/{ours}", f"{name}.{theirs}"
    if normalization:
        for ours, theirs in _NORMALIZATION.items():
            yield f"{scope}/BatchNorm/{ours}", f"{normalization}.{theirs}"


def _to_official(array: np.ndarray, name: str, roll: int) -> np.ndarray:
    """Returns a kernel `[out, in, height, width]` as `[height, width, in, out]`."""
    if array.ndim != 4:
        return array
    if name.endswith("/depthwise_weights"):
        return np.ascontiguousarray(array.transpose(2, 3, 0, 1))
    return np.roll(array.transpose(2, 3, 1, 0), roll, axis=2)


def _from_official(array: np.ndarray, name: str, roll: int) -> np.ndarray:
    """Undoes `_to_official`."""
    if array.ndim != 4:
        return array
    if name.endswith("/depthwise_weights"):
        return np.ascontiguousarray(array.transpose(2, 3, 0, 1))
    return np.ascontiguousarray(np.roll(array, -roll, axis=2).transpose(3, 2, 0, 1))


def count_modules(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Returns the number of modules named `<prefix>0`, `<prefix>1`, ..."""
    indices = (name[len(prefix) :] for name in shapes if name.startswith(prefix))
    return len({index.partition(".")[0] for index in indices})
