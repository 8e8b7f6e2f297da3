"""The loss: ignored pixels, weights, mining and normalisation."""

import math

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.training.losses import (
    regularization_loss,
    schedule_mined_share,
    segmentation_loss,
    shrink_labels,
)

# Logits of two classes, and the loss if class 0 or 1 is right.
SURE = [math.log(3.0), 0.0]  # probabilities 3/4 and 1/4: ln 4/3 or ln 4
UNSURE = [0.0, 0.0]  # 1/2 and 1/2: ln 2
LN2, LN4, LN4_3 = math.log(2.0), math.log(4.0), math.log(4.0 / 3.0)


def loss_and_gradient(labels, logits, **options):
    """Returns the loss of a row of pixels and its gradient `[pixels, 2]`."""
    logits = tf.constant(logits, tf.float32, shape=(1, 1, len(labels), 2))
    labels = tf.constant(labels, tf.uint8, shape=(1, 1, len(labels), 1))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = segmentation_loss(labels, logits, **options)
    assert loss.shape == ()
    return float(loss), tape.gradient(loss, logits).numpy()[0, 0]


@pytest.mark.parametrize(
    ("labels", "logits", "expected"),
    [
        ([0], [SURE], LN4_3),
        ([1], [SURE], LN4),
        ([0, 1], [SURE, UNSURE], (LN4_3 + LN2) / 2),
        ([0, 255, 255], [SURE, UNSURE, SURE], LN4_3),
        # Outside the classes: no loss, but counted.
        ([0, 7], [SURE, UNSURE], LN4_3 / 2),
    ],
)
def test_loss_is_mean_over_unignored_pixels(labels, logits, expected):
    loss, _ = loss_and_gradient(labels, logits)
    assert loss == pytest.approx(expected, rel=1e-6)


def test_any_class_can_be_ignored():
    loss, _ = loss_and_gradient([0, 1], [SURE, SURE], ignore_label=1)
    assert loss == pytest.approx(LN4_3, rel=1e-6)
    loss, _ = loss_and_gradient([1, 0], [SURE, UNSURE], ignore_label=0)
    assert loss == pytest.approx(LN4, rel=1e-6)


def test_ignored_pixels_have_no_gradient():
    _, gradient = loss_and_gradient([1, 255, 7], [SURE, SURE, SURE])
    # softmax - one_hot = (3/4, 1/4 - 1), over the two pixels that are counted.
    expected = [[0.375, -0.375], [0.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_unlabelled_batch_has_zero_loss_and_gradient(share):
    loss, gradient = loss_and_gradient([255, 255], [SURE, UNSURE], share=share)
    assert loss == 0.0
    assert not gradient.any()


def test_label_weights_do_not_change_the_pixel_count():
    options = {"label_weights": (1.0, 3.0)}
    loss, _ = loss_and_gradient([0, 1, 255], 3 * [UNSURE], **options)
    assert loss == pytest.approx((1 * LN2 + 3 * LN2) / 2, rel=1e-6)
    loss, gradient = loss_and_gradient([0, 7], 2 * [UNSURE], **options)
    assert loss == pytest.approx(LN2 / 2, rel=1e-6)
    assert not gradient[1].any()


MINED = ([1, 0, 0, 255, 1], [SURE, SURE, UNSURE, SURE, UNSURE])  # ln4 ln4/3 ln2 0 ln2


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.2, LN4),  # one of five pixels, including the ignored one
        (0.4, (LN4 + LN2) / 2),
        (0.39, LN4),  # int(0.39 * 5) = 1
        (0.8, (LN4 + LN2 + LN2 + LN4_3) / 4),
        (0.99999, (LN4 + LN2 + LN2 + LN4_3) / 4),
        (0.1, 0.0),  # int(0.5) = 0 pixels
    ],
)
def test_mining_keeps_hardest_pixels(share, expected):
    loss, _ = loss_and_gradient(*MINED, share=share)
    assert loss == pytest.approx(expected, rel=1e-5)
    loss, _ = loss_and_gradient(*MINED, share=tf.constant(share))
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_mining_keeps_nan(share):
    # Otherwise, training would not notice that it diverged.
    logits = [SURE, UNSURE, [math.nan, 0.0], SURE, UNSURE]
    loss, _ = loss_and_gradient([1, 0, 0, 255, 1], logits, share=share)
    assert math.isnan(loss)


def test_mining_divides_by_the_number_of_nonzero_losses():
    # Four of five are kept; two of them are ignored or no class, without loss.
    labels = [1, 255, 255, 7, 0]
    loss, gradient = loss_and_gradient(labels, 5 * [SURE], share=0.8)
    assert loss == pytest.approx((LN4 + LN4_3) / 2, rel=1e-6)
    assert not gradient[1:4].any()


def test_mining_ranks_weighted_losses():
    loss, _ = loss_and_gradient(
        [0, 1], [UNSURE, SURE], share=0.5, label_weights=(3.0, 1.0)
    )
    assert loss == pytest.approx(3 * LN2, rel=1e-6)  # 2.08 beats ln 4 = 1.39


