"""Candidate losses: their values, and how parts of a batch add up."""

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.training import tricks
from deeplab_tf.training.losses import loss_and_count, relaxed_pixel_losses

CLASSES, IGNORED = 4, 255


@pytest.fixture(scope="module")
def sample():
    """Labels with ignored pixels and without class 3, and logits."""
    random = np.random.RandomState(0)
    labels = np.kron(random.randint(0, 3, (2, 4, 5)), np.ones((6, 6), int))
    labels[:, :4] = IGNORED
    logits = random.standard_normal((*labels.shape, CLASSES)).astype("float32")
    return labels.astype("int32"), logits


def probabilities_and_labels(sample):
    """Returns those of the valid pixels."""
    labels, logits = sample
    valid = labels != IGNORED
    return tf.nn.softmax(logits).numpy()[valid], labels[valid]


def exact_lovasz(probabilities, labels):
    """The loss by definition (1705.08790, Eq. 8 and 9): errors sorted one by one."""
    losses = []
    for value in np.unique(labels):
        truth = (labels == value).astype(float)
        errors = np.abs(truth - probabilities[:, value])
        order = np.argsort(-errors)
        hits = truth[order]
        missed = hits.sum() - hits.cumsum()
        jaccard = 1.0 - missed / (hits.sum() + (1 - hits).cumsum())
        losses.append(errors[order] @ np.diff(jaccard, prepend=0.0))
    return np.mean(losses)


def exact_dice(probabilities, labels):
    losses = []
    for value in np.unique(labels):
        truth = labels == value
        overlap = 2 * probabilities[truth, value].sum()
        losses.append(1 - overlap / (probabilities[:, value].sum() + truth.sum()))
    return np.mean(losses)


@pytest.mark.parametrize(
    "found, expected",
    [(tricks.lovasz_softmax, exact_lovasz), (tricks.dice, exact_dice)],
)
def test_region_losses_equal_their_definition(sample, found, expected):
    loss = float(found(*sample, IGNORED))
    assert loss == pytest.approx(expected(*probabilities_and_labels(sample)), rel=1e-3)


@pytest.mark.parametrize("loss", tricks._REGION_LOSSES.values())
def test_region_losses_fall_with_better_logits_and_skip_ignored_pixels(sample, loss):
    labels, logits = sample
    truth = np.eye(CLASSES, dtype="float32")[np.where(labels == IGNORED, 0, labels)]
    assert loss(labels, logits + 4 * truth, IGNORED) < loss(labels, logits, IGNORED)
    logits = tf.Variable(logits)
    with tf.GradientTape() as tape:
        value = loss(labels, logits, IGNORED)
    gradient = tape.gradient(value, logits).numpy()
    assert np.isfinite(gradient).all() and gradient[labels != IGNORED].any()
    assert not gradient[labels == IGNORED].any()


def test_relaxed_border_accepts_the_classes_on_both_sides():
    labels = np.array([[[0, 0, 0, 1, 1, 1, IGNORED]]], "int32")
    logits = np.zeros((1, 1, 7, CLASSES), "float32")
    losses = relaxed_pixel_losses(labels, logits, IGNORED, (), 1).numpy()[0, 0]
    # One of four classes, or two of them next to the border; ignored ones do not count.
    one, two = np.log(4), np.log(2)
    np.testing.assert_allclose(losses, [one, one, two, two, one, one, 0], rtol=1e-6)
    weights = (1.0, 2.0, 0.0, 0.0)
    total, count = loss_and_count(
        labels, tf.constant(logits), IGNORED, weights, relaxed_border=1
    )
    assert float(total) == pytest.approx(2 * one + two + 2 * (two + 2 * one), rel=1e-6)
    assert float(count) == 6
