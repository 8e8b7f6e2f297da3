"""The confusion matrix, and every score that is a function of it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def is_scored(labels: Any, num_classes: int, ignore_label: int) -> Any:
    """Returns which labels count, booleans: those of a class that is not ignored."""
    return (labels >= 0) & (labels < num_classes) & (labels != ignore_label)


def count_cells(indices: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Counts how often each cell of an array is named, int64 `shape`.

    Args:
        indices: For each axis of the array the index of each item, integers `[items]`.
        shape: Shape of the array.
    """
    cells = np.ravel_multi_index(tuple(indices), shape)
    return np.bincount(cells, minlength=math.prod(shape)).reshape(shape)


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Returns int64 counts `[truth, prediction]` of the pixels that count.

    `mean_iou.count_confusions` is the same for tensors.

    Args:
        labels: Integer class ids of any shape.
        predictions: Integer class ids of the same number of pixels.
        num_classes: Number of classes; labels outside count for nothing.
        ignore_label: Label of pixels that count for nothing.
    """
    labels, predictions = np.ravel(labels), np.ravel(predictions)
    scored = is_scored(labels, num_classes, ignore_label)
    pairs = labels[scored], predictions[scored]
    return count_cells(pairs, (num_classes, num_classes))


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Returns intersection over union per class; NaN where a class is absent.

    A class is absent if neither the truth nor the prediction has it.

    Args:
        confusion: Counts `[truth, prediction]`.
    """
    hits, truth, predicted = _sums(confusion)
    return _ratio(hits, truth + predicted - hits)


def accuracy_per_class(confusion: np.ndarray) -> np.ndarray:
    """Returns the share of each class's pixels that were found; NaN without any.

    Args:
        confusion: Counts `[truth, prediction]`.
    """
    hits, truth, _ = _sums(confusion)
    return _ratio(hits, truth)


def f_score_per_class(confusion: np.ndarray) -> np.ndarray:
    """Returns the harmonic mean of precision and recall; NaN where a class is absent.

    Args:
        confusion: Counts `[truth, prediction]`.
    """
    hits, truth, predicted = _sums(confusion)
    return _ratio(2 * hits, truth + predicted)


def frequency_weighted_iou(confusion: np.ndarray) -> float:
    """Returns the mean IoU, each class weighing as much as it has pixels.

    Long et al., 1411.4038, Sec. 5.

    Args:
        confusion: Counts `[truth, prediction]`, at least one.
    """
    truth = confusion.sum(1)
    present = truth > 0
    return float(truth[present] @ iou_per_class(confusion)[present] / truth.sum())


def _sums(confusion: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns each class's hits and its pixels of the truth and of the prediction."""
    return np.diag(confusion), confusion.sum(1), confusion.sum(0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns quotients; NaN where there is nothing to divide by."""
    nothing = np.full(part.shape, np.nan)
    return np.divide(part, whole, out=nothing, where=whole > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """Returns the mean IoU over the classes that are not absent."""
    return float(np.nanmean(iou_per_class(confusion)))


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Returns the share of scored pixels whose class is right."""
    return float(np.trace(confusion) / confusion.sum())
