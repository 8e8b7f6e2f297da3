"""Exports a model in any format, and compares the export with the model."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from deeplab_tf.checkpoints.keras_file import KERAS
from deeplab_tf.config import EvalConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import pluralize
from deeplab_tf.evaluation.evaluator import make_predictor
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.serving.browser import export_html
from deeplab_tf.serving.choices import FROZEN, HTML, ONNX, OPENVINO, TFLITE
from deeplab_tf.serving.frozen_graph import export_frozen_graph
from deeplab_tf.serving.layer_errors import rank_layers
from deeplab_tf.serving.onnx_file import export_onnx
from deeplab_tf.serving.openvino_file import export_openvino
from deeplab_tf.serving.parity import Gate, RejectedError
from deeplab_tf.serving.saved_model import ExportOptions, export_saved_model
from deeplab_tf.serving.signatures import ResizingPredictor
from deeplab_tf.serving.tflite_export import export_tflite


class ExportRequest(NamedTuple):
    """Settings of an export, for any format.

    Attributes:
        model: The model.
        evaluation: The inference protocol of the artefact.
        info: The classes.
        records: Images and labels for the comparison, if any.
        options: Options of a SavedModel; `probabilities` also applies to ONNX and
            OpenVINO.
        precision: Precision of a TFLite, an ONNX or an OpenVINO file.
        output: Output of a TFLite file, one of `TFLITE_OUTPUTS`.
        input_type: Type of a TFLite file's input, one of `TFLITE_INPUTS`, or None.
        calibration_images: Number of images of `records` for calibrating int8.
        float_layers: Names of layers of an int8 file to leave in float32.
        web_runtime: Folder of the npm package `onnxruntime-web`, for a page.
        command: Arguments of the command line, for a page.
    """

    model: keras.Model
    evaluation: EvalConfig
    info: DatasetInfo
    records: tf.data.Dataset | None
    options: ExportOptions = ExportOptions()
    precision: str = "float32"
    output: str = "labels"
    input_type: str | None = None
    calibration_images: int = 100
    float_layers: Sequence[str] = ()
    web_runtime: str = ""
    command: Sequence[str] = ()


def write_artefact(request: ExportRequest, path: str, ending: str) -> str:
    """Writes an artefact and returns a description of its inputs and outputs.

    `ending` is the ending of the final path: `TFLITE`, `ONNX`, `OPENVINO`, `FROZEN`,
    `KERAS`, `HTML`, or "" for a SavedModel.
    """
    writers = {
        TFLITE: _write_tflite,
        ONNX: functools.partial(_write_engine_file, export_onnx),
        OPENVINO: functools.partial(_write_engine_file, export_openvino),
        FROZEN: _write_frozen_graph,
        KERAS: _write_keras,
        HTML: _write_page,
    }
    return writers.get(ending, _write_saved_model)(request, path)


def _write_frozen_graph(request: ExportRequest, path: str) -> str:
    return _write_tensorflow_graph(export_frozen_graph, request, path)


def _write_saved_model(request: ExportRequest, path: str) -> str:
    return _write_tensorflow_graph(export_saved_model, request, path)


def _write_tensorflow_graph(export: Callable, request: ExportRequest, path: str) -> str:
    """Writes a SavedModel or a frozen graph; describes its input and output."""
    export(
        request.model,
        path,
        scales=request.evaluation.eval_scales,
        flip=request.evaluation.add_flipped_images,
        crop_size=request.evaluation.eval_crop_size,
        info=request.info,
        options=request.options,
    )
    return _describe_flexible_size(request)


def _write_engine_file(export: Callable, request: ExportRequest, path: str) -> str:
    """Writes an ONNX or OpenVINO file; describes its precision, input and output."""
    export(
        request.model,
        path,
        request.options.probabilities,
        request.precision,
        _select_calibration_images(request),
        request.info,
        request.float_layers,
    )
    return f"{request.precision}; {_describe_flexible_size(request)}"


def _select_calibration_images(request: ExportRequest) -> tf.data.Dataset | None:
    """Returns the first images of the records; None if int8 needs no calibration."""
    if request.precision != "int8" or is_quantized(request.model):
        return None
    return request.records.take(request.calibration_images)


def _write_keras(request: ExportRequest, path: str) -> str:
    """Writes a `.keras` file; describes its input and output."""
    request.model.save(path)
    config = request.model.model_config
    return (
        f"image float32 [batch, height, width, {config.channels}] -> logits float32 "
        f"[batch, height, width, {config.num_classes}]"
    )


def _write_page(request: ExportRequest, path: str) -> str:
    """Writes a page for the browser; describes it."""
    export_html(
        request.model,
        path,
        request.web_runtime,
        request.info,
        request.precision,
        request.command,
    )
    return f"{request.precision}; open it in a browser"


def _describe_flexible_size(request: ExportRequest) -> str:
    """Describes the input and output of an export for images of any size."""
    channels = request.model.model_config.channels
    return (
        f"ImageTensor uint8 [batch, height, width, {channels}] -> "
        "SemanticPredictions int32 [batch, height, width]"
    )


def _write_tflite(request: ExportRequest, path: str) -> str:
    """Writes a TFLite file; describes its precision, input and output."""
    config, size = request.model.model_config, request.evaluation.eval_crop_size
    export_tflite(
        request.model,
        path,
        size,
        request.precision,
        request.output,
        _select_calibration_images(request),
        request.info,
        request.input_type,
        request.float_layers,
    )
    default = "uint8" if request.precision == "int8" else "float32"
    sides = f"1, {size[0]}, {size[1]}"
    outputs = {
        "labels": f"SemanticPredictions int32 [{sides}]",
        "category_mask": f"SemanticPredictions uint8 [{sides}, 1]",
        "logits": f"SemanticLogits float32 [{sides}, {config.num_classes}]",
        "probabilities": f"SemanticProbabilities {default} "
        f"[{sides}, {config.num_classes}]",
    }
    return (
        f"{request.precision}; ImageTensor {request.input_type or default} [{sides}, "
        f"{config.channels}] -> {outputs[request.output]}"
    )


def write_and_compare(
    request: ExportRequest, path: str, ending: str, max_miou_drop: float
) -> tuple[str, str]:
    """Writes an artefact, and compares it with its model by `Gate`.

    If an int8 file is rejected, the 1, 2, 4, ... layers with the largest errors are
    left in float32, and printed, until the file passes.

    Returns:
        The description of `write_artefact`, and a summary of the comparison.

    Raises:
        UserError: if the artefact is rejected, with all these layers in float32.
    """
    predictor, resizing = None, request.options.resizing
    if resizing is not None:
        predictor = make_predictor(request.model, request.evaluation)
        predictor = ResizingPredictor(predictor, resizing)
    model, records, protocol = request.model, request.records, request.evaluation
    gate = Gate(model, records, protocol, max_miou_drop, predictor)
    while True:
        description = write_artefact(request, path, ending)
        try:
            comparison = gate.check(path, request.float_layers)
            break
        except RejectedError as error:
            count, names = len(request.float_layers), rank_layers(gate.errors)
            if count == len(names):
                raise
            layers = names[: 2 * count or 1]
            request = request._replace(float_layers=layers)
            print(f"{error}; leaving in float32: {', '.join(layers)}")
    miou = comparison["miou"]
    summary = f"mIoU {miou['artefact']:.4f}, model {miou['model']:.4f}, on "
    summary += pluralize(comparison["images"], "image(s)")
    if request.float_layers:
        description += f"; in float32: {', '.join(request.float_layers)}"
    return description, summary
