"""Converts image files to the JPEGs and PNGs of records without loss."""

import functools
import io
import os

import numpy as np
import tensorflow as tf
from PIL import Image

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds
from deeplab_tf.images import decoding, formats, image_files, pixels
from deeplab_tf.images.decoding import EncodedImage

_Path = str | os.PathLike[str]
# TensorFlow logs a line for a JPEG without it, even if the error is handled.
_JPEG_END = b"\xff\xd9"


def read_encoded(
    path: _Path, info: DatasetInfo, apply_exif: bool = False
) -> EncodedImage:
    """Reads an image file and encodes it for a record; see `encode`."""
    content = file_kinds.read_bytes(path)
    return encode(path, content, info.channels, info.max_value, apply_exif)


def encode(
    path: _Path,
    content: bytes,
    channels: int = 3,
    max_value: int = 255,
    apply_exif: bool = False,
) -> EncodedImage:
    """Encodes an image for a record.

    If the dataset has one or three channels, 8-bit JPEGs and PNGs are kept byte for
    byte. All other images become PNGs with the same pixels.

    Args:
        path: Path of the file, for its suffix and for errors.
        content: Content of the file.
        channels: Number of channels of the dataset.
        max_value: Largest pixel value of the dataset.
        apply_exif: Whether to turn the image upright. A rotated image becomes a
            PNG, because a JPEG can be rotated without loss only if its sides are
            multiples of its block size. The PNG has exactly the pixels that training
            decodes from the JPEG.

    Raises:
        UserError: if the file is broken, or its channels or values do not fit. JPEGs
            and PNGs that are kept may still fail in `decode`.
    """
    image = open_header(path, content)
    is_kept = (
        image is not None
        and image.format in decoding.IMAGE_FORMATS
        # TensorFlow would keep only the upper byte of each 16-bit value.
        and decoding.read_png_format(content)[0] != 16
        and channels in (1, 3)
        and max_value < 256
    )
    if image is not None and is_kept:
        orientation = decoding.read_exif_orientation(image)
        if image.format != "PNG" and not content.endswith(_JPEG_END):
            image_files.decode(path, image)
        name = decoding.IMAGE_FORMATS[image.format]
        sizes = (image.height, image.width, channels)
        encoded = EncodedImage(content, name, *sizes, image.format, orientation)
    else:
        array, orientation = pixels.read_array(path, content, image, channels)
        encoded = encode_array(path, array, channels, max_value)
        other = "NPY" if formats.is_npy(path) else "TIFF"
        source = other if image is None else image.format
        encoded = encoded._replace(source=source, orientation=orientation)
    return turn_upright(path, encoded, max_value) if apply_exif else encoded


def open_header(path: _Path, content: bytes) -> Image.Image | None:
    """Opens an image; returns None for .npy files and TIFFs that Pillow cannot open."""
    if formats.is_npy(path):
        return None
    try:
        image = image_files.open_image(path, io.BytesIO(content))
    except image_files.TooLargeError:
        raise
    except UserError:
        if formats.is_tiff(content):
            return None
        raise
    image_files.require_image_format(path, image)
    return image


def turn_upright(path: _Path, image: EncodedImage, max_value: int) -> EncodedImage:
    """Applies the EXIF orientation of an image; a rotated image becomes a PNG."""
    if image.orientation == 1:
        return image
    upright = decoding.turn_upright(decode(path, image, max_value), image.orientation)
    height, width, channels = upright.shape
    png = decoding.encode_image(upright)
    sizes = (height, width, channels)
    return EncodedImage(png, "png", *sizes, image.source, 1, image.orientation)


@functools.cache
def _compile_decoder(channels: int, max_value: int) -> tf.types.experimental.Callable:
    """Compiles `decode_image`, which is ten times faster than running it eagerly."""
    function = tf.function(
        lambda content: decoding.decode_image(content, channels, max_value),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )
    return function.get_concrete_function()


def decode(path: _Path, image: EncodedImage, max_value: int = 255) -> np.ndarray:
    """Decodes an image to the pixels that training reads, `[height, width, channels]`.

    Raises:
        UserError: if TensorFlow cannot decode the image.
    """
    decode_one = _compile_decoder(image.channels, max_value)
    try:
        return decode_one(tf.constant(image.content)).numpy()
    except tf.errors.InvalidArgumentError:
        pass
    # The messages of Pillow and of eager TensorFlow are clearer.
    image_files.load_image(path, image.content)
    try:
        return decoding.decode_image(image.content, image.channels, max_value).numpy()
    except tf.errors.InvalidArgumentError as error:
        # TensorFlow cannot decode every file that Pillow can.
        raise UserError(
            f"{path} cannot be decoded by TensorFlow: {error.message}; save it again "
            "as a PNG"
        ) from error


def encode_array(
    path: _Path, array: np.ndarray, channels: int, max_value: int
) -> EncodedImage:
    """Encodes pixels `[height, width, channels]` as a PNG for a record.

    Raises:
        UserError: if their channels or values do not fit the dataset.
    """
    check_array(path, array, channels, max_value)
    pixels.check_pixel_count(path, array.shape, channels)
    depth = np.uint8 if max_value < 256 else np.uint16
    height, width = array.shape[:2]
    png = decoding.encode_image(array.astype(depth))
    return EncodedImage(png, "png", height, width, channels)


def check_array(path: _Path, array: np.ndarray, channels: int, max_value: int) -> None:
    """Raises UserError unless the channels and values of pixels fit the dataset."""
    if array.ndim != 3 or array.shape[2] != channels or not array.size:
        raise UserError(
            f"{path} has the shape {array.shape}; images must be height x width x "
            f"{channels} channels"
        )
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise UserError(
            f"{path} has {array.dtype} pixels; images must be uint8 or uint16"
        )
    if array.max() > max_value:
        raise UserError(
            f"{path} has the value {array.max()}, but max_value is {max_value}"
        )
    if array.dtype.itemsize == 1 and max_value > 255:
        # The image would be nearly black compared with 16-bit images.
        raise UserError(
            f"{path} has 8 bits per channel, but max_value={max_value} needs 16; "
            "convert the image to 16 bits, or set max_value to at most 255"
        )
