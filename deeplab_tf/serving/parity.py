"""Compares exports with their model, and rejects those whose mIoU is too low."""

import itertools
import json
import os
from collections.abc import Collection, Iterable

import keras

from deeplab_tf.config import EvalConfig
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.files.outputs import write_text
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.serving.artefact import read_file
from deeplab_tf.serving.calibration import pad_images, read_samples
from deeplab_tf.serving.choices import ONNX, ending_of
from deeplab_tf.serving.formats import load_artefact
from deeplab_tf.serving.layer_errors import LayerError, format_table
from deeplab_tf.serving.onnx_file import measure_layer_errors as measure_onnx
from deeplab_tf.serving.openvino_file import measure_layer_errors as measure_openvino
from deeplab_tf.serving.publication import comparison_path
from deeplab_tf.serving.tflite_export import convert_to_tflite
from deeplab_tf.serving.tflite_layer_errors import compute_layer_errors

# Number of images from which layer errors are computed.
_LAYER_ERROR_IMAGES = 4


class RejectedError(UserError):
    """The mIoU of an export is too far below that of its model."""


def compare_metrics(model_metrics: dict, artefact_metrics: dict) -> dict:
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


class Gate:
    """Compares exports with their model, and rejects a large drop of mIoU.

    Attributes:
        errors: Errors of the layers of the first int8 export that was rejected.
    """

    def __init__(
        self,
        model: keras.Model,
        dataset: Iterable,
        config: EvalConfig = EvalConfig(),
        max_miou_drop: float = 0.5,
        predictor=None,
    ):
        """Takes the arguments of `gate`."""
        self._model, self._dataset, self._config = model, dataset, config
        self._max_miou_drop, self._predictor = max_miou_drop, predictor
        self._model_metrics: dict = {}
        self.errors: list[LayerError] = []

    def check(self, path: str, float_layers: Collection[str] = ()) -> dict:
        """Compares an export, as `gate` does, and writes the comparison next to it.

        `float_layers` are the names of the layers that were left in float32. For the
        first int8 export that is rejected, prints the errors of the layers.
        """
        artefact = load_artefact(path)
        if artefact.num_classes is None:
            artefact.num_classes = self._model.model_config.num_classes
        # The artefact first: it may refuse images, such as large ones.
        metrics = Evaluator(artefact, self._config).evaluate(self._dataset)
        if not self._model_metrics:
            evaluator = Evaluator(self._predictor or self._model, self._config)
            self._model_metrics = evaluator.evaluate(self._dataset)
        comparison = compare_metrics(self._model_metrics, metrics)
        comparison["max_miou_drop"] = self._max_miou_drop
        miou = comparison["miou"]
        is_rejected = miou["drop"] > self._max_miou_drop
        is_calibrated = artefact.protocol.get("precision") == "int8"
        is_calibrated = is_calibrated and not is_quantized(self._model)
        if is_rejected and is_calibrated and not self.errors:
            self.errors = measure_layer_errors(
                self._model, path, self._dataset, artefact.protocol.get("input_size")
            )
            print(format_table(self.errors))
        if self.errors:
            comparison["layers"] = [
                layer._replace(is_float=layer.name in float_layers)._asdict()
                for layer in self.errors
            ]
        write_text(json.dumps(comparison, indent=2) + "\n", comparison_path(path))
        if is_rejected:
            raise RejectedError(
                f"{os.path.basename(path)} has an mIoU of {miou['artefact']:.2%}, "
                f"which is {miou['drop']:.2f} points below the model's "
                f"{miou['model']:.2%}; at most {self._max_miou_drop} are allowed"
            )
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
    printed and added to the comparison.

    Args:
        model: The model that was exported.
        artefact_path: A SavedModel, or a file of another format.
        dataset: Dataset for `Evaluator.evaluate`; it is read twice.
        config: Inference protocol of the model; for a file of one size,
            `eval_crop_size` must be that size.
        max_miou_drop: Largest allowed drop of mIoU, in percentage points.
        predictor: A `ResizingPredictor` to evaluate instead of the model, if the
            artefact resizes images, which `config` cannot express.

    Returns:
        The comparison; see `compare_metrics`.

    Raises:
        UserError: if the drop is larger. The artefact is not removed, so write it in a
            `publish_artefact` block.
    """
    return Gate(model, dataset, config, max_miou_drop, predictor).check(artefact_path)


def measure_layer_errors(
    model: keras.Model,
    path: str,
    images: Iterable,
    size: tuple[int, int] | None = None,
) -> list[LayerError]:
    """Returns the quantisation error of every layer of an int8 file.

    In ONNX and OpenVINO files, it is the error of the layer alone, given exact inputs;
    in TFLite files, it includes the errors of all layers before.

    Args:
        model: The model that was exported.
        path: The file.
        images: Like `calibration` of `export_tflite`; four are used.
        size: Size of the input of a TFLite file.
    """
    if size is not None:
        padded = pad_images(images, model.model_config.mean_pixel, size)
        some = itertools.islice(padded, _LAYER_ERROR_IMAGES)
        exact = convert_to_tflite(model, size)
        return compute_layer_errors(exact, read_file(path), some)
    samples = itertools.islice(read_samples(images), _LAYER_ERROR_IMAGES)
    measure = measure_onnx if ending_of(path) == ONNX else measure_openvino
    return measure(model, path, samples)
