"""Images and labels of anyone's files, before they are records."""

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
    """Returns an image of any format, of which only the header was read.

    Args:
        path: Names the file in errors.
        file: The open file.

    Raises:
        UserError: if it is not an image, or has more than `decoding.MAX_PIXELS`.
    """
    too_large = f"{path} has too many pixels; at most {decoding.MAX_PIXELS:,} are read"
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise UserError(too_large) from error
    # A GFile raises the last one at its end, and Pillow's decoders whatever they meet.
    except (OSError, SyntaxError, ValueError, tf.errors.OutOfRangeError) as error:
        size = file_kinds.file_size(file)
        reason = f"its {size} bytes are not an image" if size else "it is empty"
        raise UserError(f"{path} is broken: {reason}") from error
    if image.width * image.height > decoding.MAX_PIXELS:
        raise UserError(
            f"{path} has {image.width}x{image.height} pixels; at most "
            f"{decoding.MAX_PIXELS:,} are read"
        )
    return image


def load_image(path: _Path, content: bytes) -> Image.Image:
    """Returns a JPEG or PNG after decoding all of it.

    Args:
        path: Names the file in errors.
        content: Its bytes.

    Raises:
        UserError: if it is broken, too large or of another format.
    """
    image = open_image(path, io.BytesIO(content))
    require_image_format(path, image)
    return _load(path, image)


def require_image_format(path: _Path, image: Image.Image) -> None:
    """Raises `UserError` for an image that is neither JPEG nor PNG."""
    if image.format not in decoding.IMAGE_FORMATS:
        raise UserError(f"{path} is {image.format}; images are JPEG or PNG")


def load_label(path: _Path, content: bytes) -> Image.Image:
    """Returns a PNG after decoding all of it.

    Args:
        path: Names the file in errors.
        content: Its bytes.

    Raises:
        UserError: if it is broken, too large or of another format.
    """
    image = open_image(path, io.BytesIO(content))
    if image.format != "PNG":
        # Lossy formats smear class ids into other class ids.
        raise UserError(f"{path} is {image.format}; labels are PNG")
    return _load(path, image)


def _load(path: _Path, image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise whatever they meet
        raise UserError(f"{path} is broken: {error}") from error
    return image


def read_names(path: epath.Path) -> list[str]:
    """Returns the words of a list of names.

    Raises:
        UserError: if it is not text; names the line.
    """
    return text_files.read_words(os.fspath(path))


def read_index_label(path: epath.Path) -> np.ndarray:
    """Returns the class ids of a label PNG, uint8 `[height, width]`.

    Args:
        path: PNG with a palette (read as indices) or with one channel.

    Raises:
        UserError: if the file is broken or in colour.
    """
    content = file_kinds.read_bytes(path)
    return to_class_ids(path, load_label(path, content), content)


# Pillow stretches grey PNGs of 2 and 4 bits to 0..255.
_STRETCH = {2: 85, 4: 17}


def to_class_ids(path: epath.Path, image: Image.Image, content: bytes) -> np.ndarray:
    """Returns the class ids of a label that was loaded already.

    Args:
        path: As in `read_index_label`; names the file in errors.
        image: What `load_label` returned for it.
        content: Its bytes.

    Raises:
        UserError: if the label is in colour.
    """
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise UserError(
            f"{path} has mode {image.mode}; a label is a PNG with a palette or "
            "one channel of class ids"
        )
    label = np.array(image)
    if image.mode == "L":
        label //= _STRETCH.get(decoding.png_format(content)[0], 1)
    if label.max() > 255:
        raise UserError(f"{path} has the value {label.max()}; class ids end at 255")
    return label.astype(np.uint8)


def _read_array(path: _Path, content: bytes, channels: int) -> np.ndarray:
    """Returns the pixels `[height, width, channels]` of an image of any depth."""
    if _suffix(path) == ".npy":
        array = _read_npy(path, content)
    elif _suffix(path) in (".tif", ".tiff"):
        array = _read_tiff(path, content, channels)
    else:
        array = _read_png(path, content)
    return array[..., None] if array.ndim == 2 else array


def _suffix(path: _Path) -> str:
    return os.path.splitext(os.fspath(path))[1].lower()


def _read_npy(path: _Path, content: bytes) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(content))
    except Exception as error:  # headers are parsed as Python and fail as such
        raise UserError(f"{path} is broken: {error}") from error


