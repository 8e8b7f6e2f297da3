"""Compares exports with their model, and rejects those whose mIoU is too low."""

import itertools
import json
import os
from collections.abc import Iterable

import keras

from deeplab_tf.config import EvalConfig
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.files.outputs import write_text
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.serving.artefact import read_file
from deeplab_tf.serving.calibration import pad_images
from deeplab_tf.serving.formats import load_artefact
from deeplab_tf.serving.layer_errors import compute_layer_errors, format_table
from deeplab_tf.serving.publication import comparison_path
from deeplab_tf.serving.tflite_export import convert_to_tflite

# Number of images from which layer errors are computed.
_LAYER_ERROR_IMAGES = 4


def compare(model_metrics: dict, artefact_metrics: dict) -> dict:
    """Returns a comparison of the metrics of a model and its exported artefact.

    Args:
        model_metrics: Metrics of the model, from `Evaluator.evaluate`.
        artefact_metrics: Metrics of the artefact on the same images.

    Returns:
        `images`; `miou` and `pixel_accuracy`, each with `model`, `artefact` and the
        `drop` from model to artefact in percentage points; and `iou_per_class` and
        `protocol` of both.

    Raises:
        UserError: if the numbers of images differ.
    """
    both = {"model": model_metrics, "artefact": artefact_metrics}
    counts = [metrics["images"] for metrics in both.values()]
    if counts[0] != counts[1]:
        raise UserError(
            f"the model was evaluated on {counts[0]} images and the artefact on "
            f"{counts[1]}; use the same records"
        )
    comparison = {"images": counts[0]}
    for key in ("miou", "pixel_accuracy", "iou_per_class", "protocol"):
        comparison[key] = {name: metrics[key] for name, metrics in both.items()}
    for key in ("miou", "pixel_accuracy"):
        values = comparison[key]
        values["drop"] = 100 * (values["model"] - values["artefact"])
    return comparison


def gate(
    model: keras.Model,
    artefact_path: str,
    dataset: Iterable,
    config: EvalConfig = EvalConfig(),
    max_miou_drop: float = 0.5,
    predictor=None,
) -> dict:
    """Compares an exported artefact with its model, and rejects a large mIoU drop.

    Evaluates both on the same records and writes the comparison to
    `<artefact>.parity.json`. If an int8 file is rejected, the error of every layer is
    printed.

    Args:
        model: The model that was exported.
        artefact_path: A SavedModel, a TFLite or an ONNX file.
        dataset: Dataset for `Evaluator.evaluate`; it is read twice.
        config: Inference protocol of the model; for a file of one size,
            `eval_crop_size` must be that size.
        max_miou_drop: Largest allowed drop of mIoU, in percentage points.
        predictor: A `ResizingPredictor` to evaluate instead of the model, if the
            artefact resizes images, which `config` cannot express.

    Returns:
        The comparison; see `compare`.

    Raises:
        UserError: if the drop is larger. The artefact is not removed, so write it in a
            `publish_artefact` block.
    """
    artefact = load_artefact(artefact_path)
    if artefact.num_classes is None:
        artefact.num_classes = model.model_config.num_classes
    # The artefact first: it may refuse images, such as large ones.
    artefact_metrics = Evaluator(artefact, config).evaluate(dataset)
    model_metrics = Evaluator(predictor or model, config).evaluate(dataset)
    comparison = compare(model_metrics, artefact_metrics)
    comparison["max_miou_drop"] = max_miou_drop
    write_text(json.dumps(comparison, indent=2) + "\n", comparison_path(artefact_path))
    miou = comparison["miou"]
    if miou["drop"] > max_miou_drop:
        precision = artefact.protocol.get("precision")
        is_int8 = "input_size" in artefact.protocol and precision == "int8"
        if is_int8 and not is_quantized(model):
            size = artefact.protocol["input_size"]
            print(format_layer_errors(model, artefact_path, size, dataset))
        raise UserError(
            f"{os.path.basename(artefact_path)} has an mIoU of {miou['artefact']:.2%}, "
            f"which is {miou['drop']:.2f} points below the model's "
            f"{miou['model']:.2%}; at most {max_miou_drop} are allowed"
        )
    return comparison


def format_layer_errors(
    model: keras.Model, path: str, size: tuple[int, int], images: Iterable
) -> str:
    """Returns a table with the error of every layer in an int8 file.

    `size` is the size of its input; `images` are like `calibration` of `export_tflite`,
    of which four are used.
    """
    padded = pad_images(images, model.model_config.mean_pixel, size)
    some = itertools.islice(padded, _LAYER_ERROR_IMAGES)
    exact = convert_to_tflite(model, size)
    return format_table(compute_layer_errors(exact, read_file(path), some))
