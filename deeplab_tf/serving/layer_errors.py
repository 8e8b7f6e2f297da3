"""Computes the quantisation error of every layer in an int8 TFLite file.

`tf.lite.experimental.QuantizationDebugger` is not suitable: it quantises the model
again instead of reading the exported file, and does not report the standard deviation
of the exact output.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_WIDTH = 56


class LayerError(NamedTuple):
    """The error of a layer's output, including that of all layers before it.

    Attributes:
        name: Name of the layer in the file, which may be incomplete.
        error: Root mean square error, in standard deviations of the float32 output.
        step: Quantisation step of this layer, in the same unit.
    """

    name: str
    error: float
    step: float


def compute_layer_errors(
    exact: bytes, quantized: bytes, images: Iterable[np.ndarray]
) -> list[LayerError]:
    """Returns the error of every layer of an int8 file, in network order.

    Args:
        exact: Content of a float32 TFLite file.
        quantized: Content of an int8 file of the same model and size.
        images: Padded images `[1, height, width, channels]`, 0..255.
    """
    interpreters = [_load_interpreter(content) for content in (exact, quantized)]
    outputs = [_find_layer_outputs(interpreter) for interpreter in interpreters]
    common = [name for name in outputs[1] if name in outputs[0]]

    def read_values(name):
        pair = zip(interpreters, outputs, strict=True)
        return [_read_tensor(interpreter, known[name]) for interpreter, known in pair]

    sums, count = {name: np.zeros(3) for name in common}, 0
    for image in images:
        for interpreter in interpreters:
            _run(interpreter, image)
        for name in common:
            value, rounded = read_values(name)
            squares = np.mean((rounded - value) ** 2)
            sums[name] += np.mean(value), np.mean(value**2), squares
        count += 1
    return [_make_error(name, sums[name] / count, outputs[1][name]) for name in common]


def format_table(errors: list[LayerError]) -> str:
    """Returns the errors as a table to print."""
    lines = [f"{'layer':<{_WIDTH}}  {'error':>7}  {'8-bit step':>10}"]
    lines += [
        f"{layer.name[-_WIDTH:]:<{_WIDTH}}  {layer.error:>7.2%}  {layer.step:>10.2%}"
        for layer in errors
    ]
    return "\n".join(lines)


def _load_interpreter(content: bytes):
    # An optional dependency.
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        # A delegate would hide the outputs of its layers.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    return interpreter


def _find_layer_outputs(interpreter) -> dict[str, dict]:
    """Returns the tensors that may be the output of a layer, by name."""
    return {
        detail["name"]: detail
        for detail in interpreter.get_tensor_details()
        # Tensors without a name are scratch memory.
        if detail["name"]
        and len(detail["shape"]) == 4
        and detail["shape"][0] == 1
        and detail["dtype"] in (np.float32, np.int8)
        and len(detail["quantization_parameters"]["scales"]) <= 1
    }


def _run(interpreter, image: np.ndarray) -> None:
    detail = interpreter.get_input_details()[0]
    interpreter.set_tensor(detail["index"], np.rint(image).astype(detail["dtype"]))
    interpreter.invoke()


def _read_tensor(interpreter, detail: dict) -> np.ndarray:
    """Returns a tensor, dequantised, as float32."""
    value = np.float32(interpreter.get_tensor(detail["index"]))
    scale, zero_point = detail["quantization"]
    return np.float32(scale) * (value - zero_point) if scale else value


def _make_error(name: str, means: np.ndarray, detail: dict) -> LayerError:
    """Computes an error from the means of values, squares and squared differences."""
    value, square, difference = means
    deviation = np.sqrt(max(square - value**2, 1e-12))
    step = detail["quantization"][0]
    return LayerError(
        _parse_layer_name(name), np.sqrt(difference) / deviation, step / deviation
    )


def _parse_layer_name(name: str) -> str:
    """Returns the layer of a tensor `model_1/backbone_1/Conv.relu6_1/Relu6;...`."""
    parts = name.partition(";")[0].split("/")
    return parts[-2].removesuffix("_1") if len(parts) > 1 else name
