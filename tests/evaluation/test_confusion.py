"""The confusion matrix and its scores, computed by hand."""

import numpy as np
import pytest

from deeplab_tf.evaluation.confusion import (
    accuracy_per_class,
    confusion_matrix,
    f_score_per_class,
    frequency_weighted_iou,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
)
from deeplab_tf.evaluation.mean_iou import count_confusions

LABELS = [0, 0, 1, 1, 2, 255]
PREDICTIONS = [0, 1, 1, 1, 0, 2]
# Rows are the truth; the last pixel is ignored.
COUNTS = [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


@pytest.fixture(params=[confusion_matrix, count_confusions])
def count(request):
    """Both counting functions: for arrays, and for tensors on any backend."""
    return lambda labels, *args: np.array(request.param(np.array(labels), *args))


def test_pixels_are_counted_by_truth_and_prediction(count):
    counts = count(LABELS, PREDICTIONS, 3, 255)
    np.testing.assert_array_equal(counts, COUNTS)
    assert counts.dtype == np.int64


def test_scores_match_hand_computed_values():
    # Union = truth + prediction - hits: 2 + 2 - 1, 2 + 3 - 2, 1 + 0 - 0.
    counts = np.array(COUNTS)
    np.testing.assert_allclose(iou_per_class(counts), [1 / 3, 2 / 3, 0])
    assert mean_iou(counts) == pytest.approx(1 / 3)
    assert pixel_accuracy(counts) == pytest.approx(3 / 5)
    np.testing.assert_allclose(accuracy_per_class(counts), [1 / 2, 1, 0])
    # 2 hits / (truth + prediction): 2 / 4, 4 / 5, 0 / 1.
    np.testing.assert_allclose(f_score_per_class(counts), [1 / 2, 4 / 5, 0])
    weighted = (2 * 1 / 3 + 2 * 2 / 3 + 1 * 0) / 5
    assert frequency_weighted_iou(counts) == pytest.approx(weighted)


def test_classes_without_pixels_have_no_accuracy_and_no_weight():
    # The second is only predicted, the third absent.
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(accuracy_per_class(counts), [0.75, np.nan, np.nan])
    np.testing.assert_allclose(f_score_per_class(counts), [6 / 7, 0, np.nan])
    assert frequency_weighted_iou(counts) == 0.75


def test_absent_class_is_excluded(count):
    counts = count(LABELS, PREDICTIONS, 4, 255)
    iou = iou_per_class(counts)
    assert np.isnan(iou[3]) and not np.isnan(iou[:3]).any()
    assert mean_iou(counts) == pytest.approx(1 / 3)


def test_class_that_is_only_predicted_is_absent_but_lowers_the_mean(count):
    # The official eval.py: NaN where true positives + false negatives are 0, while
    # tf.metrics.mean_iou averages over classes with a union, here (1/2 + 0) / 2.
    counts = count([0, 0], [0, 1], 3, 255)
    np.testing.assert_array_equal(iou_per_class(counts), [1 / 2, np.nan, np.nan])
    assert mean_iou(counts) == 1 / 4


def test_ignored_label_may_be_a_class(count):
    # ADE20K ignores 0; predicting it on a scored pixel is still a mistake.
    counts = count([0, 1, 1, 2], [1, 1, 0, 2], 3, 0)
    np.testing.assert_array_equal(counts, [[0, 0, 0], [1, 1, 0], [0, 0, 1]])


def test_labels_out_of_range_are_not_counted(count):
    counts = count([0, 3, 254, -1], [0, 1, 2, 0], 3, 255)
    np.testing.assert_array_equal(counts, np.diag([1, 0, 0]))


def test_labels_may_have_a_channel_axis(count):
    labels = np.array(LABELS, np.uint8).reshape(1, 2, 3, 1)
    predictions = np.array(PREDICTIONS, np.int32).reshape(1, 2, 3)
    np.testing.assert_array_equal(count(labels, predictions, 3, 255), COUNTS)
