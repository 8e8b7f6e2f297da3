"""Compares augmentation with the official graph, eagerly and inside tf.data."""

import numpy as np
import pytest
import tensorflow as tf
from golden_case import FOLDER

from deeplab_tf.data import augment

GOLDEN = dict(np.load(FOLDER / "preprocess.npz"))


def run_eagerly(function, image, label):
    return function(tf.constant(image), tf.constant(label))


def run_in_tf_data(function, image, label):
    dataset = tf.data.Dataset.from_tensors((image, label)).map(function)
    return next(iter(dataset))


@pytest.fixture(params=[run_eagerly, run_in_tf_data])
def run(request):
    """A function that calls `function(image, label)` eagerly or inside tf.data."""
    return request.param


def draw_crops(count, *scales):
    """Returns the results of `draw_crop` for `count` seeds."""
    dataset = tf.data.Dataset.range(count).map(
        lambda i: augment.draw_crop(
            tf.random.stateless_uniform([4], tf.stack([7, i])), *scales
        )
    )
    return list(dataset.as_numpy_iterator())


def fixed_draw(scale, place=(0.0, 0.0), flipped=False):
    place = tf.convert_to_tensor(place, tf.float32)
    return augment.RandomCrop(
        tf.constant(scale, tf.float32), place, tf.constant(flipped)
    )


def crop_first(image, label, draw, size, mean_pixel=(127.5,) * 3, ignore_label=255):
    """Returns a crop as the pipeline makes it, from only the rows it needs."""
    source = tf.shape(image)[:2]
    window = augment.crop_window(draw, source, size)
    first, count = window.first_row, window.row_count
    rows = image[first : first + count]
    return (
        augment.crop_image(rows, window, size, mean_pixel),
        augment.crop_label(label, window, size, ignore_label),
    )


def scale_first(image, label, draw, size, mean_pixel, ignore_label):
    """Returns the same crop in the official order: scale, pad, crop, flip."""
    scaled = (np.float32(image.shape[:2]) * np.float32(draw.scale)).astype(np.int32)
    scaled = np.maximum(scaled, 1)
    image = augment.resize_image(tf.cast(image, tf.float32), scaled).numpy()
    label = augment.resize_label(label, scaled).numpy()
    margin = np.maximum(scaled - size, 0)
    top, left = np.minimum((draw.position * np.float32(margin + 1)).astype(int), margin)
    padding = [(0, max(0, n - m)) for n, m in zip(size, scaled, strict=True)] + [(0, 0)]
    image = np.pad(image - np.float32(mean_pixel), padding) + np.float32(mean_pixel)
    label = np.pad(label, padding, constant_values=ignore_label)
    window = np.s_[top : top + size[0], left : left + size[1]]
    step = -1 if draw.flipped else 1
    return image[window][:, ::step], label[window][:, ::step]


def position_image(height, width):
    """Returns an image and a label whose values are pixel positions."""
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
def test_scaling_matches_official_code(run, scale):
    size = GOLDEN[f"scaled_label_{scale}"].shape[:2]
    scaled = run(
        lambda image, label: crop_first(image, label, fixed_draw(scale), size),
        *golden_sample(),
    )
    assert_golden(scaled, f"scaled_image_{scale}", f"scaled_label_{scale}")


@pytest.mark.parametrize("factor", [None, 16])
def test_resize_to_range_matches_official_code(run, factor):
    resized = run(
        lambda image, label: augment.resize_to_range(image, label, 30, 40, factor),
        *golden_sample(),
    )
    name = f"resize_to_range_min30_max40_factor{factor}"
    assert_golden(resized, f"{name}_image", f"{name}_label")


def test_padding_matches_official_code(run):
    padded = run(
        lambda image, label: crop_first(image, label, fixed_draw(1.0), (65, 65)),
        *golden_sample(),
    )
    assert_golden(padded, "eval_padded_image", "eval_padded_label")


