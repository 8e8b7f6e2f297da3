"""A model over a whole split: the metrics of `metrics.json`."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from deeplab_tf.config import EvalConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.reader import batches
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation import confusion
from deeplab_tf.inference import Predictor
from deeplab_tf.visualize import as_rgb


class Evaluator:
    """Scores a model again and again, with one compiled step.

    The weights may change in between: every score is of those of its moment.

    Args:
        model: A model of `build_model`.
        config: How to look at the images.
        shows_progress: Whether this process shows a progress bar.

    Attributes:
        examples: First images of the last dataset, as many as were asked for: tuples
            of the image, uint8 RGB `[height, width, 3]`, its label and the predicted
            labels, `[height, width]`.
    """

    def __init__(
        self,
        model: keras.Model,
        config: EvalConfig = EvalConfig(),
        shows_progress: bool = True,
    ):
        self.examples = []
        self._shows_progress = shows_progress
        self._model_config = model.model_config
        self._config = config
        self._predictor = Predictor(
            model, config.eval_scales, config.add_flipped_images, config.eval_crop_size
        )
        num_classes = model.model_config.num_classes
        self._metric = confusion.MeanIoU(num_classes, config.ignore_label)
        self._compiled_step = tf.function(self._step, reduce_retracing=True)

    def _step(self, images, labels):
        predictions = self._predictor.labels(images)
        self._metric.update_labels(labels, predictions)
        return predictions

    def evaluate(
        self,
        dataset: tf.data.Dataset,
        total: Callable[[np.ndarray], np.ndarray] | None = None,
        examples: int = 0,
    ) -> dict:
        """Returns the metrics of the model on a dataset, scored at its image sizes.

        Args:
            dataset: Batches of images `[batch, height, width, 3]`, RGB 0..255, and
                labels `[batch, height, width, 1]`; of several workers, the share of
                this one.
            total: Returns the sum of an int64 array over all workers, each of which
                calls it equally often. None is one worker.
            examples: Number of images to keep in `examples`.

        Returns:
            `images`, `miou`, `pixel_accuracy`, `iou_per_class` (None for a class
            that neither truth nor prediction has), `confusion_matrix` (rows are the
            truth) and the `protocol`.

        Raises:
            UserError: if the dataset is empty or holds no pixel to score.
        """
        self._metric.reset_state()
        self.examples = []
        seen = self._score(dataset, examples)
        counts = keras.ops.convert_to_numpy(self._metric.counts)
        if total is not None:
            seen, counts = np.asarray(total(seen)), np.asarray(total(counts))
        images, enlarged = seen.tolist()
        if enlarged:
            print(f"note: {enlarged} images exceed eval_crop_size and enlarged it")
        return self._metrics(images, counts)

    def _score(self, dataset, examples: int) -> np.ndarray:
        """Counts a dataset; returns its images and how many exceed the crop size."""
        seen = np.zeros(2, np.int64)
        hidden = not self._shows_progress
        with tqdm(desc="evaluating", unit="img", disable=hidden) as progress:
            for images, labels in batches(dataset):
                predictions = self._compiled_step(images, labels)
                self._keep(images, labels, predictions, examples)
                exceeds = _exceeds(images.shape[1:3], self._config.eval_crop_size)
                seen += len(images) * np.array([1, exceeds])
                progress.update(len(images))
        return seen

    def _keep(self, images, labels, predictions, examples: int) -> None:
        for i in range(min(examples - len(self.examples), len(images))):
            prediction = predictions[i].numpy()
            truth = np.reshape(labels[i], prediction.shape)
            self.examples.append((as_rgb(images[i]), truth, prediction))

    def _metrics(self, images: int, counts: np.ndarray) -> dict:
        if counts.sum() == 0:
            raise UserError(
                f"{images} images hold no pixel with a label in 0..{len(counts) - 1}"
            )
        ious = confusion.iou_per_class(counts)
        return {
            "images": images,
            "miou": confusion.mean_iou(counts),
            "pixel_accuracy": confusion.pixel_accuracy(counts),
            "iou_per_class": [None if np.isnan(iou) else float(iou) for iou in ious],
            "confusion_matrix": counts.tolist(),
            "protocol": {
                "output_stride": self._model_config.output_stride,
                "atrous_rates": list(self._model_config.context.rates),
                **dataclasses.asdict(self._config),
            },
        }


def evaluate(
    model: keras.Model, dataset: tf.data.Dataset, config: EvalConfig = EvalConfig()
) -> dict:
    """Returns the metrics of a model on a dataset, scored at its image sizes.

    Args:
        model: A model of `build_model`.
        dataset: Batches of images `[batch, height, width, 3]`, RGB 0..255, and
            labels `[batch, height, width, 1]`.
        config: How to look at the images.

    Returns:
        The metrics of `Evaluator.evaluate`.

    Raises:
        UserError: if the dataset is empty or holds no pixel to score.
    """
    return Evaluator(model, config).evaluate(dataset)


def _exceeds(size, crop_size) -> bool:
    height, width = crop_size or size
    return size[0] > height or size[1] > width


def class_table(metrics: dict, info: DatasetInfo) -> str:
    """Returns the per-class table of some metrics, ready to print."""
    counts = np.array(metrics["confusion_matrix"])
    width = max(map(len, info.class_names))
    lines = [f"{'class':<{width}}  {'IoU':>7}  {'pixels':>12}"]
    for name, iou, pixels in zip(
        info.class_names, metrics["iou_per_class"], counts.sum(1), strict=True
    ):
        shown = "absent" if iou is None else f"{iou:.4f}"
        lines.append(f"{name:<{width}}  {shown:>7}  {pixels:>12,}")
    lines.append(
        f"{'mean':<{width}}  {metrics['miou']:>7.4f}  {counts.sum():>12,}"
        f"   pixel accuracy {metrics['pixel_accuracy']:.4f}, "
        f"{metrics['images']} images"
    )
    return "\n".join(lines)
