"""The mean IoU as a Keras metric."""

import keras
import numpy as np
import pytest

from deeplab_tf.evaluation.confusion import mean_iou
from deeplab_tf.evaluation.mean_iou import MeanIoU
from deeplab_tf.training.losses import SegmentationLoss

LABELS = [0, 0, 1, 1, 2, 255]
PREDICTIONS = [0, 1, 1, 1, 0, 2]


@pytest.mark.parametrize("large", [2**24, 2**31, 2**53])
def test_large_counts_are_exact(large):
    metric = MeanIoU(2)
    metric.counts.assign(np.full((2, 2), large))
    metric.update_labels([1, 1, 0], [1, 0, 1])
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
    model.compile(loss=SegmentationLoss(), metrics=[MeanIoU(3)])
    colors = 255 * np.eye(3, dtype=np.float32)
    labels = np.array(LABELS).reshape(2, 3, 1, 1)
    images = colors[np.array(PREDICTIONS)].reshape(2, 3, 1, 3)
    scores = model.evaluate(images, labels, batch_size=1, verbose=0, return_dict=True)
    assert scores["miou"] == pytest.approx(1 / 3)


def test_metric_is_rebuilt_from_its_config():
    metric = MeanIoU(7, ignore_label=3, name="score")
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(metric)
    )
    assert (again.num_classes, again.ignore_label, again.name) == (7, 3, "score")


def test_sample_weights_are_refused():
    with pytest.raises(ValueError, match="use ignore_label"):
        MeanIoU(2).update_state([0], [[1.0, 0.0]], sample_weight=[1.0])