def test_images_are_padded_at_the_bottom_and_right(run):
    image, label = position_image(7, 9)
    mean = (123.15, 115.90, 103.06)
    padded, padded_label = run(
        lambda image, label: crop_first(
            image, label, fixed_draw(1.0), (10, 5), mean, 200
        ),
        image,
        label,
    )
    assert padded.shape == (10, 5, 3)
    np.testing.assert_array_equal(padded[:7], image[:, :5])
    np.testing.assert_array_equal(padded[7:], np.full((3, 5, 3), mean, np.float32))
    np.testing.assert_array_equal(padded_label[:7], label[:, :5])
    np.testing.assert_array_equal(padded_label[7:], np.full((3, 5, 1), 200))


# Image size, crop size and scale: sides of one pixel, crops larger and smaller than
# the scaled image, and scales that leave less than a pixel.
_EDGE_CASES = [
    ((1, 1), (3, 2), 1.0),
    ((1, 1), (4, 4), 3.7),
    ((2, 1), (1, 1), 0.5),
    ((1, 40), (17, 17), 2.0),
    ((40, 1), (17, 17), 0.02),
    ((375, 500), (513, 513), 2.0),
    ((500, 333), (513, 513), 1.9999),
    ((281, 500), (129, 513), 0.75),
]


def assert_crop_first_equals_scale_first(random, source, size, scale, run=run_eagerly):
    channels = random.integers(1, 6)
    image = random.integers(0, 256, (*source, channels)).astype(np.uint8)
    label = random.integers(0, 256, (*source, 1)).astype(np.uint8)
    mean, ignored = random.uniform(0, 255, channels), int(random.integers(0, 256))
    place = random.uniform(0, 1, 2).astype(np.float32)
    draw = augment.RandomCrop(np.float32(scale), place, bool(random.integers(2)))
    tensors = fixed_draw(scale, place, draw.flipped)
    ours = run(
        lambda x, y: crop_first(x, y, tensors, size, mean, ignored), image, label
    )
    official = scale_first(image, label, draw, size, mean, ignored)
    # Neighbouring pixels of noise differ by up to 255, so that a position error of
    # 1e-5 pixels exceeds the tolerance.
    np.testing.assert_allclose(ours[0], official[0], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(ours[1], official[1])


@pytest.mark.parametrize(("source", "size", "scale"), _EDGE_CASES)
def test_crop_first_equals_scale_first_at_the_edges(run, source, size, scale):
    # In tf.data, each seed takes a second to trace.
    for seed in range(4 if run is run_eagerly else 1):
        random = np.random.default_rng(seed)
        assert_crop_first_equals_scale_first(random, source, size, scale, run)


def assert_random_crops_are_equal(first, last, largest):
    for seed in range(first, last):
        random = np.random.default_rng(seed)
        source = tuple(random.integers(1, largest, 2))
        size = tuple(int(n) for n in random.integers(1, largest, 2))
        scale = 2 ** random.uniform(-3, 2)
        assert_crop_first_equals_scale_first(random, source, size, scale)


def test_crop_first_equals_scale_first():
    assert_random_crops_are_equal(0, 50, 90)


@pytest.mark.slow
def test_crop_first_equals_scale_first_on_large_images():
    assert_random_crops_are_equal(1000, 1300, 700)


@pytest.mark.parametrize(
    ("smallest", "largest", "step", "scales"),
    [
        (0.5, 2.0, 0.25, [0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]),
        # (1.5 - 0.8) / 0.1 is below 7 in floating point: the official code draws from
        # int(7.999...) = 7 scales, evenly spaced by 0.7 / 6.
        (0.8, 1.5, 0.1, [0.8 + i * 0.7 / 6 for i in range(7)]),
        # int(1.5 / 0.4 + 1) = 4 scales, 0.5 apart.
        (0.5, 2.0, 0.4, [0.5, 1.0, 1.5, 2.0]),
    ],
)
def test_number_of_scales_is_that_of_official_code(smallest, largest, step, scales):
    scales_drawn = [draw.scale for draw in draw_crops(400, smallest, largest, step)]
    values, counts = np.unique(scales_drawn, return_counts=True)
    np.testing.assert_allclose(values, scales, rtol=1e-6)
    # Uniform, within four standard deviations of the binomial distribution.
    mean, share = 400 / len(scales), 1 / len(scales)
    assert np.abs(counts - mean).max() <= 4 * np.sqrt(mean * (1 - share))


def test_zero_scale_step_samples_continuous_scales():
    scales_drawn = [draw.scale for draw in draw_crops(100, 0.5, 2.0, 0)]
    assert 0.5 <= min(scales_drawn) < 0.6 and 1.9 < max(scales_drawn) <= 2.0
    assert len(set(scales_drawn)) == 100


def test_equal_bounds_give_a_single_scale():
    assert {draw.scale for draw in draw_crops(5, 0.75, 0.75, 0.25)} == {0.75}


def test_image_and_label_get_the_same_crop_at_every_position():
    image, label = map(tf.constant, position_image(7, 9))
    corners = set()
    draws = draw_crops(300, 1.0, 1.0, 0)
    crops = tf.data.Dataset.from_tensor_slices([draw.position for draw in draws]).map(
        lambda position: crop_first(image, label, fixed_draw(1.0, position), (5, 6))
    )
    for crop, crop_label in crops.as_numpy_iterator():
        row, column = divmod(int(crop_label[0, 0, 0]), 9)
        window = np.s_[row : row + 5, column : column + 6]
        np.testing.assert_array_equal(crop, image[window])
        np.testing.assert_array_equal(crop_label, label[window])
        corners.add((row, column))
    # 7 - 5 + 1 rows and 9 - 6 + 1 columns.
    assert corners == {(row, column) for row in range(3) for column in range(4)}


def test_flip_mirrors_image_and_label_half_of_the_time():
    image, label = position_image(4, 5)
    crop, crop_label = crop_first(image, label, fixed_draw(1.0, flipped=True), (4, 5))
    np.testing.assert_array_equal(crop, image[:, ::-1])
    np.testing.assert_array_equal(crop_label, label[:, ::-1])
    assert 70 < sum(draw.flipped for draw in draw_crops(200, 1.0, 1.0, 0)) < 130


def test_same_seed_gives_same_draws():
    first, again = (draw_crops(3, 0.5, 2.0, 0.25) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.scale == other.scale and one.flipped == other.flipped
        np.testing.assert_array_equal(one.position, other.position)
    assert not np.array_equal(first[0].position, first[1].position)


def test_jitter_changes_brightness_contrast_and_saturation():
    image = np.random.default_rng(0).uniform(80, 120, (6, 5, 3)).astype(np.float32)
    jittered = augment.jitter_colors(image, tf.constant([0.75, 0.25, 1.0]), 0.4).numpy()
    assert jittered.shape == image.shape and not np.allclose(jittered, image, atol=1)
    # Scale by the brightness, move pixels from their grey by the saturation, then
    # from the mean grey by the contrast.
    brightness, contrast, saturation = 1.2, 0.8, 1.4
    bright = image * brightness
    grey = bright @ np.array([[0.299], [0.587], [0.114]], np.float32)
    vivid = grey + (bright - grey) * saturation
    expected = grey.mean() + (vivid - grey.mean()) * contrast
    np.testing.assert_allclose(jittered, np.clip(expected, 0, 255), atol=1e-3)


def test_jitter_stays_in_range_and_keeps_channel_ratios():
    white = np.full((3, 3, 2), 250.0, np.float32)
    for seed in range(20):
        uniform = tf.random.stateless_uniform([3], [0, seed])
        x = augment.jitter_colors(white, uniform, 0.9).numpy()
        assert x.min() >= 0 and x.max() <= 255
        np.testing.assert_allclose(x[..., 0], x[..., 1])


def test_zero_jitter_changes_nothing():
    image, _ = position_image(4, 5)
    np.testing.assert_allclose(
        augment.jitter_colors(image, tf.constant([0.1, 0.5, 0.9]), 0.0),
        image,
        atol=1e-4,
    )
