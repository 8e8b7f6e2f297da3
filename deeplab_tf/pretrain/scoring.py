"""Measures the top-1 and top-5 accuracy of a classifier during training."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf.data.reader import count_batches, iterate_batches
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.progress import ProgressBar

_TOP = 5


@dataclasses.dataclass(frozen=True)
class ClassValidation:
    """Settings for scoring a classifier during training; see `reporter.Validation`."""

    dataset: Callable[[int, int], tf.data.Dataset]
    protocol: dict = dataclasses.field(default_factory=dict)
    measures: ClassVar[tuple[str, ...]] = ("top1", "top5")

    def make_scorer(
        self, model: keras.Model, gallery: Gallery, shows_progress: bool
    ) -> Callable:
        """Returns a function from a dataset and `sum_over_workers` to metrics.

        These are `images`, `top1`, `top5` and `protocol`. `gallery` stays empty,
        because there are no label maps to show.
        """
        accuracy = TopAccuracy(model, shows_progress)

        def score(dataset, sum_over_workers):
            metrics = accuracy.evaluate(dataset, sum_over_workers)
            return metrics | {"protocol": self.protocol}

        return score


class TopAccuracy:
    """Counts images whose class is among the highest logits, with one compiled step.

    The model's weights may change between evaluations.
    """

    def __init__(self, model: keras.Model, shows_progress: bool = False):
        self._model = model
        self._shows_progress = shows_progress
        self._compiled_step = tf.function(
            self._count_hits, reduce_retracing=True, autograph=False
        )

    def _count_hits(self, images, labels):
        """Returns the number of images, of top-1 hits and of top-5 hits."""
        logits = self._model(images, training=False)
        # Not `in_top_k`, which counts all classes with equal logits as hits.
        highest = tf.math.top_k(logits, min(_TOP, logits.shape[-1])).indices
        is_right = highest == tf.reshape(labels, [-1, 1])
        right = tf.reduce_sum(tf.cast(is_right, tf.int64), 0)
        count = tf.size(labels, tf.int64)
        return tf.stack([count, right[0], tf.reduce_sum(right)])

    def evaluate(
        self, dataset: Iterable, sum_over_workers: Callable | None = None
    ) -> dict:
        """Returns `images`, `top1` and `top5` (0..1; 1 with fewer than five classes).

        Args:
            dataset: Batches of images `[batch, height, width, channels]`, RGB 0..255,
                and classes `[batch, 1, 1]`, for this worker.
            sum_over_workers: Sums an int64 array over all workers; None for one worker.

        Raises:
            UserError: if there are no images.
        """
        counts = np.zeros(3, np.int64)
        hidden = not self._shows_progress
        bar = {"total": count_batches(dataset), "unit": "batch", "disable": hidden}
        with ProgressBar(desc="evaluating", **bar) as progress:
            for images, labels in iterate_batches(dataset):
                counts += self._compiled_step(images, labels).numpy()
                progress.update()
        if sum_over_workers is not None:
            counts = np.asarray(sum_over_workers(counts))
        images, top1, top5 = counts.tolist()
        if not images:
            raise UserError("the evaluation split contains no images")
        return {"images": images, "top1": top1 / images, "top5": top5 / images}
