"""Decodes images and labels, reads their sizes and refuses invalid ones."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from record_files import INVALID_EXIF, encode_image

from deeplab_tf.images import decoding


def noise(*shape, depth=np.uint8):
    high = np.iinfo(depth).max + 1
    return np.random.RandomState(3).randint(0, high, shape).astype(depth)


def run_in_graph(function, *inputs):
    """Returns the result of a function inside tf.data."""
    dataset = tf.data.Dataset.from_tensors(inputs).map(function)
    return dataset.get_single_element().numpy()


def test_jpegs_use_tensorflows_default_dct():
    jpeg = encode_image(noise(40, 56, 3), "JPEG", quality=70)
    default = tf.io.decode_jpeg(jpeg, channels=3)
    accurate = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
    assert (default != accurate).numpy().any()
    np.testing.assert_array_equal(decoding.decode_image(tf.constant(jpeg)), default)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_grey_images_are_decoded_to_three_channels(file_format):
    grey = np.full((4, 6), 77)
    image = decoding.decode_image(tf.constant(encode_image(grey, file_format)))
    np.testing.assert_array_equal(image, np.full((4, 6, 3), 77))


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8])
def test_any_channel_count_and_depth_round_trips(channels, depth):
    image = noise(7, 9, channels, depth=depth)
    png = decoding.encode_image(image)
    max_value = np.iinfo(depth).max
    decoded = run_in_graph(lambda x: decoding.decode_image(x, channels, max_value), png)
    assert decoded.dtype == depth
    np.testing.assert_array_equal(decoded, image)
    size = run_in_graph(lambda x: decoding.read_image_size(x, channels), png)
    assert size.tolist() == [7, 9]
    rows = run_in_graph(
        lambda x: decoding.decode_rows(x, 2, 4, channels, max_value)[0], png
    )
    np.testing.assert_array_equal(rows, image[2:6])


@pytest.mark.parametrize("subsampling", [0, 1, 2])  # 4:4:4, 4:2:2, 4:2:0
@pytest.mark.parametrize("progressive", [False, True])
def test_rows_of_a_jpeg_match_the_full_image(subsampling, progressive):
    options = {"subsampling": subsampling, "progressive": progressive, "quality": 80}
    jpeg = tf.constant(encode_image(noise(61, 47, 3), "JPEG", **options))
    expected = decoding.decode_image(jpeg).numpy()
    for first in range(0, 61, 7):
        for count in (1, 2, 16, 61 - first):
            count = min(count, 61 - first)
            rows, size = decoding.decode_rows(jpeg, first, count)
            np.testing.assert_array_equal(rows, expected[first : first + count])
            assert tuple(size) == expected.shape[:2]


def test_rows_of_real_jpegs_match_the_full_image(voc_root):
    random = np.random.default_rng(0)
    for path in sorted((voc_root / "JPEGImages").iterdir())[:20]:
        jpeg = tf.constant(path.read_bytes())
        expected = decoding.decode_image(jpeg).numpy()
        first = random.integers(len(expected))
        count = random.integers(1, len(expected) - first + 1)
        rows, _ = decoding.decode_rows(jpeg, first, count)
        np.testing.assert_array_equal(rows, expected[first : first + count])


def png_with_size(width, height):
    png = encode_image(noise(3, 3))
    return png[:16] + struct.pack(">II", width, height) + png[24:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        png_with_size(0, 5),
        png_with_size(1 << 31, 5),
        png_with_size(1 << 30, 1 << 30),
        png_with_size(12000, 12000),
        encode_image(noise(9, 9, 3), "JPEG")[:10],
        encode_image(noise(9, 9, 3), "GIF"),
    ],
)
def test_invalid_images_and_sizes_are_refused(content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        run_in_graph(decoding.decode_image, content)


def test_labels_are_decoded_as_indices():
    label = noise(5, 6)
    decoded = run_in_graph(decoding.decode_label, encode_image(label))
    np.testing.assert_array_equal(decoded[..., 0], label)


def encode_mode(mode, file_format="PNG"):
    file = io.BytesIO()
    Image.fromarray(noise(5, 6) % 2).convert(mode).save(file, file_format)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["P", "RGB", "LA", "1", "I;16"])
def test_labels_that_are_not_8_bit_grey_are_refused(mode):
    with pytest.raises(tf.errors.InvalidArgumentError, match="size is invalid"):
        run_in_graph(decoding.decode_label, encode_mode(mode))


@pytest.mark.parametrize("content", [b"", b"\x89PNG", encode_mode("L", "JPEG")])
def test_labels_that_are_not_png_are_refused(content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        run_in_graph(decoding.decode_label, content)


def jpeg_with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode_image(noise(9, 9, 3), "JPEG", exif=exif)


def test_orientation_is_read_from_exif():
    found = [
        decoding.read_exif_orientation(jpeg_with_orientation(i)) for i in range(1, 9)
    ]
    assert found == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "content",
    [
        jpeg_with_orientation(0),
        jpeg_with_orientation(9),
        encode_image(noise(9, 9, 3), "JPEG"),
        encode_image(noise(9, 9, 3), "JPEG", exif=INVALID_EXIF),
        b"\xff\xd8\xff",
    ],
)
def test_missing_or_invalid_orientation_is_upright(content):
    assert decoding.read_exif_orientation(content) == 1
