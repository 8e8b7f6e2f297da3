"""Computes the quantisation error of every layer in an int8 TFLite file.

`tf.lite.experimental.QuantizationDebugger` is not suitable: it quantises the model
again instead of reading the exported file, and does not report the standard deviation
of the exact output.
"""

from collections.abc import Iterable

import numpy as np

from deeplab_tf.serving.layer_errors import (
    LayerError,
    compute_errors,
    parse_layer_name,
)


def compute_layer_errors(
    exact: bytes, quantized: bytes, images: Iterable[np.ndarray]
) -> list[LayerError]:
    """Returns the error of every layer of an int8 file, in network order.

    Errors include those of all layers before: an interpreter cannot run single layers.

    Args:
        exact: Content of a float32 TFLite file.
        quantized: Content of an int8 file of the same model and size.
        images: Padded images `[1, height, width, channels]`, 0..255.
    """
    interpreters = [_load_interpreter(content) for content in (exact, quantized)]
    outputs = [_find_layer_outputs(interpreter) for interpreter in interpreters]
    common = [name for name in outputs[1] if name in outputs[0]]

    def read_tensors(name):
        pair = zip(interpreters, outputs, strict=True)
        return [_read_tensor(interpreter, known[name]) for interpreter, known in pair]

    sums = np.zeros((len(common), 2))
    for image in images:
        for interpreter in interpreters:
            _run_interpreter(interpreter, image)
        for i, name in enumerate(common):
            value, rounded = read_tensors(name)
            sums[i] += np.sum((rounded - value) ** 2), value.size * np.var(value)
    return compute_errors([parse_layer_name(name) for name in common], sums)


def _load_interpreter(content: bytes):
    """Returns an interpreter that keeps the outputs of all layers."""
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


def _run_interpreter(interpreter, image: np.ndarray) -> None:
    """Runs the interpreter on an image, in the type of its input."""
    detail = interpreter.get_input_details()[0]
    interpreter.set_tensor(detail["index"], np.rint(image).astype(detail["dtype"]))
    interpreter.invoke()


def _read_tensor(interpreter, detail: dict) -> np.ndarray:
    """Returns a tensor, dequantised, as float32."""
    value = np.float32(interpreter.get_tensor(detail["index"]))
    scale, zero_point = detail["quantization"]
    return np.float32(scale) * (value - zero_point) if scale else value
