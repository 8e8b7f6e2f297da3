"""A model over a whole split: the metrics of `metrics.json`."""

import dataclasses

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
        `images`, `miou`, `pixel_accuracy`, `iou_per_class` (None for a class
        that neither truth nor prediction has), `confusion_matrix` (rows are the
        truth) and the `protocol`.

    Raises:
        UserError: if the dataset is empty or holds no pixel to score.
    """
    num_classes = model.model_config.num_classes
    predictor = Predictor(
        model, config.eval_scales, config.add_flipped_images, config.eval_crop_size
    )
    metric = confusion.MeanIoU(num_classes, config.ignore_label)

    @tf.function(reduce_retracing=True)
    def score(images, labels):
        metric.update_labels(labels, predictor.labels(images))

    images_seen, enlarged = 0, 0
    with tqdm(desc="evaluating", unit="img") as progress:
        for images, labels in batches(dataset):
            score(images, labels)
            images_seen += len(images)
            progress.update(len(images))
            enlarged += len(images) * _exceeds(images.shape[1:3], config.eval_crop_size)
    if enlarged:
        print(f"note: {enlarged} images exceed eval_crop_size and enlarged it")
    counts = keras.ops.convert_to_numpy(metric.counts)
    if counts.sum() == 0:
        raise UserError(
            f"{images_seen} images hold no pixel with a label in 0..{num_classes - 1}"
        )
    per_class = confusion.iou_per_class(counts)
    return {
        "images": images_seen,
        "miou": confusion.mean_iou(counts),
        "pixel_accuracy": confusion.pixel_accuracy(counts),
        "iou_per_class": [None if np.isnan(iou) else float(iou) for iou in per_class],
        "confusion_matrix": counts.tolist(),
        "protocol": {
            "output_stride": model.model_config.output_stride,
            "atrous_rates": list(model.model_config.context.rates),
            **dataclasses.asdict(config),
        },
    }


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
