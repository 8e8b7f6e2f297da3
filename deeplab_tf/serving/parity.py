"""The gate: what is exported scores as the model does, or is not let out."""

import itertools
import json
import os
from collections.abc import Iterable

import keras

from deeplab_tf.config import EvalConfig
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.files.outputs import write_text
from deeplab_tf.serving.artefact import read_file
from deeplab_tf.serving.formats import load_artefact
from deeplab_tf.serving.layer_errors import layer_errors, table
from deeplab_tf.serving.publication import comparison_path
from deeplab_tf.serving.tflite_export import calibration_images, tflite_content

# Images that the table of layers is made of.
_IMAGES_OF_TABLE = 4


def compare(model_metrics: dict, artefact_metrics: dict) -> dict:
    """Returns the metrics of a model and of what was exported of it side by side.

    Args:
        model_metrics: Of `Evaluator.evaluate`.
        artefact_metrics: The same for the artefact, on the same images.

    Returns:
        `images`; `miou` and `pixel_accuracy`, each with `model`, `artefact` and `drop`,
        how many points of a hundred the artefact is below the model; `iou_per_class`
        of both; the `protocol` of both.

    Raises:
        UserError: if these are metrics of other images.
    """
    both = {"model": model_metrics, "artefact": artefact_metrics}
    seen = [metrics["images"] for metrics in both.values()]
    if seen[0] != seen[1]:
        raise UserError(
            f"the model saw {seen[0]} images and the artefact {seen[1]}; the same "
            "records are needed"
        )

    def of_both(key):
        return {name: metrics[key] for name, metrics in both.items()}

    comparison = {"images": seen[0]}
    for key in ("miou", "pixel_accuracy"):
        values = of_both(key)
        drop = 100 * (values["model"] - values["artefact"])
        comparison[key] = {**values, "drop": drop}
    for key in ("iou_per_class", "protocol"):
        comparison[key] = of_both(key)
    return comparison


def gate(
    model: keras.Model,
    artefact_path: str,
    dataset: Iterable,
    config: EvalConfig = EvalConfig(),
    max_miou_drop: float = 0.5,
    view=None,
) -> dict:
    """Returns how what was exported compares with its model, if it is good enough.

    Both are evaluated on the same records, and the comparison is written to
    `<artefact>.parity.json`. For an int8 file that is refused the error of every layer
    is printed.

    Args:
        model: The model that was exported.
        artefact_path: A SavedModel, a TFLite or an ONNX file.
        dataset: As `Evaluator.evaluate` takes it; it is read twice.
        config: How the model looks at an image; for a file of one size, that size is
            to be `eval_crop_size`.
        max_miou_drop: How many points of mIoU, of a hundred, the artefact may be below
            the model.
        view: What labels images as the model in this artefact does, where `config` does
            not tell it: a `ResizedView`.

    Raises:
        UserError: if it is further below; the artefact stays where it is, which is why
            it is best written to what `publish_artefact` gives.
    """
    artefact = load_artefact(artefact_path)
    if artefact.num_classes is None:
        artefact.num_classes = model.model_config.num_classes
    # The artefact first: what it cannot take, such as large images, is told early.
    of_artefact = Evaluator(artefact, config).evaluate(dataset)
    of_model = Evaluator(view or model, config).evaluate(dataset)
    comparison = {**compare(of_model, of_artefact), "max_miou_drop": max_miou_drop}
    write_text(json.dumps(comparison, indent=2) + "\n", comparison_path(artefact_path))
    miou = comparison["miou"]
    if miou["drop"] > max_miou_drop:
        if artefact.protocol.get("precision") == "int8":
            size = artefact.protocol["input_size"]
            print(table_of_layers(model, artefact_path, size, dataset))
        raise UserError(
            f"{os.path.basename(artefact_path)} scores a mIoU of "
            f"{miou['artefact']:.2%}, which is {miou['drop']:.2f} points "
            f"below the model's {miou['model']:.2%}; "
            f"{max_miou_drop} are allowed"
        )
    return comparison


def table_of_layers(
    model: keras.Model, path: str, size: tuple[int, int], images: Iterable
) -> str:
    """Returns the errors of the layers of an int8 file as a table, ready to print.

    Args:
        model: The model that it was made of.
        path: The file, of `export_tflite`.
        size: Its height and width.
        images: As `calibration` of `export_tflite`; the first four are used.
    """
    padded = calibration_images(images, model.model_config.mean_pixel, size)
    some = itertools.islice(padded, _IMAGES_OF_TABLE)
    return table(layer_errors(tflite_content(model, size), read_file(path), some))
