"""Reads and checks the image and label files of users."""

import io
import math
import os
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from etils import epath
from PIL import Image

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds, text_files
from deeplab_tf.images import decoding

_ARRAYS = (".npy", ".tif", ".tiff")
_Path = str | os.PathLike[str]


def open_image(path: _Path, file: BinaryIO) -> Image.Image:
    """Opens an image of any format, reading only its header.

    Raises:
        UserError: if it is not an image, or has more than `decoding.MAX_PIXELS`.
    """
    too_large = (
        f"{path} has too many pixels; at most {decoding.MAX_PIXELS:,} are allowed"
    )
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise UserError(too_large) from error
    # A GFile at its end raises the last of these, Pillow's decoders raise the rest.
    except (OSError, SyntaxError, ValueError, tf.errors.OutOfRangeError) as error:
        size = file_kinds.file_size(file)
        reason = f"its {size} bytes are not an image" if size else "it is empty"
        raise UserError(f"{path} is broken: {reason}") from error
    if image.width * image.height > decoding.MAX_PIXELS:
        raise UserError(
            f"{path} has {image.width}x{image.height} pixels; at most "
            f"{decoding.MAX_PIXELS:,} are allowed"
        )
    return image


def load_image(path: _Path, content: bytes) -> Image.Image:
    """Decodes a JPEG or PNG; `path` names it in errors.

    Raises:
        UserError: if it is broken, too large or has another format.
    """
    image = open_image(path, io.BytesIO(content))
    require_image_format(path, image)
    return decode(path, image)


def require_image_format(path: _Path, image: Image.Image) -> None:
    """Raises `UserError` unless an image is a JPEG or PNG."""
    if image.format not in decoding.IMAGE_FORMATS:
        raise UserError(f"{path} is {image.format}; images must be JPEG or PNG")


def load_label(path: _Path, content: bytes) -> Image.Image:
    """Decodes a PNG; `path` names it in errors.

    Raises:
        UserError: if it is broken, too large or has another format.
    """
    image = open_image(path, io.BytesIO(content))
    if image.format != "PNG":
        # Lossy formats turn class ids into other class ids.
        raise UserError(f"{path} is {image.format}; labels must be PNG")
    return decode(path, image)


def decode(path: _Path, image: Image.Image) -> Image.Image:
    """Reads the pixels of an opened image; raises UserError if it is broken."""
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise anything
        raise UserError(f"{path} is broken: {error}") from error
    return image


def read_names(path: epath.Path) -> list[str]:
    """Returns the names in a text file, which are separated by whitespace."""
    return text_files.read_words(os.fspath(path))


def read_index_label(path: epath.Path) -> np.ndarray:
    """Returns the class ids of a PNG, uint8 `[height, width]`; a palette gives indices.

    Raises:
        UserError: if the file is broken or in colour.
    """
    content = file_kinds.read_bytes(path)
    return to_class_ids(path, load_label(path, content), content)


# Pillow stretches grey PNGs of 2 and 4 bits to 0..255.
_STRETCH = {2: 85, 4: 17}


def to_class_ids(path: epath.Path, image: Image.Image, content: bytes) -> np.ndarray:
    """Returns the class ids of an `image` from `load_label`, uint8 `[height, width]`.

    Raises:
        UserError: if the label is in colour.
    """
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise UserError(
            f"{path} has mode {image.mode}; a label must be a PNG with a palette or "
            "one channel of class ids"
        )
    label = np.array(image)
    if image.mode == "L":
        label //= _STRETCH.get(decoding.png_format(content)[0], 1)
    if label.max() > 255:
        raise UserError(f"{path} has the value {label.max()}; class ids are 0..255")
    return label.astype(np.uint8)


def _read_array(path: _Path, content: bytes, channels: int) -> np.ndarray:
    """Returns the pixels of an image of any depth, `[height, width, channels]`."""
    if _lower_suffix(path) == ".npy":
        array = _read_npy(path, content)
    elif _lower_suffix(path) in (".tif", ".tiff"):
        array = _read_tiff(path, content, channels)
    else:
        array = _read_png(path, content)
    return array[..., None] if array.ndim == 2 else array


def _lower_suffix(path: _Path) -> str:
    return os.path.splitext(os.fspath(path))[1].lower()


