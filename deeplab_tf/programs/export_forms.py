"""What export.py writes, by the form of the artefact, and what it says of it."""

from typing import NamedTuple

import keras
import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf.config import EvalConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.evaluation.evaluator import make_predictor
from deeplab_tf.serving.onnx_file import export_onnx
from deeplab_tf.serving.parity import gate
from deeplab_tf.serving.publication import ONNX, TFLITE
from deeplab_tf.serving.saved_model import ExportOptions, export_saved_model
from deeplab_tf.serving.signatures import ResizedView, Resizing
from deeplab_tf.serving.tflite_export import export_tflite


class Order(NamedTuple):
    """What is to be exported.

    Attributes:
        model: The model.
        evaluation: How the artefact looks at images.
        resizing: To what size it resizes them first.
        info: The classes.
        records: Images and labels to compare on, if there are any.
    """

    model: keras.Model
    evaluation: EvalConfig
    resizing: Resizing | None
    info: DatasetInfo
    records: tf.data.Dataset | None


def _saved_model(values: absl_flags.FlagValues, order: Order, path: str) -> str:
    evaluation = order.evaluation
    export_saved_model(
        order.model,
        path,
        scales=evaluation.eval_scales,
        flip=evaluation.add_flipped_images,
        crop_size=evaluation.eval_crop_size,
        info=order.info,
        options=ExportOptions(
            window=evaluation.window_size,
            resizing=order.resizing,
            probabilities=values.export_probabilities,
            fold_batch_norm=values.fold_batch_norm,
            constant_weights=values.constant_weights,
            weights=values.export_weights,
            max_pixels=values.max_pixels,
        ),
    )
    return _of_any_size(order)


def _onnx(values: absl_flags.FlagValues, order: Order, path: str) -> str:
    export_onnx(order.model, path, values.export_probabilities, order.info)
    return _of_any_size(order)


def _of_any_size(order: Order) -> str:
    channels = order.model.model_config.channels
    return (
        f"ImageTensor uint8 [batch, height, width, {channels}] -> "
        "SemanticPredictions int32 [batch, height, width]"
    )


def _tflite(values: absl_flags.FlagValues, order: Order, path: str) -> str:
    config, size = order.model.model_config, order.evaluation.eval_crop_size
    precision, output = values.tflite_precision, values.tflite_output
    is_int8 = precision == "int8"
    images = order.records.take(values.calibration_images) if is_int8 else None
    export_tflite(order.model, path, size, precision, output, images, order.info)
    pixels, sides = "uint8" if is_int8 else "float32", f"1, {size[0]}, {size[1]}"
    given = {
        "labels": f"SemanticPredictions int32 [{sides}]",
        "logits": f"SemanticLogits float32 [{sides}, {config.num_classes}]",
    }
    return (
        f"{precision}; ImageTensor {pixels} [{sides}, {config.channels}] -> "
        f"{given[output]}"
    )


# By what a path ends with. Each writes an artefact and returns what to say of it.
WRITERS = {"": _saved_model, TFLITE: _tflite, ONNX: _onnx}


def compare(order: Order, path: str, max_miou_drop: float) -> str:
    """Returns what to say of how an artefact scores beside its model.

    Args:
        order: What was exported, with records.
        path: The artefact.
        max_miou_drop: As in `gate`.

    Raises:
        UserError: if it is not good enough.
    """
    view = None
    if order.resizing is not None:
        view = ResizedView(
            make_predictor(order.model, order.evaluation), order.resizing
        )
    comparison = gate(
        order.model, path, order.records, order.evaluation, max_miou_drop, view
    )
    miou = comparison["miou"]
    return (
        f"mIoU {miou['artefact']:.4f}, of the model {miou['model']:.4f}, on "
        f"{comparison['images']} images"
    )
