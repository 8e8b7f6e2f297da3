"""Encoded pictures in a graph: their size from the header, then their pixels.

Images of one, three or four channels are plain JPEGs or PNGs. Images of other
channels are one grey PNG, the planes of the channels below each other, because no
picture format that TensorFlow decodes holds more than four.
"""

import io
import warnings
from typing import NamedTuple

import tensorflow as tf
from PIL import Image

# Pillow's name of a format to the official one. MPO is how many cameras write a
# JPEG, with a second picture behind the first.
IMAGE_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
# Headers of broken files promise anything; nobody labels more than 134 megapixels.
MAX_PIXELS = 1 << 27
# Pillow warns from 89 megapixels on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_PNG_CHANNELS = (1, 3, 4)
_JPEG_CHANNELS = (1, 3)
# A PNG begins with its signature and the chunk IHDR; of the latter: width, height,
# bits of a channel, kind of colour.
PNG_SIGNATURE = (*b"\x89PNG",)
PNG_HEADER_LENGTH = 26
_PNG_SIDES = (16, 20)
_BIG_ENDIAN = (1 << 24, 1 << 16, 1 << 8, 1)
_PNG_GREY = (8, 0)
_EXIF_ORIENTATION = 0x0112


class EncodedImage(NamedTuple):
    """An encoded image, and the fields of its record.

    Attributes:
        content: JPEG or PNG bytes.
        format: "jpeg" or "png".
        height: Height in pixels.
        width: Width in pixels.
        channels: Number of channels.
    """

    content: bytes
    format: str
    height: int
    width: int
    channels: int = 3


def _has_planes(channels: int) -> bool:
    return channels not in _PNG_CHANNELS


def png_format(content: bytes) -> tuple[int, int]:
    """Returns bits per channel and colour type of a PNG, (0, 0) for other files.

    Args:
        content: The first bytes of a file, at least 26 of them.
    """
    is_png = content[:4] == bytes(PNG_SIGNATURE) and len(content) >= PNG_HEADER_LENGTH
    return (content[24], content[25]) if is_png else (0, 0)


def _png_head(encoded):
    """Returns the first bytes of a PNG as int32; refuses what is shorter."""
    head = tf.io.decode_raw(tf.strings.substr(encoded, 0, PNG_HEADER_LENGTH), tf.uint8)
    return tf.cast(tf.ensure_shape(head, [PNG_HEADER_LENGTH]), tf.int32)


def png_size(head):
    """Returns int32 `[..., 2]`, height and width, negative beyond 2^31.

    Args:
        head: First bytes of PNGs, int32 `[..., PNG_HEADER_LENGTH]`.
    """
    width, height = (
        tf.reduce_sum(head[..., start : start + 4] * _BIG_ENDIAN, -1)
        for start in _PNG_SIDES
    )
    return tf.stack([height, width], -1)


def _bounded(size, planes: int, is_valid):
    """Returns a size after refusing what is invalid, or no size of a picture."""
    is_there = tf.reduce_all(size > 0)
    pixels = tf.reduce_prod(tf.cast(size, tf.float32))
    # The bare operation: this runs for every sample.
    refused = tf.raw_ops.Assert(
        condition=is_valid & is_there & (pixels <= float(MAX_PIXELS * planes)),
        data=["no picture of a possible size:", size],
    )
    with tf.control_dependencies([] if refused is None else [refused]):
        return tf.identity(size)


def read_image_size(encoded, channels: int = 3):
    """Returns int32 `[height, width]` of JPEG or PNG bytes, from the header alone.

    Args:
        encoded: Bytes, a string scalar.
        channels: Channels of the image.

    Raises:
        tf.errors.InvalidArgumentError: for what is neither, is empty, or promises
            more than `MAX_PIXELS` pixels.
    """

    def jpeg_size():
        return tf.image.extract_jpeg_shape(encoded)[:2], True

    def png_size():
        head = _png_head(encoded)
        return png_size(head), tf.reduce_all(head[:4] == PNG_SIGNATURE)

    size, valid = tf.cond(tf.io.is_jpeg(encoded), jpeg_size, png_size)
    planes = channels if _has_planes(channels) else 1
    size = _bounded(size, planes, valid)
    return size if planes == 1 else size // [planes, 1]


def decode_image(encoded, channels: int = 3, max_value: int = 255):
    """Returns the pixels of an image, `[height, width, channels]`.

    JPEGs are decoded with TensorFlow's default method, as the official pipeline
    does; an accurate one moves mIoU by up to 0.15 points.

    Args:
        encoded: JPEG or PNG bytes, a string scalar.
        channels: Channels of the image.
        max_value: As in `DatasetInfo`; beyond 255 the pixels are uint16, else uint8.

    Raises:
        tf.errors.InvalidArgumentError: for what cannot be decoded.
    """
    return decode_rows(encoded, 0, MAX_PIXELS, channels, max_value)[0]


def decode_rows(encoded, first, count, channels: int = 3, max_value: int = 255):
    """Returns some rows of an image, and the height and width of all of it.

    Args:
        encoded: JPEG or PNG bytes, a string scalar.
        first: First row, a scalar; at least one row of the image is returned.
        count: Number of rows, a scalar.
        channels: Channels of the image.
        max_value: As in `DatasetInfo`.

    Returns:
        Pixels `[rows, width, channels]` and the size, int32 `[2]`.
    """
    dtype = tf.uint8 if max_value < 256 else tf.uint16

    def jpeg():
        size = _bounded(tf.image.extract_jpeg_shape(encoded)[:2], 1, True)
        height, width = tf.unstack(size)
        top = tf.minimum(first, height - 1)
        # Skips the transforms of the other rows.
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

    Anything else would be read as brightness: of the colours of a palette, or of
    colours that stand for classes.

    Raises:
        tf.errors.InvalidArgumentError: for anything else.
    """
    head = _png_head(encoded)
    is_grey = tf.gather(head, [0, 1, 2, 3, 24, 25]) == [*PNG_SIGNATURE, *_PNG_GREY]
    size = _bounded(png_size(head), 1, tf.reduce_all(is_grey))
    with tf.control_dependencies([size]):
        return tf.io.decode_png(encoded, channels=1)


def encode_image(pixels) -> bytes:
    """Returns the PNG that `decode_image` decodes to these pixels.

    Args:
        pixels: uint8 or uint16 `[height, width, channels]`.
    """
    height, width, channels = pixels.shape
    if _has_planes(channels):
        pixels = pixels.transpose(2, 0, 1).reshape(channels * height, width, 1)
    return tf.io.encode_png(pixels).numpy()


def exif_orientation(encoded: bytes) -> int:
    """Returns how viewers turn an image: 1..8 as in EXIF, 1 being not at all."""
    try:
        exif = Image.open(io.BytesIO(encoded)).getexif()
        orientation = exif.get(_EXIF_ORIENTATION)
    except Exception:  # Pillow's parsers raise whatever they stumble over
        return 1
    # Some cameras write 0.
    return orientation if orientation in range(1, 9) else 1