def _read_npy(path: _Path, content: bytes) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(content))
    except Exception as error:  # headers are parsed as Python code
        raise UserError(f"{path} is broken: {error}") from error


def _read_tiff(path: _Path, content: bytes, channels: int) -> np.ndarray:
    try:
        import tifffile
    except ImportError as error:
        raise UserError(
            f"{path} is a TIFF, which needs more packages; run "
            f"pip install 'deeplab_tf[tiff]' ({error})"
        ) from error
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            _check_shape(path, series.shape, channels)
            array, axes = series.asarray(), series.axes
            photometric = series.keyframe.photometric
    except UserError:
        raise
    except Exception as error:  # tifffile raises anything
        raise UserError(f"{path} is broken: {error}") from error
    if photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise UserError(f"{path} has a palette; save its colours as channels")
    # Pages and separate channels come first.
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and axes[-1] == "X" else array


def _check_shape(path: _Path, shape: tuple[int, ...], channels: int) -> None:
    if math.prod(shape) > decoding.MAX_PIXELS * channels:
        raise UserError(
            f"{path} has the shape {shape}; at most {decoding.MAX_PIXELS:,} pixels "
            "are allowed"
        )


def _read_png(path: _Path, content: bytes) -> np.ndarray:
    require_image_format(path, open_image(path, io.BytesIO(content)))
    dtype = tf.uint16 if decoding.png_format(content)[0] == 16 else tf.uint8
    try:
        return tf.io.decode_png(content, dtype=dtype).numpy()
    except tf.errors.InvalidArgumentError as error:
        load_image(path, content)  # its message is clearer
        raise UserError(f"{path} is broken: {error.message}") from error


def read_encoded(path: _Path, info: DatasetInfo) -> decoding.EncodedImage:
    """Returns an image file as it goes into a record; see `encode`."""
    content = file_kinds.read_bytes(path)
    return encode(path, content, info.channels, info.max_value)


def encode(
    path: _Path, content: bytes, channels: int = 3, max_value: int = 255
) -> decoding.EncodedImage:
    """Returns an image as it goes into a record.

    Keeps the bytes of JPEGs and PNGs with one or three 8-bit channels; other images,
    including .npy and .tif, become PNGs. `channels` and `max_value` are those of the
    dataset.

    Raises:
        UserError: if the file is broken, or the image has other channels or values.
    """
    if max_value > 255 or channels not in (1, 3) or _lower_suffix(path) in _ARRAYS:
        return _encode_array(path, content, channels, max_value)
    if decoding.png_format(content)[0] == 16:
        # TensorFlow would decode it to the upper byte of each value.
        return _encode_array(path, content, channels, max_value)
    image = load_image(path, content)
    return decoding.EncodedImage(
        content,
        decoding.IMAGE_FORMATS[image.format],
        image.height,
        image.width,
        channels,
    )


def _encode_array(
    path: _Path, content: bytes, channels: int, max_value: int
) -> decoding.EncodedImage:
    array = _read_array(path, content, channels)
    if array.ndim != 3 or array.shape[2] != channels or not array.size:
        raise UserError(
            f"{path} has the shape {array.shape}; images must be height x width x "
            f"{channels} channels"
        )
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise UserError(f"{path} holds {array.dtype}; images must be uint8 or uint16")
    _check_shape(path, array.shape, channels)
    if array.max() > max_value:
        raise UserError(
            f"{path} has the value {array.max()}, but max_value is {max_value}"
        )
    if array.dtype.itemsize == 1 and max_value > 255:
        # It would be nearly black compared to images of 16 bits.
        raise UserError(f"{path} has 8 bits, but max_value is {max_value}")
    depth = np.uint8 if max_value < 256 else np.uint16
    height, width, channels = array.shape
    png = decoding.encode_image(array.astype(depth))
    return decoding.EncodedImage(png, "png", height, width, channels)


def orientation_hint(path: epath.Path) -> str:
    """Returns a hint for the error if EXIF swaps width and height, else ""."""
    if _lower_suffix(path) in _ARRAYS:
        return ""
    is_rotated = decoding.exif_orientation(file_kinds.read_bytes(path)) > 4
    hint = " before its EXIF rotation; rotate the pixels themselves"
    return hint if is_rotated else ""
