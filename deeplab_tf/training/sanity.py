"""Checks that model, labels and loss fit together before a long training run.

The model must overfit a single batch, which fails if labels have no pattern, the loss
is over the wrong pixels, or the output does not depend on the input. Label borders must
lie on image edges, because a network can also overfit labels of other images.
"""

import dataclasses

import cv2
import keras
import numpy as np
import tensorflow as tf

from deeplab_tf.config import TrainConfig
from deeplab_tf.errors import pluralize
from deeplab_tf.training.trainer import Trainer

_STEPS, _STEPS_AT_ONCE = 200, 10
# Every backbone reaches these scores on one batch within a few dozen steps; with random
# labels, the mean IoU stays below 0.3.
_MIOU, _ACCURACY = 0.5, 0.9
# Number of crops, and of standard errors that make a difference significant.
_CROPS, _SIGNIFICANT = 64, 4.0
_FEWEST_CROPS, _FEWEST_PIXELS = 10, 20


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of the check, and its reasons, one sentence each."""

    fits: bool
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(("sanity: yes" if self.fits else "sanity: no", *self.lines))


def check(model: keras.Model, config: TrainConfig, dataset: tf.data.Dataset) -> Verdict:
    """Checks that model, labels and loss fit together; trains the model.

    Uses the loss and batch normalisation of `config`, but the optimiser Adam, so that
    the learning rate is not tested. The model starts from its current weights.
    """
    overfit = _overfit(model, config, dataset)
    borders = check_borders(dataset, config.ignore_label)
    return Verdict(overfit.fits and borders.fits, overfit.lines + borders.lines)


def _overfit(model, config: TrainConfig, dataset) -> Verdict:
    """Trains on one batch; the verdict is positive if the scores become high."""
    config = dataclasses.replace(
        config,
        optimizer="adam",
        adam_learning_rate=1e-3,
        weight_decay=0.0,
        train_logdir=None,
        training_number_of_steps=_STEPS,
        ema_decay=0.0,
    )
    trainer = Trainer(model, config)
    batch = trainer.iterate(dataset.take(1).cache().repeat())
    for _ in range(0, _STEPS, _STEPS_AT_ONCE):
        rows, counts = trainer.train_steps(batch, _STEPS_AT_ONCE)
        miou, accuracy = _compute_scores(counts)
        fits = miou >= _MIOU and accuracy >= _ACCURACY
        if fits or len(rows) < _STEPS_AT_ONCE:
            break
    line = (
        f"one batch: loss {rows[-1, 0]:.3f}, mIoU {miou:.3f} and pixel accuracy "
        f"{accuracy:.3f} after {pluralize(trainer.step, 'step(s)')}"
    )
    if not fits:
        line += (
            f"; expected {_MIOU} and {_ACCURACY}: the model cannot overfit one batch, "
            "so check the labels, the loss and the model"
        )
    return Verdict(fits, (line,))


def _compute_scores(counts: np.ndarray) -> tuple[float, float]:
    """Returns mean IoU and pixel accuracy from the counts of `count_classes`."""
    predicted, truth, right = counts
    union = predicted + truth - right
    present = union > 0
    if not truth.sum():
        return 0.0, 0.0
    return float(np.mean(right[present] / union[present])), right.sum() / truth.sum()


def check_borders(dataset: tf.data.Dataset, ignore_label: int) -> Verdict:
    """Checks that images change where their labels do.

    Compares the strength of image edges along the label borders of the image and those
    of other images. The dataset has images and labels of one size.
    """
    images, labels = _read_crops(dataset)
    own, others = [], []
    strengths = np.stack([_rank_edges(image) for image in images])
    for i, label in enumerate(labels):
        border = _find_borders(label)
        if border.sum() < _FEWEST_PIXELS or (label == ignore_label).all():
            continue
        along = strengths[:, border].mean(1)
        own.append(along[i])
        others.append(np.delete(along, i).mean())
    if len(own) < _FEWEST_CROPS:
        line = f"borders: not checked, only {len(own)} of {len(labels)} crops have any"
        return Verdict(True, (line,))
    difference = np.subtract(own, others)
    error = difference.std(ddof=1) / np.sqrt(len(own))
    fits = bool(difference.mean() > _SIGNIFICANT * error)
    line = (
        f"borders: along the borders of its own label, an image has stronger edges "
        f"than at {np.mean(own):.0%} of its pixels; along those of other labels, than "
        f"at {np.mean(others):.0%} ({len(own)} crops)"
    )
    if not fits:
        line += "; no better than random: the labels seem to belong to other images"
    return Verdict(fits, (line,))


def _read_crops(dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images `[n, h, w, channels]` and labels `[n, h, w]`."""
    images, labels = [], []
    for image_batch, label_batch in dataset:
        images += list(image_batch.numpy())
        labels += list(label_batch.numpy()[..., 0])
        if len(images) >= _CROPS:
            break
    return np.stack(images[:_CROPS]), np.stack(labels[:_CROPS])


def _find_borders(label: np.ndarray) -> np.ndarray:
    """Returns the pixels whose left or upper neighbour has a different label."""
    border = np.zeros(label.shape, bool)
    border[1:] |= label[1:] != label[:-1]
    border[:, 1:] |= label[:, 1:] != label[:, :-1]
    return border


def _rank_edges(image: np.ndarray) -> np.ndarray:
    """Returns, for each pixel, the fraction of pixels with weaker edges nearby."""
    grey = image.mean(-1)
    change = np.abs(np.diff(grey, axis=0, prepend=grey[:1]))
    change += np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    # Labels are rarely accurate to the pixel.
    change = cv2.dilate(change, np.ones((5, 5), np.uint8)).ravel()
    ranks = np.empty(change.size, np.float32)
    ranks[np.argsort(change)] = np.arange(change.size) / change.size
    return ranks.reshape(grey.shape)
