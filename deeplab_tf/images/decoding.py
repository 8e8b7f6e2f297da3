"""Decodes images in a graph, after checking the size in the header.

Images with one, three or four channels are ordinary JPEGs or PNGs. Images with another
number of channels are a greyscale PNG with the channels stacked vertically, because no
format that TensorFlow decodes has more than four.
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

# Maps Pillow's format names to the official ones. Many cameras write MPO, a JPEG
# followed by a second image.
IMAGE_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
# 134 megapixels. Broken headers may claim any size.
MAX_PIXELS = 1 << 27
# Pillow warns above 89 megapixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Our errors already say what is wrong with a file.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
_PNG_CHANNELS = (1, 3, 4)
_JPEG_CHANNELS = (1, 3)
# A PNG starts with a signature and the IHDR chunk: width, height, bits per channel and
# colour type.
PNG_SIGNATURE = (*b"\x89PNG",)
PNG_HEADER_LENGTH = 26
_PNG_SIDES = (16, 20)
_BIG_ENDIAN = (1 << 24, 1 << 16, 1 << 8, 1)
_PNG_GREY = (8, 0)
_EXIF_ORIENTATION = 0x0112
# EXIF orientation -> function that turns the stored image upright.
_UPRIGHT = {
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: lambda x: np.rot90(x, 1),
}


class EncodedImage(NamedTuple):
    """JPEG or PNG bytes of an image, as in a record.

    Attributes:
        content: The encoded image.
        format: "jpeg" or "png".
        height: Height in pixels.
        width: Width in pixels.
        channels: Number of channels.
        source: Format of the original file, a name in `formats.FORMATS`.
        orientation: EXIF orientation of the pixels, 1..8; 1 is upright.
        turned_from: EXIF orientation of the original file if it was turned upright.
    """

    content: bytes
    format: str
    height: int
    width: int
    channels: int = 3
    source: str = "PNG"
    orientation: int = 1
    turned_from: int = 1


def _has_planes(channels: int) -> bool:
    """Returns whether channels are stored as grey planes, stacked vertically."""
    return channels not in _PNG_CHANNELS


def read_png_format(content: bytes) -> tuple[int, int]:
    """Returns bits per channel and colour type of a PNG; (0, 0) for other files."""
    is_png = content[:4] == bytes(PNG_SIGNATURE) and len(content) >= PNG_HEADER_LENGTH
    return (content[24], content[25]) if is_png else (0, 0)


def _png_header(encoded):
    """Returns the first bytes of a PNG, int32; fails if there are too few."""
    head = tf.io.decode_raw(tf.strings.substr(encoded, 0, PNG_HEADER_LENGTH), tf.uint8)
    return tf.cast(tf.ensure_shape(head, [PNG_HEADER_LENGTH]), tf.int32)


def parse_png_size(header):
    """Returns the height and width in the headers of PNGs, int32 `[..., 2]`.

    `header` has the first bytes of each file, int32 `[..., PNG_HEADER_LENGTH]`. Sides
    of 2^31 and more become negative.
    """
    width, height = (
        tf.reduce_sum(header[..., start : start + 4] * _BIG_ENDIAN, -1)
        for start in _PNG_SIDES
    )
    return tf.stack([height, width], -1)


def _check_size(size, planes: int, is_valid):
    """Returns a size; fails if it is invalid, empty or too large."""
    is_positive = tf.reduce_all(size > 0)
    pixels = tf.reduce_prod(tf.cast(size, tf.float32))
    # tf.debugging.assert costs several operations, and this runs for every sample.
    assertion = tf.raw_ops.Assert(
        condition=is_valid & is_positive & (pixels <= float(MAX_PIXELS * planes)),
        data=["not an image, or its size is invalid:", size],
    )
    with tf.control_dependencies([] if assertion is None else [assertion]):
        return tf.identity(size)


def read_image_size(encoded, channels: int = 3):
    """Returns the int32 `[height, width]` in the header of a JPEG or PNG.

    Raises:
        tf.errors.InvalidArgumentError: if the file is neither a JPEG nor a PNG, or the
            image is empty or has more than `MAX_PIXELS` pixels.
    """

    def read_jpeg():
        return tf.image.extract_jpeg_shape(encoded)[:2], True

    def read_png():
        header = _png_header(encoded)
        return parse_png_size(header), tf.reduce_all(header[:4] == PNG_SIGNATURE)

    size, is_valid = tf.cond(tf.io.is_jpeg(encoded), read_jpeg, read_png)
    planes = channels if _has_planes(channels) else 1
    size = _check_size(size, planes, is_valid)
    return size if planes == 1 else size // [planes, 1]


def decode_image(encoded, channels: int = 3, max_value: int = 255):
    """Returns the pixels of a JPEG or PNG, `[height, width, channels]`.

    The result is uint8, or uint16 if `max_value` is above 255. JPEGs are decoded with
    TensorFlow's default DCT method, as in the official pipeline; the accurate method
    changes mIoU by up to 0.15 points.

    Raises:
        tf.errors.InvalidArgumentError: if the image cannot be decoded.
    """
    return decode_rows(encoded, 0, MAX_PIXELS, channels, max_value)[0]


def decode_rows(encoded, first, count, channels: int = 3, max_value: int = 255):
    """Decodes up to `count` rows of a JPEG or PNG from row `first`.

    Returns:
        Pixels `[rows, width, channels]`, and the size of the full image, int32 `[2]`.
    """
    dtype = tf.uint8 if max_value < 256 else tf.uint16

    def jpeg():
        size = _check_size(tf.image.extract_jpeg_shape(encoded)[:2], 1, True)
        height, width = tf.unstack(size)
        top = tf.minimum(first, height - 1)
        # This skips the inverse transforms of the other rows.
        window = tf.stack([top, 0, tf.minimum(count, height - top), width])
        return tf.io.decode_and_crop_jpeg(encoded, window, channels=channels), size

    def png():
        with tf.control_dependencies([read_image_size(encoded, channels)]):
            pixels = _decode_png(encoded, channels, dtype)
        top = tf.minimum(first, tf.shape(pixels)[0] - 1)
        return pixels[top : top + count], tf.shape(pixels)[:2]

    if dtype == tf.uint16 or channels not in _JPEG_CHANNELS:
        return png()
    return tf.cond(tf.io.is_jpeg(encoded), jpeg, png)


def _decode_png(encoded, channels: int, dtype):
    if not _has_planes(channels):
        return tf.io.decode_png(encoded, channels=channels, dtype=dtype)
    planes = tf.io.decode_png(encoded, channels=1, dtype=dtype)
    height, width = tf.unstack(tf.shape(planes)[:2])
    planes = tf.reshape(planes, [channels, height // channels, width])
    return tf.transpose(planes, [1, 2, 0])


def decode_label(encoded):
    """Returns the uint8 class ids `[height, width, 1]` of a grey 8-bit PNG.

    Fails for other images, whose colours TensorFlow would convert to brightness.
    """
    header = _png_header(encoded)
    is_grey = tf.gather(header, [0, 1, 2, 3, 24, 25]) == [*PNG_SIGNATURE, *_PNG_GREY]
    size = _check_size(parse_png_size(header), 1, tf.reduce_all(is_grey))
    with tf.control_dependencies([size]):
        return tf.io.decode_png(encoded, channels=1)


def encode_image(pixels) -> bytes:
    """Encodes uint8 or uint16 pixels `[height, width, channels]` as a PNG."""
    height, width, channels = pixels.shape
    if _has_planes(channels):
        pixels = pixels.transpose(2, 0, 1).reshape(channels * height, width, 1)
    return tf.io.encode_png(pixels).numpy()


def read_exif_orientation(image: bytes | Image.Image | Image.Exif) -> int:
    """Returns the EXIF orientation of an image, 1..8; 1 is upright."""
    try:
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image))
        exif = image if isinstance(image, Image.Exif) else image.getexif()
        orientation = exif.get(_EXIF_ORIENTATION)
    except Exception:  # Pillow may raise any exception
        return 1
    # Some cameras write 0.
    return orientation if orientation in range(1, 9) else 1


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image `[height, width, ...]` with an EXIF orientation upright."""
    return np.ascontiguousarray(_UPRIGHT.get(orientation, np.asarray)(image))
