"""Suggests crop size, class weights and steps for training on a dataset."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deeplab_tf.config import ModelConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.objects import ObjectSizes
from deeplab_tf.data.statistics import median_frequency_weights
from deeplab_tf.data.validation import SplitReport, is_evaluation_split
from deeplab_tf.errors import pluralize

# How often training should show each class; otherwise it has too few steps.
MIN_SIGHTINGS = 1000
_EPOCHS = 50
_STEPS = 1000, 30000  # smallest and largest suggestion; the papers use 30000
_BATCH = 8
# Crop sides in the papers, for PASCAL VOC and for Cityscapes.
_SIDES = 513, 769
_MIN_SIDE = 65
# Class frequencies that differ by less than this factor need no weights.
_MIN_IMBALANCE = 10
_WEIGHTS = 0.1, 10.0


class Suggestion(NamedTuple):
    """Settings for a first training run.

    Attributes:
        split: The training split.
        eval_split: The evaluation split; None if there is none.
        crop_size: Height and width, each a multiple of the output stride plus 1.
        output_stride: Output stride of the model, its default.
        batch_size: Images per step.
        steps: Training steps.
        epochs: Number of epochs in these steps.
        label_weights: Weight of each class; empty if the classes are balanced.
    """

    split: str
    eval_split: str | None
    crop_size: tuple[int, int]
    output_stride: int
    batch_size: int
    steps: int
    epochs: float
    label_weights: tuple[float, ...]

    def describe(self, info: DatasetInfo) -> list[str]:
        """Returns one line for each setting, with its reason."""
        height, width = self.crop_size
        epochs = pluralize(round(self.epochs), "epoch(s)")
        weights = (
            f"equal label weights: class frequencies differ by less than "
            f"{_MIN_IMBALANCE}:1"
        )
        if self.label_weights:
            named = zip(info.class_names, self.label_weights, strict=True)
            weights = "label weights, the square roots of median frequency weights: "
            weights += ", ".join(f"{name} {weight:g}" for name, weight in named)
        return [
            f"crop {height},{width} (height, width), each a multiple of the output "
            f"stride {self.output_stride} plus 1",
            f"{self.steps:,} steps of {self.batch_size} images: {epochs}",
            weights,
        ]


def suggest_training(
    reports: Sequence[SplitReport], info: DatasetInfo
) -> Suggestion | None:
    """Returns settings for a first run; None if no training split is readable."""
    report = choose_split(reports, False)
    if report is None:
        return None
    held_out = choose_split(reports, True)
    steps = _suggest_steps(report, info)
    stride = ModelConfig().output_stride
    return Suggestion(
        report.split,
        held_out and held_out.split,
        _suggest_crop(report, stride),
        stride,
        _BATCH,
        steps,
        steps * _BATCH / report.images,
        _suggest_weights(report, info),
    )


def choose_split(
    reports: Sequence[SplitReport], is_evaluation: bool
) -> SplitReport | None:
    """Returns the split to train or evaluate on; None if none is readable."""
    found = [
        r for r in reports if r.sizes and is_evaluation_split(r.split) == is_evaluation
    ]
    found.sort(key=lambda r: (r.split not in ("train", "val"), "trainval" in r.split))
    return found[0] if found else None


def _suggest_crop(report: SplitReport, stride: int) -> tuple[int, int]:
    """Returns a crop size that fits the median image, limited by the papers' crops."""
    sizes = np.array(list(report.sizes.elements()))
    median = np.median(sizes, 0)
    if (sizes != sizes[0]).any():
        median[:] = median.max()  # a square fits both wide and tall images
    objects: ObjectSizes = report.objects
    limit, large = _SIDES
    exceeds = objects.extents[:, limit + 1 :].sum() > objects.counts.sum() / 2
    limit = large if exceeds else limit
    height, width = (
        max(_MIN_SIDE, min(limit, math.ceil((side - 1) / stride) * stride + 1))
        for side in median
    )
    return height, width


def _suggest_steps(report: SplitReport, info: DatasetInfo) -> int:
    """Returns the steps of `_EPOCHS` epochs; more if few images contain a class."""
    classes = [i for i in range(info.num_classes) if i != info.ignore_label]
    rarest = min(
        (n for n in report.images_with[classes].tolist() if n), default=report.images
    )
    epochs = max(_EPOCHS, MIN_SIGHTINGS / rarest)
    steps = 500 * math.ceil(epochs * report.images / _BATCH / 500)
    return int(np.clip(steps, *_STEPS))


def _suggest_weights(report: SplitReport, info: DatasetInfo) -> tuple[float, ...]:
    """Returns the square roots of the median frequency weights, a moderate choice."""
    pixels = report.values[: info.num_classes].copy()
    if info.ignore_label < info.num_classes:
        pixels[info.ignore_label] = 0
    weights = np.array(
        median_frequency_weights(pixels, report.image_pixels[: info.num_classes])
    )
    if weights.max() < _MIN_IMBALANCE * weights.min():
        return ()
    return tuple(np.clip(np.sqrt(weights), *_WEIGHTS).round(2).tolist())
