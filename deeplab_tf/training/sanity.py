"""Checks that model, labels and loss fit together, before a long training.

The model has to overfit a single batch. Labels that no model can follow, a loss that
counts the wrong pixels or a model that is cut off from its input fail here. And the
borders of the labels have to lie where the images change: a network can also overfit
the labels of other images, but their borders lie anywhere.
"""

import dataclasses

import cv2
import keras
import numpy as np
import tensorflow as tf

from deeplab_tf.config import TrainConfig
from deeplab_tf.training.trainer import Trainer

_STEPS, _STEPS_AT_ONCE = 200, 10
# Of the batch: reached by every backbone within some dozen steps, while labels
# scattered at random stay below a mean IoU of 0.3.
_MIOU, _ACCURACY = 0.5, 0.9
# Crops whose borders are examined, and standard errors that are significant.
_CROPS, _SIGNIFICANT = 64, 4.0
_FEWEST_CROPS, _FEWEST_PIXELS = 10, 20


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        fits: Whether everything fits together.
        lines: The reasons, a sentence each.
    """

    fits: bool
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(("sanity: yes" if self.fits else "sanity: no", *self.lines))


def check(model: keras.Model, config: TrainConfig, dataset: tf.data.Dataset) -> Verdict:
    """Checks that model, labels and loss fit together; trains the model.

    Args:
        model: A model of `build_model`, with the weights that training begins with.
        config: How it is to be trained. Loss and batch normalisation are taken from
            it; the optimiser is Adam, so that no learning rate is under test.
        dataset: Training batches.
    """
    overfit = _overfit(model, config, dataset)
    borders = check_borders(dataset, config.ignore_label)
    return Verdict(overfit.fits and borders.fits, overfit.lines + borders.lines)


def _overfit(model, config: TrainConfig, dataset) -> Verdict:
    """Checks that a model can overfit the first batch."""
    adam = {"optimizer": "adam", "adam_learning_rate": 1e-3, "weight_decay": 0.0}
    alone = {"train_logdir": None, "training_number_of_steps": _STEPS, "ema_decay": 0.0}
    trainer = Trainer(model, dataclasses.replace(config, **adam, **alone))
    batch = trainer.iterate(dataset.take(1).cache().repeat())
    for _ in range(0, _STEPS, _STEPS_AT_ONCE):
        rows, counts = trainer.train_steps(batch, _STEPS_AT_ONCE)
        miou, accuracy = _scores(counts)
        fits = miou >= _MIOU and accuracy >= _ACCURACY
        if fits or len(rows) < _STEPS_AT_ONCE:
            break
    line = (
        f"one batch: loss {rows[-1, 0]:.3f}, mIoU {miou:.3f} and pixel accuracy "
        f"{accuracy:.3f} after {trainer.step} steps"
    )
    if not fits:
        line += (
            f"; {_MIOU} and {_ACCURACY} were expected: the labels, the loss or the "
            "model do not let it be learned by heart"
        )
    return Verdict(fits, (line,))


def _scores(counts: np.ndarray) -> tuple[float, float]:
    """Returns mean IoU and pixel accuracy of predicted, true and right pixels."""
    predicted, truth, right = counts
    union = predicted + truth - right
    present = union > 0
    if not truth.sum():
        return 0.0, 0.0
    return float(np.mean(right[present] / union[present])), right.sum() / truth.sum()


def check_borders(dataset: tf.data.Dataset, ignore_label: int) -> Verdict:
    """Checks that images change where their labels do.

    The strength of an image's edges is compared along the borders of its own label
    and along those of other images' labels.

    Args:
        dataset: Batches of images and labels of one size.
        ignore_label: Label of pixels that are not scored.
    """
    images, labels = _crops(dataset)
    own, others = [], []
    strengths = np.stack([_edge_ranks(image) for image in images])
    for i, label in enumerate(labels):
        border = _border(label)
        if border.sum() < _FEWEST_PIXELS or (label == ignore_label).all():
            continue
        along = strengths[:, border].mean(1)
        own.append(along[i])
        others.append(np.delete(along, i).mean())
    if len(own) < _FEWEST_CROPS:
        line = f"borders: only {len(own)} of {len(labels)} crops have some; no verdict"
        return Verdict(True, (line,))
    difference = np.subtract(own, others)
    error = difference.std(ddof=1) / np.sqrt(len(own))
    fits = bool(difference.mean() > _SIGNIFICANT * error)
    line = (
        f"borders: an image changes along those of its own label more than "
        f"at {np.mean(own):.0%} of its pixels, along those of others than at "
        f"{np.mean(others):.0%} ({len(own)} crops)"
    )
    if not fits:
        line += "; no more than chance: the labels seem to be of other images"
    return Verdict(fits, (line,))


def _crops(dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images `[n, h, w, channels]` and labels `[n, h, w]`."""
    images, labels = [], []
    for image_batch, label_batch in dataset:
        images += list(image_batch.numpy())
        labels += list(label_batch.numpy()[..., 0])
        if len(images) >= _CROPS:
            break
    return np.stack(images[:_CROPS]), np.stack(labels[:_CROPS])


def _border(label: np.ndarray) -> np.ndarray:
    """Returns the pixels whose left or upper neighbour has another label."""
    border = np.zeros(label.shape, bool)
    border[1:] |= label[1:] != label[:-1]
    border[:, 1:] |= label[:, 1:] != label[:, :-1]
    return border


def _edge_ranks(image: np.ndarray) -> np.ndarray:
    """Returns, per pixel, the share of the image that changes less around there."""
    grey = image.mean(-1)
    change = np.abs(np.diff(grey, axis=0, prepend=grey[:1]))
    change += np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    # A label is seldom right to the pixel.
    change = cv2.dilate(change, np.ones((5, 5), np.uint8)).ravel()
    ranks = np.empty(change.size, np.float32)
    ranks[np.argsort(change)] = np.arange(change.size) / change.size
    return ranks.reshape(grey.shape)