def _read_tiff(path: _Path, content: bytes, channels: int) -> np.ndarray:
    try:
        import tifffile
    except ImportError as error:
        raise UserError(
            f"{path}: TIFFs need pip install 'deeplab_tf[tiff]' ({error})"
        ) from error
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            _bound_values(path, series.shape, channels)
            array, axes = series.asarray(), series.axes
            photometric = series.keyframe.photometric
    except UserError:
        raise
    except Exception as error:  # tifffile raises whatever it meets
        raise UserError(f"{path} is broken: {error}") from error
    if photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise UserError(f"{path} has a palette; an image has its colours in channels")
    # Pages, or planes of separate channels, come first.
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and axes[-1] == "X" else array


def _bound_values(path: _Path, shape: tuple[int, ...], channels: int) -> None:
    """Refuses a shape, as a header promises it, of too many values."""
    if math.prod(shape) > decoding.MAX_PIXELS * channels:
        raise UserError(
            f"{path} has the shape {shape}; at most {decoding.MAX_PIXELS:,} pixels "
            "are read"
        )


def _read_png(path: _Path, content: bytes) -> np.ndarray:
    require_image_format(path, open_image(path, io.BytesIO(content)))
    dtype = tf.uint16 if decoding.png_format(content)[0] == 16 else tf.uint8
    try:
        return tf.io.decode_png(content, dtype=dtype).numpy()
    except tf.errors.InvalidArgumentError as error:
        load_image(path, content)  # its message says more
        raise UserError(f"{path} is broken: {error.message}") from error


def read_encoded(path: _Path, info: DatasetInfo) -> decoding.EncodedImage:
    """Returns the image of a file as it goes into a record: see `encode`."""
    content = file_kinds.read_bytes(path)
    return encode(path, content, info.channels, info.max_value)


def encode(
    path: _Path, content: bytes, channels: int = 3, max_value: int = 255
) -> decoding.EncodedImage:
    """Returns the image of a file as it goes into a record.

    JPEGs and PNGs of one or three 8-bit channels go as they are; other images
    become PNGs.

    Args:
        path: Its suffix tells arrays; names the file in errors.
        content: Its bytes.
        channels: Channels of the images of the dataset.
        max_value: As in `DatasetInfo`.

    Raises:
        UserError: if it is broken, or not an image of this kind.
    """
    if max_value > 255 or channels not in (1, 3) or _suffix(path) in _ARRAYS:
        return _encode_array(path, content, channels, max_value)
    if decoding.png_format(content)[0] == 16:
        # As it goes, TensorFlow would keep the upper byte alone.
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
            f"{path} has the shape {array.shape}; images are height x width x "
            f"{channels} channels"
        )
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise UserError(f"{path} holds {array.dtype}; images are uint8 or uint16")
    _bound_values(path, array.shape, channels)
    if array.max() > max_value:
        raise UserError(
            f"{path} has the value {array.max()}, but max_value is {max_value}"
        )
    if array.dtype.itemsize == 1 and max_value > 255:
        # It would be nearly black beside the others.
        raise UserError(f"{path} has 8 bits, but max_value is {max_value}")
    depth = np.uint8 if max_value < 256 else np.uint16
    height, width, channels = array.shape
    png = decoding.encode_image(array.astype(depth))
    return decoding.EncodedImage(png, "png", height, width, channels)


def orientation_hint(path: epath.Path) -> str:
    """Returns a hint where the camera was held upright and only EXIF tells."""
    if _suffix(path) in _ARRAYS:
        return ""
    turned = decoding.exif_orientation(file_kinds.read_bytes(path)) > 4
    return " before its EXIF rotation; rotate the pixels themselves" if turned else ""