@pytest.mark.parametrize(
    ("label", "logits", "gamma", "expected"),
    [
        # (1 - p) ** gamma times the cross-entropy, p being 3/4, 1/4 or 1/2.
        (0, SURE, 2.0, LN4_3 / 16),
        (1, SURE, 2.0, LN4 * 9 / 16),
        (0, UNSURE, 0.5, LN2 * math.sqrt(0.5)),
        (1, SURE, 0.0, LN4),
    ],
)
def test_focal_loss_matches_formula(label, logits, gamma, expected):
    options = {"focal_gamma": gamma, "label_weights": (3.0, 3.0)}
    # Two of three pixels are counted, and one of them has a class.
    loss, _ = loss_and_gradient([label, 255, 7], 3 * [logits], **options)
    assert loss == pytest.approx(3 * expected / 2, rel=1e-6)


def test_focal_gradient_matches_formula():
    _, gradient = loss_and_gradient([0], [SURE], focal_gamma=2.0)
    # d/dp of (1 - p)^2 (-ln p) at 3/4, times dp/dlogit = p (1 - p).
    slope = -2 * 0.25 * LN4_3 - 0.25**2 / 0.75
    np.testing.assert_allclose(
        gradient[0], [slope * 3 / 16, -slope * 3 / 16], rtol=1e-5
    )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("logit", [10.0, 20.0, 90.0, 1000.0])
def test_focal_gradient_is_stable_for_large_logits(gamma, logit):
    # p of the right class is almost 1, 1 and 0.
    labels, logits = [0, 1, 1], [[logit, 0.0], [0.0, logit], [logit, 0.0]]
    loss, gradient = loss_and_gradient(labels, logits, focal_gamma=gamma)
    # The wrong pixel has its logit as loss and gradients 1 and -1, over three pixels.
    assert loss == pytest.approx(logit / 3, rel=1e-3)
    np.testing.assert_allclose(gradient[2], [1 / 3, -1 / 3], rtol=2e-3)
    np.testing.assert_allclose(gradient[:2], 0.0, atol=5e-3)


def test_mining_ranks_focal_losses():
    # 3/4 ln 2 = 0.52 and 9/16 ln 4 = 0.78; without focus the first one is larger.
    options = {"share": 0.5, "label_weights": (3.0, 1.0), "focal_gamma": 2.0}
    loss, _ = loss_and_gradient([0, 1], [UNSURE, SURE], **options)
    assert loss == pytest.approx(9 / 16 * LN4, rel=1e-6)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1.0), (5, 0.625), (10, 0.25), (99, 0.25)]
)
def test_mined_share_decreases_linearly(step, expected):
    # At step 5 of 10: 0.5 * 0.25 + 0.5.
    assert float(schedule_mined_share(step, 0.25, 10)) == pytest.approx(expected)
    assert schedule_mined_share(step, 0.25, 0) == 0.25


def test_share_of_one_disables_mining():
    # Mining would divide by the two pixels with a loss instead of all three.
    share = schedule_mined_share(3, 1.0, 10)
    loss, _ = loss_and_gradient([1, 0, 7], 3 * [SURE], share=share)
    assert loss == pytest.approx((LN4 + LN4_3) / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("source", "target"),
    [(513, 65), (513, 33), (513, 129), (65, 65), (64, 8), (70, 9), (5, 1), (1, 3)],
)
def test_shrink_labels_equals_official_resize(source, target):
    labels = np.random.RandomState(source).randint(0, 256, (2, source, 7, 1), np.uint8)
    official = tf.raw_ops.ResizeNearestNeighbor(
        images=labels, size=(target, 3), align_corners=True
    )
    shrunk = shrink_labels(tf.constant(labels), (target, 3))
    np.testing.assert_array_equal(shrunk, official[..., 0])
    assert shrunk.dtype == tf.uint8
    without_channel = shrink_labels(tf.constant(labels[..., 0]), (target, 3))
    np.testing.assert_array_equal(without_channel, shrunk)


def test_shrink_labels_rounds_half_up():
    # Four labels to three: positions 0, 1.5, 3 are read at 0, 2, 3.
    labels = tf.constant([[[10, 11, 12, 13]]])
    np.testing.assert_array_equal(shrink_labels(labels, (1, 3)), [[[10, 12, 13]]])


def test_weight_decay_applies_to_convolution_kernels():
    values = {
        "MobilenetV2/Conv/weights": [1.0, 2.0],
        "aspp0/weights": [3.0],
        "aspp1_depthwise/depthwise_weights": [100.0],
        "aspp0/BatchNorm/gamma": [100.0],
        "aspp0/BatchNorm/beta": [100.0],
        "aspp0/BatchNorm/moving_variance": [100.0],
        "logits/semantic/biases": [100.0],
    }
    variables = {name: tf.constant(value) for name, value in values.items()}
    # 0.1 / 2 * (1 + 4 + 9)
    assert float(regularization_loss(variables, 0.1)) == pytest.approx(0.7)
