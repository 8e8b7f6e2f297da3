"""Calibration errors of a few pixels, worked by hand."""

import json

import numpy as np
import pytest

from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.calibration import Calibration


def fed(measure, *images):
    for labels, predictions, confidences in images:
        measure.update(
            np.array(labels, np.uint8),
            np.array(predictions, np.int32),
            np.array(confidences, np.float32),
        )
    return measure


def score(measure, *image):
    """Returns the metrics of one image, as they come back from JSON."""
    return json.loads(json.dumps(fed(measure, image).metrics(), allow_nan=False))


def samples(count):
    random = np.random.RandomState(0)
    images = []
    for height, width in random.randint(5, 30, (count, 2)):
        labels = random.randint(0, 5, (height, width))
        predictions = random.randint(0, 4, (height, width))
        images.append((labels, predictions, random.random_sample((height, width))))
    return images


def test_errors_by_hand():
    labels = [[1, 0, 1], [0, 2, 2], [255, 3, 255]]
    predictions = [[1, 1, 1], [1, 2, 2], [1, 1, 1]]
    # The last row is not scored.
    confidences = [[0.25, 0.5, 0.375], [0.625, 1.0, 0.875], [1.0, 0.5, 0.1]]
    metrics = score(Calibration(3, 255, bins=5), labels, predictions, confidences)
    # (0, 0.2] is empty; 0.25 and 0.375 are in (0.2, 0.4] and both right.
    assert metrics["pixels"] == [0, 2, 1, 1, 2]
    assert metrics["accuracy"] == [None, 1, 0, 0, 1]
    assert metrics["confidence"] == [None, 0.3125, 0.5, 0.625, 0.9375]
    gaps = [0.6875, 0.5, 0.625, 0.0625]
    assert metrics["maximum_calibration_error"] == gaps[0]
    expected = (2 * gaps[0] + gaps[1] + gaps[2] + 2 * gaps[3]) / 6
    assert metrics["expected_calibration_error"] == pytest.approx(expected)
    assert metrics["bins"] == 5


def test_mistakes_count_against_the_mean_of_their_bin():
    # 3 of 4 right at a confidence of 0.75 is perfect.
    metrics = score(Calibration(2, 255), [[0, 0, 0, 1]], [[0] * 4], [[0.75] * 4])
    assert metrics["expected_calibration_error"] == 0
    assert metrics["maximum_calibration_error"] == 0
    assert metrics["accuracy"][11] == metrics["confidence"][11] == 0.75


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 100])
def test_an_upper_edge_is_of_its_bin(bins):
    edges = np.float32(np.arange(1, bins + 1) / bins)[None]
    zeros = np.zeros_like(edges)
    assert score(Calibration(1, 255, bins), zeros, zeros, edges)["pixels"] == [1] * bins
    # The next float32 is in the next bin; what is over 1 stays in the last.
    above = np.nextafter(edges, np.float32(2))
    pixels = np.bincount(np.minimum(np.arange(bins) + 1, bins - 1), minlength=bins)
    metrics = score(Calibration(1, 255, bins), zeros, zeros, above)
    assert metrics["pixels"] == pixels.tolist()


def test_certainty_and_none_at_all():
    metrics = score(Calibration(2, 255, 2), [[0, 0]], [[0, 0]], [[1.0, 0.0]])
    assert metrics["pixels"] == [1, 1]
    assert metrics["confidence"] == [0, 1]
    assert metrics["expected_calibration_error"] == 0.5


def test_neither_order_nor_workers_matter():
    images = samples(6)
    whole = fed(Calibration(4, 255), *images)
    assert whole.counts.dtype == np.int64 and whole.needs_confidences
    assert fed(Calibration(4, 255), *images[::-1]).metrics() == whole.metrics()
    rows = [row for image in images for row in zip(*image, strict=True)]
    assert fed(Calibration(4, 255), *rows).metrics() == whole.metrics()
    first, rest = (fed(Calibration(4, 255), *part) for part in (images[:2], images[2:]))
    first.counts += rest.counts
    assert first.metrics() == whole.metrics() != rest.metrics()
    rest.reset()
    assert rest.metrics() == Calibration(4, 255).metrics()


def test_as_the_paper_writes_it():
    images = samples(6)
    labels, predictions, confidences = (
        np.concatenate([np.ravel(image[i]) for image in images]) for i in range(3)
    )
    scored, error = labels < 4, 0
    for low in np.arange(15) / 15:
        mine = scored & (confidences > low) & (confidences <= low + 1 / 15)
        accuracy = (labels == predictions)[mine].mean()
        error += mine.sum() / scored.sum() * abs(accuracy - confidences[mine].mean())
    metrics = fed(Calibration(4, 255), *images).metrics()
    assert metrics["expected_calibration_error"] == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 4)])
def test_of_void_alone_there_is_no_score(shape):
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


def test_the_ignored_label_may_be_one_of_the_classes():
    # ADE20K ignores 0; predicting it on a scored pixel is still a mistake.
    metrics = score(Calibration(3, 0, 1), [[0, 1, 2]], [[0, 0, 2]], [[1, 1, 1]])
    assert metrics["pixels"] == [2] and metrics["accuracy"] == [0.5]


def test_there_is_room_for_more_pixels_than_any_split_has():
    measure = Calibration(1, 255, 1)
    # As if 100 000 images of 2048 x 1024 had been seen, all of them certain.
    image = np.zeros((1024, 2048), np.uint8)
    measure.update(image, image, np.ones(image.shape, np.float32))
    measure.counts *= 100_000
    fed(measure, ([[0]], [[0]], [[1.0]]))
    assert measure.metrics()["confidence"] == [1]


def test_confidences_of_a_broken_model_are_refused():
    with pytest.raises(UserError, match="received NaN"):
        score(Calibration(2, 255), [[0, 1]], [[0, 0]], [[0.5, np.nan]])
    # What is not scored is not looked at.
    score(Calibration(2, 255), [[0, 255]], [[0, 0]], [[0.5, np.nan]])


def test_without_bins_there_is_no_table():
    with pytest.raises(UserError, match="bins must be positive; received 0"):
        Calibration(2, 255, 0)
