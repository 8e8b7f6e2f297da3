"""Top-1 and top-5 accuracy of a classifier during its training."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from deeplab_tf.data.reader import iterate_batches
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.gallery import Gallery

_TOP = 5


@dataclasses.dataclass(frozen=True)
class ClassValidation:
    """The evaluations during the training of a classifier; see `reporter.Validation`.

    Attributes:
        dataset: Function of `(worker, num_workers)` that returns the images of a
            worker, like `load_classes`.
        protocol: Protocol for `metrics.json`.
        measures: Names of the metrics in `history.MEASURES`, the decisive one first.
    """

    dataset: Callable[[int, int], tf.data.Dataset]
    protocol: dict = dataclasses.field(default_factory=dict)
    measures: ClassVar[tuple[str, ...]] = ("top1", "top5")

    def scorer(
        self, model: keras.Model, gallery: Gallery, shows_progress: bool
    ) -> Callable:
        """Returns a function that scores the model.

        Args:
            model: A model of `build_classifier`; its weights may change in between.
            gallery: Stays empty: there are no label maps to show.
            shows_progress: Whether this process shows a progress bar.

        Returns:
            A function of a dataset and of a function that sums an array over all
            workers; it returns `images`, `top1`, `top5` and the `protocol`.
        """
        ranking = Ranking(model, shows_progress)

        def score(dataset, total):
            return ranking.score(dataset, total) | {"protocol": self.protocol}

        return score


class Ranking:
    """Counts images whose class is among the highest logits, by one compiled step.

    Args:
        model: A model of `build_classifier`; its weights may change in between.
        shows_progress: Whether this process shows a progress bar.
    """

    def __init__(self, model: keras.Model, shows_progress: bool = False):
        self._model = model
        self._shows_progress = shows_progress
        self._compiled_step = tf.function(self._step, reduce_retracing=True)

    def _step(self, images, labels):
        """Returns the numbers of images, of top-1 hits and of top-5 hits."""
        logits = self._model(images, training=False)
        # Not `in_top_k`, to which equal logits are all the highest.
        highest = tf.math.top_k(logits, min(_TOP, logits.shape[-1])).indices
        is_right = highest == tf.reshape(labels, [-1, 1])
        right = tf.reduce_sum(tf.cast(is_right, tf.int64), 0)
        count = tf.size(labels, tf.int64)
        return tf.stack([count, right[0], tf.reduce_sum(right)])

    def score(self, dataset: Iterable, total: Callable | None = None) -> dict:
        """Returns the accuracies on a dataset.

        Args:
            dataset: Batches of images `[batch, height, width, channels]`, RGB 0..255,
                and classes `[batch, 1, 1]`; of several workers, the share of this one.
            total: Returns the sum of an int64 array over all workers. None is one
                worker.

        Returns:
            `images`, their number, and `top1` and `top5`, 0..1; with fewer than five
            classes `top5` is 1.

        Raises:
            UserError: if there is no image.
        """
        counts = np.zeros(3, np.int64)
        with tqdm(desc="evaluating", unit="img", disable=not self._shows_progress) as p:
            for images, labels in iterate_batches(dataset):
                counts += self._compiled_step(images, labels).numpy()
                p.update(len(images))
        if total is not None:
            counts = np.asarray(total(counts))
        images, right, among = counts.tolist()
        if not images:
            raise UserError("there is no image to score")
        return {"images": images, "top1": right / images, "top5": among / images}
