"""Label maps of encoded images; an invalid image does not affect its batch."""

import io

import numpy as np
import pytest
import tensorflow as tf
from hostile_images import (
    HOSTILE_IMAGES,
    JPEG,
    PNG,
    encode_image,
    noise,
    png_with_long_text,
)
from PIL import Image

from deeplab_tf.serving.encoded import Bounds, find_decodable, label_encoded

BOUNDS = Bounds()


@tf.function(
    input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)], autograph=False
)
def reds(images):
    """Labels each pixel with its red value."""
    return tf.cast(images[..., 0], tf.int32)


@pytest.fixture(scope="module")
def maps_and_errors():
    """A function that runs `label_encoded` in a graph."""
    function = tf.function(
        lambda strings: label_encoded(strings, reds, 21, BOUNDS),
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )

    def call(files):
        maps, errors = function(tf.constant(files, tf.string, [len(files)]))
        return list(maps.numpy()), list(errors.numpy())

    return call


def test_label_maps_have_the_size_of_their_image(maps_and_errors):
    files = [JPEG, PNG, encode_image(noise(1, 1, 3))]
    maps, errors = maps_and_errors(files)
    assert errors == [b"", b"", b""]
    for file, label in zip(files, maps, strict=True):
        pixels = tf.io.decode_image(file).numpy()
        decoded = np.array(Image.open(io.BytesIO(label)))
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, pixels[..., 0])


def test_other_image_modes_are_decoded_as_rgb(maps_and_errors):
    grey, rgba = noise(5, 6), noise(5, 6, 4)
    palette = Image.fromarray(noise(5, 6) % 7, "P")
    palette.putpalette(bytes(range(21)))
    file = io.BytesIO()
    palette.save(file, "PNG")
    deep = tf.io.encode_png(tf.cast(noise(5, 6, 3), tf.uint16) * 256).numpy()
    jpeg = encode_image(grey, "JPEG")
    files = {
        encode_image(grey): grey,
        jpeg: tf.io.decode_jpeg(jpeg, channels=3).numpy()[..., 0],
        encode_image(rgba): rgba[..., 0],
        file.getvalue(): np.array(palette) * 3,
        deep: noise(5, 6, 3)[..., 0],
    }
    maps, errors = maps_and_errors(list(files))
    assert set(errors) == {b""}
    for label, expected in zip(maps, files.values(), strict=True):
        decoded = np.array(Image.open(io.BytesIO(label)))
        np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("kind", HOSTILE_IMAGES)
def test_invalid_image_gives_an_error_and_others_are_labelled(kind, maps_and_errors):
    (first, bad, last), errors = maps_and_errors([PNG, HOSTILE_IMAGES[kind], JPEG])
    assert errors == [b"", BOUNDS.message.encode(), b""]
    assert bad == b""
    for label, size in ((first, (7, 11)), (last, (30, 20))):
        assert Image.open(io.BytesIO(label)).size == size


def damage(content, random):
    """Returns content with some bytes changed, removed or repeated."""
    broken = bytearray(content)
    for _ in range(random.randint(1, 5)):
        position = random.randint(len(broken))
        kind = random.randint(3)
        if kind == 0:
            broken[position] = random.randint(256)
        elif kind == 1:
            del broken[position : position + random.randint(1, 20)]
        else:
            broken[position:position] = broken[
                position : position + random.randint(1, 20)
            ]
    return bytes(broken)


def test_damaged_images_do_not_break_the_batch(maps_and_errors):
    random = np.random.RandomState(0)
    files = [damage((JPEG, PNG)[i % 2], random) for i in range(400)]
    maps, errors = maps_and_errors([*files, PNG])
    assert all(
        bool(label) != bool(error) for label, error in zip(maps, errors, strict=True)
    )
    assert 100 < sum(map(bool, errors)) < 400
    assert maps[-1]


def test_batch_may_be_empty_or_all_invalid(maps_and_errors):
    assert maps_and_errors([]) == ([], [])
    maps, errors = maps_and_errors([b"", b"no"])
    assert (maps, errors) == ([b"", b""], 2 * [BOUNDS.message.encode()])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pixel_limit_is_exact(kind):
    files = [encode_image(noise(*size, 3), kind) for size in ((11, 7), (6, 13))]
    bounds = Bounds(7 * 11)
    assert find_decodable(tf.constant(files), bounds).numpy().tolist() == [
        True,
        False,
    ]
    assert "has at most 77 pixels" in bounds.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_size_after_resizing_is_limited_too(kind):
    files = [encode_image(noise(*size, 3), kind) for size in ((3, 7), (7, 3), (3, 8))]
    bounds = Bounds(21 * 100, lambda sides: sides * 10)
    are_readable = find_decodable(tf.constant(files), bounds).numpy().tolist()
    assert are_readable == [True, True, False]
    of_sides = Bounds(1 << 24, lambda sides: sides * [1, 1 << 12])
    are_readable = find_decodable(tf.constant(files), of_sides).numpy().tolist()
    assert are_readable == [False, True, False]


def test_small_image_may_have_long_metadata(maps_and_errors):
    _, errors = maps_and_errors([png_with_long_text(4, 4, 1 << 19)])
    assert errors == [b""]


def test_labels_above_255_have_16_bits():
    def labels(images):
        return tf.fill(tf.shape(images)[:3], 299)

    (png,), _ = label_encoded(tf.constant([PNG]), labels, 300, BOUNDS)
    decoded = tf.io.decode_png(png, dtype=tf.uint16).numpy()
    assert decoded.shape == (11, 7, 1)
    assert set(decoded.ravel()) == {299}
