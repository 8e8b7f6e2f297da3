"""Detects predictions that have collapsed to a single class."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Predictions count as collapsed if one class has this fraction of them, unless it has
# this fraction of the ground truth.
_COLLAPSED, _ONE_SIDED = 0.999, 0.95


def count_classes(
    logits: tf.Tensor, labels: tf.Tensor, ignore_label: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Counts valid pixels by prediction, by ground truth and where both agree.

    Takes logits `[batch, height, width, num_classes]` and int32 labels `[batch, height,
    width]`; returns three float32 vectors `[num_classes]`.
    """
    classes = logits.shape[-1]
    labels = tf.where(labels == ignore_label, -1, labels)
    truth, predicted = (
        tf.reshape(tf.one_hot(ids, classes), (-1, classes))
        for ids in (labels, tf.argmax(logits, -1))
    )
    confusion = tf.matmul(truth, predicted, transpose_a=True)
    return (
        tf.reduce_sum(confusion, 0),
        tf.reduce_sum(confusion, 1),
        tf.linalg.diag_part(confusion),
    )


def find_collapse(
    predicted: np.ndarray, truth: np.ndarray, class_names: Sequence[str]
) -> str | None:
    """Returns a warning if nearly all predictions are one class, else None.

    `predicted` and `truth` are pixel counts `[num_classes]`. A class that is nearly all
    of the ground truth may be predicted everywhere.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if not predicted.sum() or not truth.sum():
        return None
    largest = int(np.argmax(predicted))
    share = predicted[largest] / predicted.sum()
    true_share = truth[largest] / truth.sum()
    if share < _COLLAPSED or true_share >= _ONE_SIDED:
        return None
    return (
        f"{100 * share:.4g}% of the predictions are '{class_names[largest]}', "
        f"which is {100 * true_share:.2g}% of the ground truth: the predictions have "
        "collapsed; check the learning rate, the labels and the class weights"
    )
