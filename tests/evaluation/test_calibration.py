"""Calibration errors of a few pixels, computed by hand."""

import json

import numpy as np
import pytest

from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.calibration import Calibration


def accumulate(measure, *images):
    for labels, predictions, confidences in images:
        measure.update(
            np.array(labels, np.uint8),
            np.array(predictions, np.int32),
            np.array(confidences, np.float32),
        )
    return measure


def score(measure, *image):
    """Returns the metrics of one image after a round trip through JSON."""
    return json.loads(json.dumps(accumulate(measure, image).metrics(), allow_nan=False))


def samples(count):
    random = np.random.RandomState(0)
    images = []
    for height, width in random.randint(5, 30, (count, 2)):
        labels = random.randint(0, 5, (height, width))
        predictions = random.randint(0, 4, (height, width))
        images.append((labels, predictions, random.random_sample((height, width))))
    return images


def test_calibration_errors_match_hand_computed_values():
    labels = [[1, 0, 1], [0, 2, 2], [255, 3, 255]]
    predictions = [[1, 1, 1], [1, 2, 2], [1, 1, 1]]
    # The last row is not scored.
    confidences = [[0.25, 0.5, 0.375], [0.625, 1.0, 0.875], [1.0, 0.5, 0.1]]
    metrics = score(Calibration(3, 255, bins=5), labels, predictions, confidences)
    # (0, 0.2] is empty; 0.25 and 0.375 are in (0.2, 0.4] and both correct.
    assert metrics["pixels"] == [0, 2, 1, 1, 2]
    assert metrics["accuracy"] == [None, 1, 0, 0, 1]
    assert metrics["confidence"] == [None, 0.3125, 0.5, 0.625, 0.9375]
    gaps = [0.6875, 0.5, 0.625, 0.0625]
    assert metrics["maximum_calibration_error"] == gaps[0]
    expected = (2 * gaps[0] + gaps[1] + gaps[2] + 2 * gaps[3]) / 6
    assert metrics["expected_calibration_error"] == pytest.approx(expected)
    assert metrics["bins"] == 5


def test_accuracy_is_compared_with_mean_confidence():
    # 3 of 4 correct at a confidence of 0.75 is perfect calibration.
    metrics = score(Calibration(2, 255), [[0, 0, 0, 1]], [[0] * 4], [[0.75] * 4])
    assert metrics["expected_calibration_error"] == 0
    assert metrics["maximum_calibration_error"] == 0
    assert metrics["accuracy"][11] == metrics["confidence"][11] == 0.75


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 100])
def test_bins_include_their_upper_edge(bins):
    edges = np.float32(np.arange(1, bins + 1) / bins)[None]
    zeros = np.zeros_like(edges)
    assert score(Calibration(1, 255, bins), zeros, zeros, edges)["pixels"] == [1] * bins
    # The next float32 is in the next bin; values above 1 stay in the last.
    above = np.nextafter(edges, np.float32(2))
    pixels = np.bincount(np.minimum(np.arange(bins) + 1, bins - 1), minlength=bins)
    metrics = score(Calibration(1, 255, bins), zeros, zeros, above)
    assert metrics["pixels"] == pixels.tolist()


def test_confidences_0_and_1_fall_in_the_outer_bins():
    metrics = score(Calibration(2, 255, 2), [[0, 0]], [[0, 0]], [[1.0, 0.0]])
    assert metrics["pixels"] == [1, 1]
    assert metrics["confidence"] == [0, 1]
    assert metrics["expected_calibration_error"] == 0.5


def test_result_is_independent_of_order_and_workers():
    images = samples(6)
    full = accumulate(Calibration(4, 255), *images)
    assert full.counts.dtype == np.int64 and full.needs_confidences
    assert accumulate(Calibration(4, 255), *images[::-1]).metrics() == full.metrics()
    rows = [row for image in images for row in zip(*image, strict=True)]
    assert accumulate(Calibration(4, 255), *rows).metrics() == full.metrics()
    first, rest = (
        accumulate(Calibration(4, 255), *part) for part in (images[:2], images[2:])
    )
    first.counts += rest.counts
    assert first.metrics() == full.metrics() != rest.metrics()
    rest.reset()
    assert rest.metrics() == Calibration(4, 255).metrics()


def test_expected_calibration_error_matches_the_paper():
    images = samples(6)
    labels, predictions, confidences = (
        np.concatenate([np.ravel(image[i]) for image in images]) for i in range(3)
    )
    scored, error = labels < 4, 0
    for low in np.arange(15) / 15:
        in_bin = scored & (confidences > low) & (confidences <= low + 1 / 15)
        accuracy = (labels == predictions)[in_bin].mean()
        error += (
            in_bin.sum() / scored.sum() * abs(accuracy - confidences[in_bin].mean())
        )
    metrics = accumulate(Calibration(4, 255), *images).metrics()
    assert metrics["expected_calibration_error"] == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 4)])
def test_void_only_image_has_no_score(shape):
    void = np.full(shape, 255)
    metrics = score(Calibration(2, 255, 3), void, 0 * void, void / 255)
    assert metrics == Calibration(2, 255, 3).metrics()
    assert metrics == {
        "bins": 3,
        "expected_calibration_error": None,
        "maximum_calibration_error": None,
        "confidence": [None] * 3,
        "accuracy": [None] * 3,
        "pixels": [0] * 3,
    }


def test_ignored_label_may_be_a_class():
    # ADE20K ignores 0; predicting it on a scored pixel is still a mistake.
    metrics = score(Calibration(3, 0, 1), [[0, 1, 2]], [[0, 0, 2]], [[1, 1, 1]])
    assert metrics["pixels"] == [2] and metrics["accuracy"] == [0.5]


def test_counts_of_a_large_split_do_not_overflow():
    measure = Calibration(1, 255, 1)
    # Equivalent to 100 000 images of 2048 x 1024, all with confidence 1.
    image = np.zeros((1024, 2048), np.uint8)
    measure.update(image, image, np.ones(image.shape, np.float32))
    measure.counts *= 100_000
    accumulate(measure, ([[0]], [[0]], [[1.0]]))
    assert measure.metrics()["confidence"] == [1]


def test_nan_confidences_are_refused():
    with pytest.raises(UserError, match="received NaN"):
        score(Calibration(2, 255), [[0, 1]], [[0, 0]], [[0.5, np.nan]])
    # Pixels that are not scored are not checked.
    score(Calibration(2, 255), [[0, 255]], [[0, 0]], [[0.5, np.nan]])


def test_zero_bins_are_refused():
    with pytest.raises(UserError, match="bins must be positive; received 0"):
        Calibration(2, 255, 0)
