"""The mean IoU as a Keras metric."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.confusion import iou_per_class, mean_iou
from deeplab_tf.evaluation.mean_iou import MeanIoU
from deeplab_tf.training.losses import SegmentationLoss

LABELS = [0, 0, 1, 1, 2, 255]
PREDICTIONS = [0, 1, 1, 1, 0, 2]


@pytest.mark.parametrize("large", [2**24, 2**31, 2**53])
def test_large_counts_are_exact(large):
    metric = MeanIoU(2)
    metric.counts.assign(np.full((2, 2), large))
    metric.update_state([[[1, 1, 0]]], [[[1, 0, 1]]])
    expected = np.array([[0, 1], [1, 1]]) + large
    np.testing.assert_array_equal(metric.counts.numpy(), expected)
    assert metric.counts.numpy().dtype == np.int64


def test_result_pools_pixels_instead_of_averaging_batches():
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


def test_metric_works_in_compile(color_model):
    model = keras.Model(color_model.input, color_model.output)
    model.compile(loss=SegmentationLoss(), metrics=[MeanIoU(3)], jit_compile=False)
    colors = 255 * np.eye(3, dtype=np.float32)
    labels = np.array(LABELS).reshape(2, 3, 1, 1)
    images = colors[np.array(PREDICTIONS)].reshape(2, 3, 1, 3)
    scores = model.evaluate(images, labels, batch_size=1, verbose=0, return_dict=True)
    assert scores["miou"] == pytest.approx(1 / 3)


def test_metric_is_rebuilt_from_its_config():
    metric = MeanIoU(7, ignore_label=3, target_class_ids=[1, 4], name="score")
    config = json.loads(json.dumps(keras.metrics.serialize(metric)))
    again = keras.metrics.deserialize(config)
    assert isinstance(again, MeanIoU)
    assert again.get_config() == metric.get_config()
    assert (again.num_classes, again.ignore_label, again.name) == (7, 3, "score")
    assert again.target_class_ids == (1, 4)


def random_pixels(classes=4, shape=(2, 6, 7)):
    """Returns labels with 255, scores, and weights of the pixels."""
    random = np.random.RandomState(0)
    labels = random.choice([*range(classes), 255], shape)
    scores = random.uniform(size=(*shape, classes)).astype(np.float32)
    return labels, scores, random.uniform(0.1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("targets", [None, [2], [0, 3]])
def test_metric_equals_keras_mean_iou(is_weighted, targets):
    labels, scores, weights = random_pixels()
    weights = weights if is_weighted else None
    ids = scores.argmax(-1)
    keras_metric = keras.metrics.IoU(
        4, targets or range(4), ignore_class=255, dtype="float32"
    )
    keras_metric.update_state(labels, ids, weights)
    expected = float(keras_metric.result())
    one_hot = np.eye(256)[labels][..., :4]
    for truth in (labels, labels[..., None], one_hot):
        for prediction in (scores, ids, ids[..., None]):
            metric = MeanIoU(4, target_class_ids=targets)
            metric.update_state(truth, prediction, weights)
            assert float(metric.result()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 6, 7, 1), (2, 1, 1), (2,), (2, 1), ()])
def test_sample_weights_are_broadcast(shape):
    labels, scores, weights = random_pixels()
    weights = weights[:, :1, :1] if len(shape) < 4 else weights
    weights = weights if shape else np.float32(2.5)
    expected, metric = MeanIoU(4), MeanIoU(4)
    expected.update_state(labels, scores, np.broadcast_to(weights, (2, 6, 7)))
    metric.update_state(labels, scores, np.reshape(weights, shape))
    np.testing.assert_array_equal(metric.weighted_counts, expected.weighted_counts)
    assert float(np.sum(metric.weighted_counts)) > 0


def test_weighted_and_exact_counts_add_up():
    labels, scores, _ = random_pixels()
    exact, mixed = MeanIoU(4), MeanIoU(4)
    exact.update_state(labels, scores)
    mixed.update_state(labels[:1], scores[:1])
    mixed.update_state(labels[1:], scores[1:], 1.0)
    assert np.sum(exact.weighted_counts) == 0 != np.sum(mixed.weighted_counts)
    np.testing.assert_array_equal(mixed.counts + mixed.weighted_counts, exact.counts)
    np.testing.assert_array_equal(mixed.iou_per_class(), exact.iou_per_class())


def test_iou_per_class():
    # See test_confusion.py; class 3 is absent.
    metric = MeanIoU(4)
    metric.update_state([[LABELS]], [[PREDICTIONS]])
    iou = np.array(metric.iou_per_class())
    assert iou.dtype == np.float32
    np.testing.assert_allclose(iou, [1 / 3, 2 / 3, 0, np.nan], rtol=1e-6)
    np.testing.assert_allclose(iou, iou_per_class(np.array(metric.counts)), rtol=1e-6)
    assert float(metric.result()) == pytest.approx(1 / 3)


def test_class_that_is_only_predicted_has_no_iou_but_lowers_the_mean():
    metric = MeanIoU(3)
    metric.update_state([[[0, 0]]], [[[0, 1]]])
    np.testing.assert_array_equal(metric.iou_per_class(), [1 / 2, np.nan, np.nan])
    assert float(metric.result()) == 1 / 4


@pytest.mark.parametrize(("targets", "mean"), [([1], 2 / 3), ([1, 3], 2 / 3), ([3], 0)])
def test_absent_targets_are_left_out(targets, mean):
    metric = MeanIoU(4, target_class_ids=targets)
    metric.update_state([[LABELS]], [[PREDICTIONS]])
    assert float(metric.result()) == pytest.approx(mean)


@pytest.mark.parametrize("weight", [None, 0.5])
def test_invalid_pixel_is_an_error_or_nan(weight):
    metric = MeanIoU(2)
    compiled = tf.function(metric.update_state)
    # XLA has no assertions.
    compiled_by_xla = tf.function(metric.update_state, jit_compile=True)
    for label, prediction, name in ((5, 0, "labels"), (0, 5, "predictions")):
        pair = tf.constant([[[0, label]]]), tf.constant([[[0, prediction]]])
        with pytest.raises(UserError, match=f"{name} contain 5"):
            metric.update_state(*pair, weight)
        message = rf"{name} contain\] \[5\]"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            compiled(*pair, weight)
        metric.reset_state()
        compiled_by_xla(*pair, weight)
        metric.update_state(tf.zeros((1, 1, 2)), tf.zeros((1, 1, 2)))
        assert np.isnan(metric.result())
        assert np.isnan(metric.iou_per_class()).all()


def test_overflow_is_nan():
    metric = MeanIoU(2)
    metric.counts.assign(np.full((2, 2), 2**63 - 1))
    metric.update_state([[[0]]], [[[1]]])
    assert np.isnan(metric.result())


@pytest.mark.parametrize("targets", [[], [2], [-1]])
def test_invalid_targets_are_errors(targets):
    with pytest.raises(UserError, match=r"must be classes \(0..1\); received \("):
        MeanIoU(2, target_class_ids=targets)


def test_size_mismatch_is_an_error():
    with pytest.raises(UserError, match="are 4x6 pixels, predictions 2x3; resize"):
        MeanIoU(2).update_state(np.zeros((1, 4, 6)), np.zeros((1, 2, 3, 2)))
