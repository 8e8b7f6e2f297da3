"""Where an int8 file departs from the model: the error of every layer.

`tf.lite.experimental.QuantizationDebugger` quantises the model anew instead of reading
the file that is exported, and its statistics lack the deviation of the exact output.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_WIDTH = 56


class LayerError(NamedTuple):
    """What 8 bits make of a layer's output, with all that the layers before it did.

    Attributes:
        name: Of the layer, as far as the file tells.
        error: Root mean square of the difference, in standard deviations of the
            float32 output.
        step: Step of the 8 bits, in the same unit: what this layer alone rounds to.
    """

    name: str
    error: float
    step: float


def layer_errors(
    exact: bytes, quantized: bytes, images: Iterable[np.ndarray]
) -> list[LayerError]:
    """Returns the errors of the layers of an int8 file, in the order of the network.

    Args:
        exact: A float32 TFLite file.
        quantized: The int8 file of the same model and size.
        images: Padded images `[1, height, width, channels]`, 0..255.
    """
    interpreters = [_interpreter(content) for content in (exact, quantized)]
    outputs = [_outputs(interpreter) for interpreter in interpreters]
    common = [name for name in outputs[1] if name in outputs[0]]

    def values(name):
        pair = zip(interpreters, outputs, strict=True)
        return [_value(interpreter, known[name]) for interpreter, known in pair]

    sums, count = {name: np.zeros(3) for name in common}, 0
    for image in images:
        for interpreter in interpreters:
            _run(interpreter, image)
        for name in common:
            value, rounded = values(name)
            squares = np.mean((rounded - value) ** 2)
            sums[name] += np.mean(value), np.mean(value**2), squares
        count += 1
    return [_error(name, sums[name] / count, outputs[1][name]) for name in common]


def table(errors: list[LayerError]) -> str:
    """Returns errors as a table, ready to print."""
    lines = [f"{'layer':<{_WIDTH}}  {'error':>7}  {'8-bit step':>10}"]
    lines += [
        f"{layer.name[-_WIDTH:]:<{_WIDTH}}  {layer.error:>7.2%}  {layer.step:>10.2%}"
        for layer in errors
    ]
    return "\n".join(lines)


def _interpreter(content: bytes):
    # Here, because it is an extra that only these files need.
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        # A delegate would keep what is between its layers for itself.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    return interpreter


def _outputs(interpreter) -> dict[str, dict]:
    """Returns tensors by name that may be what a layer gives."""
    return {
        detail["name"]: detail
        for detail in interpreter.get_tensor_details()
        # Without a name it is what an operation scribbles on.
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


def _value(interpreter, detail: dict) -> np.ndarray:
    """Returns a tensor as real numbers."""
    value = np.float32(interpreter.get_tensor(detail["index"]))
    scale, zero_point = detail["quantization"]
    return np.float32(scale) * (value - zero_point) if scale else value


def _error(name: str, means: np.ndarray, detail: dict) -> LayerError:
    """Returns the error for the means of values, their squares and the differences'."""
    value, square, difference = means
    deviation = np.sqrt(max(square - value**2, 1e-12))
    step = detail["quantization"][0]
    return LayerError(_short(name), np.sqrt(difference) / deviation, step / deviation)


def _short(name: str) -> str:
    """Returns the layer of a tensor: `model_1/backbone_1/Conv.relu6_1/Relu6;...`."""
    parts = name.partition(";")[0].split("/")
    return parts[-2].removesuffix("_1") if len(parts) > 1 else name
