"""Reduces the precision of TFLite files with LiteRT's quantiser."""

import contextlib
import io
import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_tf.errors import import_extra
from deeplab_tf.serving.signatures import INPUT, SERVING

if TYPE_CHECKING:
    import litert_quantizer

MODULE = "litert_quantizer"
_NEEDED_BY = "quantised TFLite files need"
# The name that the converter gives the input.
_PIXELS = f"{SERVING}_{INPUT}:0"
# About the calibrator's own use of the interpreter.
_CALIBRATION_WARNING = r"\s*Warning: Enabling `experimental_preserve_all_tensors`"


def quantize_tflite(
    content: bytes,
    precision: str,
    samples: Iterable[np.ndarray] = (),
    input_type: str = "uint8",
    output_type: str = "uint8",
    float_layers: Collection[str] = (),
) -> bytes:
    """Returns a float32 TFLite file in a lower precision.

    Args:
        content: The file. Its signature `serving_default` takes pixels as float32.
        precision: "float16", "dynamic" or "int8", as for `export_tflite`.
        samples: For int8, images `[1, height, width, channels]`, 0..255.
        input_type: For int8, the type of the pixels, "uint8" or "float32".
        output_type: For int8, the type of scores, "uint8" or "float32".
        float_layers: Names of layers that stay in float32.
    """
    library = import_extra(MODULE, "export", _NEEDED_BY)
    quantizer = library.Quantizer(content)
    _add_precision_rules(
        quantizer, precision, {"INPUT": input_type, "OUTPUT": output_type}
    )
    for name in float_layers:
        _keep_float(quantizer, rf"(^|[/;]){re.escape(name)}(_\d+)?[/;]")
    with _hide_progress():
        ranges = _calibrate(quantizer, samples) if precision == "int8" else None
        result = quantizer.quantize(ranges, enable_progress_report=False)
    return _use_integer_argmax(bytes(result.quantized_model))


def _add_precision_rules(
    quantizer: "litert_quantizer.Quantizer", precision: str, ends: dict[str, str]
) -> None:
    """Sets the precision of all operations, and the types of input and output."""
    types = import_extra(f"{MODULE}.qtyping", "export", _NEEDED_BY)
    everything = types.TFLOperationName.ALL_SUPPORTED
    tensor, operation = types.TensorQuantizationConfig, types.OpQuantizationConfig
    if precision == "float16":
        weights = tensor(16, dtype=types.TensorDataType.FLOAT)
        rule = operation(weight_tensor_config=weights, explicit_dequantize=True)
        quantizer.update_quantization_recipe(".*", everything, rule, "float_casting")
    elif precision == "dynamic":
        quantizer.add_dynamic_config(".*", everything, 8)
    else:
        quantizer.add_static_config(".*", everything, 8, 8)
        uint8 = operation(
            tensor(8, symmetric=False, dtype=types.TensorDataType.UINT),
            tensor(8),
            types.ComputePrecision.INTEGER,
        )
        for name, end in ends.items():
            if end == "uint8":
                quantizer.update_quantization_recipe(".*", name, uint8)
            else:
                _keep_float(quantizer, ".*", name)


def _keep_float(
    quantizer: "litert_quantizer.Quantizer", pattern: str, operation: str = "*"
) -> None:
    """Excludes operations of layers that match a pattern from quantisation."""
    quantizer.update_quantization_recipe(
        pattern, operation, algorithm_key="no_quantize"
    )


def _calibrate(
    quantizer: "litert_quantizer.Quantizer", samples: Iterable[np.ndarray]
) -> dict[str, Any]:
    """Returns the range of every tensor, a moving average over the samples."""
    ranges: dict[str, Any] = {}
    # One at a time, because the quantiser makes a list of the samples.
    for sample in samples:
        ranges = quantizer.calibrate({SERVING: [{INPUT: sample}]}, ranges)
    # So that pixels are quantised with scale 1 and zero point 0.
    shape = [1] * 4
    ranges[_PIXELS] = {"min": np.full(shape, 0.0), "max": np.full(shape, 255.0)}
    return ranges


@contextlib.contextmanager
def _hide_progress() -> Iterator[None]:
    """Hides the quantiser's progress bars, which it shows for each sample."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", _CALIBRATION_WARNING)
        yield


def _use_integer_argmax(content: bytes) -> bytes:
    """Makes ARG_MAX read the quantised scores, which have the same order.

    The quantiser converts them to float32, although ARG_MAX supports 8 bits.
    """
    tools = import_extra("ai_edge_litert.tools.flatbuffer_utils", "export", _NEEDED_BY)
    model = tools.read_model_from_bytearray(content)
    (graph,) = model.subgraphs

    def find_operators(name: str) -> list:
        return [
            operation
            for operation in graph.operators
            if tools.opcode_to_name(model, operation.opcodeIndex) == name
        ]

    sources = {
        operation.outputs[0]: operation for operation in find_operators("DEQUANTIZE")
    }
    for maximum in find_operators("ARG_MAX"):
        source = sources.get(maximum.inputs[0])
        if source is not None:
            maximum.inputs[0] = source.inputs[0]
            graph.operators.remove(source)
            # The quantiser appended the float32 scores, which now have no use.
            if source.outputs[0] == len(graph.tensors) - 1:
                graph.tensors.pop()
    return bytes(tools.convert_object_to_bytearray(model))
