"""Label maps and predictions: their forms and invalid values."""

import re

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf import MeanIoU, SegmentationLoss, UserError
from deeplab_tf.models.labels import (
    expand_sample_weight,
    read_labels,
    read_predictions,
)

IDS = np.array([[[0, 1, 2], [2, 255, 0]]])
ONE_HOT = np.eye(3)[np.where(IDS == 255, 0, IDS)] * (IDS != 255)[..., None]


@pytest.mark.parametrize(
    "labels",
    [
        IDS,
        IDS.astype(np.uint8)[..., None],
        IDS.astype(np.float32),
        IDS.tolist(),
        ONE_HOT,
        ONE_HOT.astype(bool),
    ],
)
def test_all_forms_of_labels_are_read(labels):
    ids, invalid = read_labels(labels, 3, 255)
    np.testing.assert_array_equal(ids, IDS)
    assert ids.dtype == tf.int32
    assert not np.any(invalid)


@pytest.mark.parametrize("ignore_label", [-1, 0, 3, 7])
def test_pixel_of_zeros_is_ignored(ignore_label):
    ids, _ = read_labels(ONE_HOT, 3, ignore_label)
    np.testing.assert_array_equal(ids, np.where(IDS == 255, ignore_label, IDS))


PREDICTIONS = IDS % 3


@pytest.mark.parametrize(
    "predictions",
    [
        PREDICTIONS,
        PREDICTIONS[..., None].astype(np.float32),
        10.0 * np.eye(3)[PREDICTIONS] - 7.0,
    ],
)
def test_all_forms_of_predictions_are_read(predictions):
    ids, invalid = read_predictions(predictions, 3)
    np.testing.assert_array_equal(ids, PREDICTIONS)
    assert not np.any(invalid)


def of_labels(*pixels):
    return [[pixels]], lambda x: read_labels(x, 3, 254)


def of_predictions(*pixels):
    return [[pixels]], lambda x: read_predictions(x, 3)


# Values, their reader, the value of the first invalid pixel, and the advice.
INVALID = [
    (*of_labels(1, 5, 9), "5", "neither a class (0..2) nor ignored"),
    (*of_labels(0, 254, 255), "255", "pass it as ignore_label"),
    (*of_labels(-1), "-1", "ignored (ignore_label=254); map it to a class"),
    (*of_labels(0.5), "0.5", "map it to a class"),
    (*of_labels(float("nan")), "nan", "map it to a class"),
    (*of_labels([1, 0, 0], [0, 1, 1]), "[0, 1, 1]", "neither one-hot (3 classes)"),
    (*of_labels([0.2, 0.7, 0.1]), "[0.2, 0.7, 0.1]", "nor all 0 (ignored)"),
    (*of_labels([1, -1, 1]), "[1, -1, 1]", "neither one-hot"),
    (*of_predictions(2, 3, -1), "3", "not a class (0..2)"),
    (*of_predictions(254), "254", "pass class ids or class scores"),
    (*of_predictions([0.5]), "0.5", "class scores"),
]


@pytest.mark.parametrize(("values", "read", "value", "advice"), INVALID)
def test_invalid_value_is_an_error(values, read, value, advice):
    values = tf.constant(values)
    with pytest.raises(UserError, match=re.escape(advice)) as eager:
        read(values)
    assert f" {value}, " in str(eager.value)
    # The same in a graph, in TensorFlow's notation.
    failure = tf.errors.InvalidArgumentError
    with pytest.raises(failure, match=re.escape(advice)) as graph:
        tf.function(read)(values)
    assert f"[{value.strip('[]').replace(',', '')}]" in str(graph.value)


def test_invalid_pixels_are_masked_under_xla():
    labels = tf.constant([[[0, 5, 254, -1]]])
    compiled = tf.function(lambda x: read_labels(x, 3, 254)[1], jit_compile=True)
    np.testing.assert_array_equal(compiled(labels), [[[False, True, False, True]]])


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3, 2), (1, 2, 3, 4, 1)])
def test_invalid_shape_is_an_error(shape):
    x = np.zeros(shape)
    text = re.escape(f"have the shape {list(shape)}; pass class ids")
    with pytest.raises(UserError, match=f"labels {text}"):
        read_labels(x, 3, 255)
    with pytest.raises(UserError, match=f"predictions {text}"):
        read_predictions(x, 3)


def test_xla_does_not_compile_labels_as_constants():
    # Otherwise, it compiles again for each batch.
    loss, metric = SegmentationLoss(share=0.5), MeanIoU(3)

    @tf.function(jit_compile=True)
    def step(labels, scores):
        metric.update_state(labels, scores)
        metric.update_state(labels, scores, [1.0])
        return loss(labels, scores)

    labels, scores = tf.constant(PREDICTIONS, tf.int32), tf.zeros((1, 2, 3, 3))
    program = step.experimental_get_compiler_ir(labels, scores)(stage="hlo")
    assert re.search(r"s32\[1,2,3\]\S* parameter\(", program)


@pytest.mark.parametrize(
    ("shape", "expanded"),
    [
        ((), ()),
        ((2,), (2, 1, 1)),
        ((2, 1), (2, 1, 1)),
        ((2, 3, 4), (2, 3, 4)),
        ((2, 3, 4, 1), (2, 3, 4)),
        ((1, 1, 4), (1, 1, 4)),
    ],
)
def test_all_shapes_of_sample_weights_are_broadcast(shape, expanded):
    weights = np.random.RandomState(0).uniform(size=shape)
    result = expand_sample_weight(weights)
    assert result.shape == expanded
    np.testing.assert_allclose(np.ravel(result), np.ravel(weights), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4, 5)])
def test_invalid_shapes_of_sample_weights_are_errors(shape):
    with pytest.raises(UserError, match="pass one weight per image"):
        expand_sample_weight(np.ones(shape))
