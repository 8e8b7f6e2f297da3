"""The confusion matrix and scores computed from it."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from deeplab_tf.data.info import is_scored


def count_cells(indices: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Counts how often each cell of an array of `shape` is indexed, int64.

    `indices` has one integer array, `[items]`, per axis.
    """
    cells = np.ravel_multi_index(tuple(indices), shape)
    return np.bincount(cells, minlength=math.prod(shape)).reshape(shape)


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Returns the confusion matrix of arrays, int64 `[truth, prediction]`.

    `mean_iou.count_confusions` does the same for tensors.

    Args:
        labels: Integer class ids of any shape.
        predictions: Integer class ids for the same number of pixels.
        num_classes: Number of classes; other labels are ignored.
        ignore_label: Label of pixels to ignore.
    """
    labels, predictions = np.ravel(labels), np.ravel(predictions)
    scored = is_scored(labels, num_classes, ignore_label)
    pairs = labels[scored], predictions[scored]
    return count_cells(pairs, (num_classes, num_classes))


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Returns class IoU from a confusion matrix `[truth, prediction]`.

    NaN for absent classes, those without ground truth, even if they are predicted.
    """
    return np.where(confusion.sum(1) > 0, iou_per_present_class(confusion), np.nan)


def iou_per_present_class(confusion: np.ndarray) -> np.ndarray:
    """Returns class IoU, with 0 for classes that are only predicted.

    `mean_iou` averages these. NaN for classes in neither ground truth nor prediction.
    """
    hits, truth, predicted = _count_classes(confusion)
    return _divide(hits, truth + predicted - hits)


def accuracy_per_class(confusion: np.ndarray) -> np.ndarray:
    """Returns class recall from a confusion matrix; NaN for classes without pixels."""
    hits, truth, _ = _count_classes(confusion)
    return _divide(hits, truth)


def f_score_per_class(confusion: np.ndarray) -> np.ndarray:
    """Returns each class's harmonic mean of precision and recall; NaN if absent."""
    hits, truth, predicted = _count_classes(confusion)
    return _divide(2 * hits, truth + predicted)


def frequency_weighted_iou(confusion: np.ndarray) -> float:
    """Returns the mean IoU, weighted by class frequency (1411.4038, Sec. 5)."""
    truth = confusion.sum(1)
    present = truth > 0
    return float(truth[present] @ iou_per_class(confusion)[present] / truth.sum())


def _count_classes(confusion: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the correct, ground-truth and predicted pixels of each class."""
    return np.diag(confusion), confusion.sum(1), confusion.sum(0)


def _divide(dividend: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """Divides elementwise; NaN where the divisor is 0."""
    nothing = np.full(dividend.shape, np.nan)
    return np.divide(dividend, divisor, out=nothing, where=divisor > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """Returns the mean IoU over all classes in ground truth or prediction."""
    return float(np.nanmean(iou_per_present_class(confusion)))


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Returns the fraction of scored pixels with the correct class."""
    return float(np.trace(confusion) / confusion.sum())
