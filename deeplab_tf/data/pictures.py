"""Encoded pictures in a graph: their size from the header, then their pixels.

Images of one, three or four channels are plain JPEGs or PNGs. Images of other
channels are one grey PNG, the planes of the channels below each other, because no
picture format that TensorFlow decodes holds more than four.
"""

import tensorflow as tf

# Pillow's name of a format to the official one. MPO is how many cameras write a
# JPEG, with a second picture behind the first.
PICTURE_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
# Headers of broken files promise anything; nobody labels more than 134 megapixels.
MAX_PIXELS = 1 << 27
_PNG_CHANNELS = (1, 3, 4)
# Signature, and the chunk IHDR up to the kind of colour.
_PNG_HEAD = 26


def _has_planes(channels: int) -> bool:
    return channels not in _PNG_CHANNELS


def picture_size(encoded, channels: int = 3):
    """Returns int32 `[height, width]` of JPEG or PNG bytes, from the header alone.

    Args:
        encoded: Bytes, a string scalar.
        channels: Channels of the image.

    Raises:
        tf.errors.InvalidArgumentError: for what is neither, is empty, or promises
            more than `MAX_PIXELS` pixels.
    """
    is_jpeg = tf.io.is_jpeg(encoded)
    head = tf.strings.substr(encoded, 0, 24)

    def png_size():
        # Signature, length and name of the chunk IHDR, then width and height; zeros
        # where the file is shorter.
        sides = tf.strings.substr(tf.strings.join([head, b"\0" * 24]), 16, 8)
        sides = tf.io.decode_raw(sides, tf.int32, little_endian=False)
        return tf.ensure_shape(sides[::-1], [2])

    size = tf.cond(is_jpeg, lambda: tf.image.extract_jpeg_shape(encoded)[:2], png_size)
    planes = channels if _has_planes(channels) else 1
    height, width = tf.unstack(tf.cast(size, tf.int64))
    possible = (
        (is_jpeg | (tf.strings.substr(head, 0, 4) == b"\x89PNG"))
        & tf.reduce_all(size > 0)
        # Not their product, which may overflow.
        & (height <= MAX_PIXELS * planes // tf.maximum(width, 1))
    )
    message = ["no picture of a possible size:", size]
    with tf.control_dependencies([tf.debugging.Assert(possible, message)]):
        return size // [planes, 1]


def decode_image(encoded, channels: int = 3, max_value: int = 255, rows=None):
    """Returns the pixels of an image, `[height, width, channels]`.

    JPEGs are decoded with TensorFlow's default method, as the official pipeline
    does; an accurate one moves mIoU by up to 0.15 points.

    Args:
        encoded: JPEG or PNG bytes, a string scalar.
        channels: Channels of the image.
        max_value: As in `DatasetInfo`; beyond 255 the pixels are uint16, else uint8.
        rows: First row and number of rows to decode, int32 `[2]`; None is all.
    """
    size = picture_size(encoded, channels)
    dtype = tf.uint8 if max_value < 256 else tf.uint16
    if _has_planes(channels):
        planes = tf.io.decode_png(encoded, channels=1, dtype=dtype)
        planes = tf.reshape(planes, tf.concat([[channels], size], 0))
        return _rows(tf.transpose(planes, [1, 2, 0]), rows)

    def png():
        return _rows(tf.io.decode_png(encoded, channels=channels, dtype=dtype), rows)

    if dtype == tf.uint16 or channels == 4:
        return png()

    def jpeg():
        if rows is None:
            return tf.io.decode_jpeg(encoded, channels=channels)
        # Skips the transforms of the rows that are not asked for.
        window = tf.stack([rows[0], 0, rows[1], size[1]])
        return tf.io.decode_and_crop_jpeg(encoded, window, channels=channels)

    return tf.cond(tf.io.is_jpeg(encoded), jpeg, png)


def _rows(pixels, rows):
    return pixels if rows is None else pixels[rows[0] : rows[0] + rows[1]]


def decode_label(encoded):
    """Returns the uint8 class ids `[height, width, 1]` of a grey 8-bit PNG.

    Anything else would be read as brightness: of the colours of a palette, or of
    colours that stand for classes.

    Raises:
        tf.errors.InvalidArgumentError: for anything else.
    """
    head = tf.strings.substr(encoded, 0, _PNG_HEAD)
    # Zeros where the file is shorter.
    head = tf.strings.substr(tf.strings.join([head, b"\0" * _PNG_HEAD]), 0, _PNG_HEAD)
    head = tf.ensure_shape(tf.io.decode_raw(head, tf.uint8), [_PNG_HEAD])
    # Signature, depth and kind of colour.
    is_grey = tf.reduce_all(
        tf.gather(head, [0, 1, 2, 3, 24, 25]) == [*b"\x89PNG", 8, 0]
    )
    message = ["a label is a grey 8-bit PNG"]
    with tf.control_dependencies(
        [picture_size(encoded), tf.debugging.Assert(is_grey, message)]
    ):
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
