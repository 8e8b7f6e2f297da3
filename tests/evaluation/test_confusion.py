"""The confusion matrix and its scores, worked by hand."""

import keras
import numpy as np
import pytest

from deeplab_tf.evaluation.confusion import (
    MeanIoU,
    accuracy_per_class,
    confusion_matrix,
    f_score_per_class,
    frequency_weighted_iou,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
)
from deeplab_tf.training.losses import SegmentationLoss

LABELS = [0, 0, 1, 1, 2, 255]
PREDICTIONS = [0, 1, 1, 1, 0, 2]
# Rows are the truth; the last pixel is ignored.
COUNTS = [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_counts_by_truth_and_prediction():
    counts = np.array(confusion_matrix(LABELS, PREDICTIONS, 3, 255))
    np.testing.assert_array_equal(counts, COUNTS)
    assert counts.dtype == np.int64


def test_scores_of_the_counts():
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


def test_a_class_of_neither_truth_nor_prediction_is_left_out():
    counts = np.array(confusion_matrix(LABELS, PREDICTIONS, 4, 255))
    iou = iou_per_class(counts)
    assert np.isnan(iou[3]) and not np.isnan(iou[:3]).any()
    assert mean_iou(counts) == pytest.approx(1 / 3)


def test_a_class_that_is_only_predicted_counts_as_0():
    counts = np.array(confusion_matrix([0, 0], [0, 1], 2, 255))
    np.testing.assert_allclose(iou_per_class(counts), [1 / 2, 0])
    assert mean_iou(counts) == 1 / 4


def test_the_ignored_label_may_be_one_of_the_classes():
    # ADE20K ignores 0; predicting it on a scored pixel is still a mistake.
    counts = confusion_matrix([0, 1, 1, 2], [1, 1, 0, 2], 3, 0)
    np.testing.assert_array_equal(counts, [[0, 0, 0], [1, 1, 0], [0, 0, 1]])


def test_labels_beyond_the_classes_count_for_nothing():
    counts = confusion_matrix([0, 3, 254, -1], [0, 1, 2, 0], 3, 255)
    np.testing.assert_array_equal(counts, np.diag([1, 0, 0]))


def test_shapes_do_not_matter():
    labels = np.array(LABELS, np.uint8).reshape(1, 2, 3, 1)
    predictions = np.array(PREDICTIONS, np.int32).reshape(1, 2, 3)
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 3, 255), COUNTS)


@pytest.mark.parametrize("large", [2**24, 2**31, 2**53])
def test_one_pixel_more_is_one_count_more(large):
    metric = MeanIoU(2)
    metric.counts.assign(np.full((2, 2), large))
    metric.update_labels([1, 1, 0], [1, 0, 1])
    expected = np.array([[0, 1], [1, 1]]) + large
    np.testing.assert_array_equal(metric.counts.numpy(), expected)
    assert metric.counts.numpy().dtype == np.int64


def test_the_metric_is_that_of_all_pixels_and_not_a_mean_over_batches():
    random = np.random.RandomState(0)
    metric, total = MeanIoU(5, ignore_label=4), np.zeros((5, 5), int)
    for size in (3, 40, 200):
        labels = random.randint(0, 5, (1, size, 7, 1))
        logits = random.standard_normal((1, size, 7, 5)).astype(np.float32)
        metric.update_state(labels, logits)
        for pair in zip(labels.flatten(), logits.argmax(-1).flatten(), strict=True):
            total[pair] += pair[0] != 4
    np.testing.assert_array_equal(metric.counts.numpy(), total)
    assert float(metric.result()) == pytest.approx(mean_iou(total), rel=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0


def test_the_metric_works_in_compile(color_model):
    model = keras.Model(color_model.input, color_model.output)
    model.compile(loss=SegmentationLoss(), metrics=[MeanIoU(3)])
    colors = 255 * np.eye(3, dtype=np.float32)
    labels = np.array(LABELS).reshape(2, 3, 1, 1)
    images = colors[np.array(PREDICTIONS)].reshape(2, 3, 1, 3)
    scores = model.evaluate(images, labels, batch_size=1, verbose=0, return_dict=True)
    assert scores["miou"] == pytest.approx(1 / 3)


def test_the_metric_is_made_anew_from_its_config():
    metric = MeanIoU(7, ignore_label=3, name="score")
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(metric)
    )
    assert (again.num_classes, again.ignore_label, again.name) == (7, 3, "score")


def test_sample_weights_are_refused():
    with pytest.raises(ValueError, match="use ignore_label"):
        MeanIoU(2).update_state([0], [[1.0, 0.0]], sample_weight=[1.0])
