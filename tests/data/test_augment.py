"""Augmentation against the official graph, eagerly and inside tf.data."""

import numpy as np
import pytest
import tensorflow as tf
from golden_case import FOLDER

from deeplab_tf.data import augment

GOLDEN = dict(np.load(FOLDER / "preprocess.npz"))


def eagerly(function, image, label):
    return function(tf.constant(image), tf.constant(label))


def in_tf_data(function, image, label):
    dataset = tf.data.Dataset.from_tensors((image, label)).map(function)
    return next(iter(dataset))


@pytest.fixture(params=[eagerly, in_tf_data])
def run(request):
    """Calls `function(image, label)`, the one way or the other."""
    return request.param


def over_seeds(count, function):
    """Returns what `function(seed)` gives for `count` seeds."""
    dataset = tf.data.Dataset.range(count).map(
        lambda i: function(tf.stack([7, tf.cast(i, tf.int32)]))
    )
    return list(dataset.as_numpy_iterator())


def grid(height, width):
    """Returns an image and a label in which a pixel's value is its place."""
    place = np.arange(height * width).reshape(height, width, 1)
    return np.repeat(place, 3, 2).astype(np.float32), place.astype(np.uint8)


def golden_sample():
    return GOLDEN["image"].astype(np.float32), GOLDEN["label"]


def assert_golden(sample, image_key, label_key):
    image, label = sample
    np.testing.assert_array_equal(label, GOLDEN[label_key])
    assert label.dtype == tf.uint8
    np.testing.assert_allclose(image, GOLDEN[image_key], rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25])
def test_scale_equals_the_official_one(run, scale):
    scaled = run(
        lambda image, label: augment.random_scale(
            image, label, [0, 0], scale, scale, 0.25
        ),
        *golden_sample(),
    )
    assert_golden(scaled, f"scaled_image_{scale}", f"scaled_label_{scale}")


@pytest.mark.parametrize("factor", [None, 16])
def test_resize_to_range_equals_the_official_one(run, factor):
    resized = run(
        lambda image, label: augment.resize_to_range(image, label, 30, 40, factor),
        *golden_sample(),
    )
    name = f"resize_to_range_min30_max40_factor{factor}"
    assert_golden(resized, f"{name}_image", f"{name}_label")


def test_padding_equals_the_official_one(run):
    padded = run(
        lambda image, label: augment.pad_to(image, label, (65, 65), [127.5] * 3, 255),
        *golden_sample(),
    )
    assert_golden(padded, "eval_padded_image", "eval_padded_label")


def test_padding_is_at_the_bottom_and_the_right_of_short_sides_only(run):
    image, label = grid(7, 9)
    mean = (123.15, 115.90, 103.06)
    padded, padded_label = run(
        lambda image, label: augment.pad_to(image, label, (10, 5), mean, 200),
        image,
        label,
    )
    assert padded.shape == (10, 9, 3)
    np.testing.assert_allclose(padded[:7], image, atol=1e-4)
    np.testing.assert_array_equal(padded[7:], np.full((3, 9, 3), mean, np.float32))
    np.testing.assert_array_equal(padded_label[:7], label)
    np.testing.assert_array_equal(padded_label[7:], np.full((3, 9, 1), 200))


@pytest.mark.parametrize(
    ("largest", "step", "heights"),
    # int(41 * s) for s = 0.5, 0.75, ... 2 and for s = 0.5, 0.6, ... 1.2, although
    # (1.2 - 0.5) / 0.1 is less than 7 in floating point.
    [
        (2.0, 0.25, [20, 30, 41, 51, 61, 71, 82]),
        (1.2, 0.1, [20, 24, 28, 32, 36, 41, 45, 49]),
    ],
)
def test_scales_are_those_of_the_steps(largest, step, heights):
    image, label = grid(41, 5)
    seen = over_seeds(
        100,
        lambda seed: tf.shape(
            augment.random_scale(image, label, seed, 0.5, largest, step)[0]
        )[0],
    )
    assert sorted(set(seen)) == heights


def test_step_0_scales_continuously():
    image, label = grid(41, 5)
    seen = over_seeds(
        100,
        lambda seed: tf.shape(augment.random_scale(image, label, seed, 0.5, 2.0, 0)[1])[
            0
        ],
    )
    assert 20 <= min(seen) < 25 and 75 < max(seen) <= 82
    assert len(set(seen)) > 30


def test_crop_takes_one_window_of_both_and_reaches_every_place():
    image, label = grid(7, 9)
    crops = over_seeds(
        300, lambda seed: augment.random_crop(image, label, (5, 6), seed)
    )
    corners = set()
    for crop, crop_label in crops:
        row, column = divmod(int(crop_label[0, 0, 0]), 9)
        window = np.s_[row : row + 5, column : column + 6]
        np.testing.assert_array_equal(crop, image[window])
        np.testing.assert_array_equal(crop_label, label[window])
        corners.add((row, column))
    # 7 - 5 + 1 rows and 9 - 6 + 1 columns.
    assert corners == {(row, column) for row in range(3) for column in range(4)}


def test_crop_of_the_whole_is_the_whole(run):
    image, label = grid(7, 9)
    crop, crop_label = run(
        lambda image, label: augment.random_crop(image, label, (7, 9), [3, 4]),
        image,
        label,
    )
    np.testing.assert_array_equal(crop, image)
    np.testing.assert_array_equal(crop_label, label)


def test_flip_mirrors_both_or_neither_in_half_of_all_cases():
    image, label = grid(4, 5)
    mirrored = []
    for flipped, flipped_label in over_seeds(
        200, lambda seed: augment.random_flip(image, label, seed)
    ):
        mirrored.append(flipped[0, 0, 0] != image[0, 0, 0])
        step = -1 if mirrored[-1] else 1
        np.testing.assert_array_equal(flipped, image[:, ::step])
        np.testing.assert_array_equal(flipped_label, label[:, ::step])
    assert 70 < sum(mirrored) < 130


def test_one_seed_gives_one_sample(run):
    def augmented(image, label):
        image, label = augment.random_scale(image, label, [1, 2], 0.5, 2.0, 0.25)
        image, label = augment.pad_to(image, label, (20, 20), [0.0] * 3, 255)
        image, label = augment.random_crop(image, label, (20, 20), [3, 4])
        return augment.random_flip(image, label, [5, 6])

    first, again = (run(augmented, *golden_sample()) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[0].shape == (20, 20, 3)
