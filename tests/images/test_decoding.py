"""Encoded pictures: sizes from headers, pixels, and what is no picture."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from plain_records import ODD_EXIF, encoded

from deeplab_tf.images import decoding


def noise(*shape, depth=np.uint8):
    high = np.iinfo(depth).max + 1
    return np.random.RandomState(3).randint(0, high, shape).astype(depth)


def in_graph(function, *inputs):
    """Returns what a function gives inside tf.data."""
    dataset = tf.data.Dataset.from_tensors(inputs).map(function)
    return dataset.get_single_element().numpy()


def test_jpegs_are_decoded_by_tensorflows_default():
    jpeg = encoded(noise(40, 56, 3), "JPEG", quality=70)
    default = tf.io.decode_jpeg(jpeg, channels=3)
    accurate = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
    assert (default != accurate).numpy().any()
    np.testing.assert_array_equal(decoding.decode_image(tf.constant(jpeg)), default)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_grey_pictures_have_three_channels(file_format):
    grey = np.full((4, 6), 77)
    image = decoding.decode_image(tf.constant(encoded(grey, file_format)))
    np.testing.assert_array_equal(image, np.full((4, 6, 3), 77))


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8])
def test_any_channels_of_both_depths_come_back(channels, depth):
    image = noise(7, 9, channels, depth=depth)
    png = decoding.encode_image(image)
    most = np.iinfo(depth).max
    decoded = in_graph(lambda x: decoding.decode_image(x, channels, most), png)
    assert decoded.dtype == depth
    np.testing.assert_array_equal(decoded, image)
    size = in_graph(lambda x: decoding.read_image_size(x, channels), png)
    assert size.tolist() == [7, 9]
    rows = in_graph(lambda x: decoding.decode_rows(x, 2, 4, channels, most)[0], png)
    np.testing.assert_array_equal(rows, image[2:6])


@pytest.mark.parametrize("subsampling", [0, 1, 2])  # 4:4:4, 4:2:2, 4:2:0
@pytest.mark.parametrize("progressive", [False, True])
def test_rows_of_a_jpeg_are_those_of_the_whole(subsampling, progressive):
    options = {"subsampling": subsampling, "progressive": progressive, "quality": 80}
    jpeg = tf.constant(encoded(noise(61, 47, 3), "JPEG", **options))
    whole = decoding.decode_image(jpeg).numpy()
    for first in range(0, 61, 7):
        for count in (1, 2, 16, 61 - first):
            count = min(count, 61 - first)
            rows, size = decoding.decode_rows(jpeg, first, count)
            np.testing.assert_array_equal(rows, whole[first : first + count])
            assert tuple(size) == whole.shape[:2]


def test_rows_of_real_jpegs_are_those_of_the_whole(voc_root):
    random = np.random.default_rng(0)
    for path in sorted((voc_root / "JPEGImages").iterdir())[:20]:
        jpeg = tf.constant(path.read_bytes())
        whole = decoding.decode_image(jpeg).numpy()
        first = random.integers(len(whole))
        count = random.integers(1, len(whole) - first + 1)
        rows, _ = decoding.decode_rows(jpeg, first, count)
        np.testing.assert_array_equal(rows, whole[first : first + count])


def header(width, height):
    png = encoded(noise(3, 3))
    return png[:16] + struct.pack(">II", width, height) + png[24:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        header(0, 5),
        header(1 << 31, 5),
        header(1 << 30, 1 << 30),
        header(12000, 12000),
        encoded(noise(9, 9, 3), "JPEG")[:10],
        encoded(noise(9, 9, 3), "GIF"),
    ],
)
def test_what_is_no_picture_of_a_possible_size_is_refused(content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        in_graph(decoding.decode_image, content)


def test_labels_are_indices():
    label = noise(5, 6)
    decoded = in_graph(decoding.decode_label, encoded(label))
    np.testing.assert_array_equal(decoded[..., 0], label)


def picture(mode, file_format="PNG"):
    file = io.BytesIO()
    Image.fromarray(noise(5, 6) % 2).convert(mode).save(file, file_format)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["P", "RGB", "LA", "1", "I;16"])
def test_labels_that_would_be_read_as_brightness_are_refused(mode):
    with pytest.raises(tf.errors.InvalidArgumentError, match="possible size"):
        in_graph(decoding.decode_label, picture(mode))


@pytest.mark.parametrize("content", [b"", b"\x89PNG", picture("L", "JPEG")])
def test_labels_that_are_no_png_are_refused(content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        in_graph(decoding.decode_label, content)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(9, 9, 3), "JPEG", exif=exif)


def test_the_orientation_is_that_of_exif():
    found = [decoding.exif_orientation(turned(i)) for i in range(1, 9)]
    assert found == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "content",
    [
        turned(0),
        turned(9),
        encoded(noise(9, 9, 3), "JPEG"),
        encoded(noise(9, 9, 3), "JPEG", exif=ODD_EXIF),
        b"\xff\xd8\xff",
    ],
)
def test_what_says_no_orientation_is_upright(content):
    assert decoding.exif_orientation(content) == 1
