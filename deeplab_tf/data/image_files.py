"""Images and labels of anyone's files, before they are records."""

import io
import os

import numpy as np
import tensorflow as tf
from etils import epath
from PIL import Image, UnidentifiedImageError

from deeplab_tf import text_files
from deeplab_tf.data import pictures, records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError

_ARRAYS = (".npy", ".tif", ".tiff")


def opened(path: epath.Path, content: bytes | None = None) -> Image.Image:
    """Returns the decoded picture of a file.

    Args:
        path: The file.
        content: Its bytes, where they were read already.

    Raises:
        UserError: if it is broken; names it.
    """
    content = path.read_bytes() if content is None else content
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except UnidentifiedImageError as error:
        reason = (
            f"its {len(content)} bytes are no picture" if content else "it is empty"
        )
        raise UserError(f"{path} is broken: {reason}") from error
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
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
    content = path.read_bytes()
    return index_label(path, opened(path, content), content)


# Pillow stretches grey PNGs of 2 and 4 bits to 0..255.
_STRETCH = {2: 85, 4: 17}


def index_label(path: epath.Path, image: Image.Image, content: bytes) -> np.ndarray:
    """Returns the class ids of a label that is open already.

    Args:
        path: As in `read_index_label`; names the file in errors.
        image: What `opened` returned for it.
        content: Its bytes.

    Raises:
        UserError: if the file is no PNG or in colour.
    """
    if image.format != "PNG":
        # Lossy formats smear class ids into other class ids.
        raise UserError(f"{path} is {image.format}; labels are PNG")
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise UserError(
            f"{path} has mode {image.mode}; a label is a PNG with a palette or "
            "one channel of class ids"
        )
    label = np.array(image)
    if image.mode == "L":
        label //= _STRETCH.get(_png_depth(content), 1)
    if label.max() > 255:
        raise UserError(f"{path} has the value {label.max()}; class ids end at 255")
    return label.astype(np.uint8)


def _read_array(path: epath.Path) -> np.ndarray:
    """Returns the pixels `[height, width, channels]` of an image of any depth."""
    if path.suffix.lower() == ".npy":
        array = _read_npy(path)
    elif path.suffix.lower() in (".tif", ".tiff"):
        array = _read_tiff(path)
    else:
        array = _decoded_png(path)
    return array[..., None] if array.ndim == 2 else array


def _read_npy(path: epath.Path) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(path.read_bytes()))
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise UserError(f"{path} is broken: {error}") from error


def _read_tiff(path: epath.Path) -> np.ndarray:
    try:
        import tifffile
    except ImportError as error:
        raise UserError(
            f"{path}: TIFFs need pip install 'deeplab_tf[tiff]' ({error})"
        ) from error
    try:
        with tifffile.TiffFile(io.BytesIO(path.read_bytes())) as file:
            series = file.series[0]
            array, axes = series.asarray(), series.axes
            photometric = series.keyframe.photometric
    except Exception as error:  # tifffile raises whatever it stumbles over
        raise UserError(f"{path} is broken: {error}") from error
    if photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise UserError(f"{path} has a palette; an image has its colours in channels")
    # Pages, or planes of separate channels, come first.
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and axes[-1] == "X" else array


def _decoded_png(path: epath.Path) -> np.ndarray:
    content = path.read_bytes()
    dtype = tf.uint16 if _png_depth(content) == 16 else tf.uint8
    try:
        pixels = tf.io.decode_png(content, dtype=dtype)
    except tf.errors.InvalidArgumentError as error:
        opened(path, content)  # tells more
        raise UserError(f"{path} is no PNG: {error.message}") from error
    return pixels.numpy()


def _png_depth(content: bytes) -> int:
    """Returns the bits of a channel of a PNG, 0 for other files."""
    return content[24] if content[:4] == b"\x89PNG" and len(content) > 24 else 0


def read_image(path: epath.Path, info: DatasetInfo) -> records.Picture:
    """Returns the image of a file as it goes into a record.

    JPEGs and PNGs of one or three 8-bit channels go as they are; other images
    become PNGs.
    """
    suffix = path.suffix.lower()
    if info.max_value > 255 or info.channels not in (1, 3) or suffix in _ARRAYS:
        return _array_picture(path, info)
    content = path.read_bytes()
    if _png_depth(content) == 16:
        # As it goes, TensorFlow would keep the upper byte alone.
        return _array_picture(path, info)
    image = opened(path, content)
    if image.format not in pictures.PICTURE_FORMATS:
        raise UserError(f"{path} is {image.format}; images are JPEG or PNG")
    return records.Picture(
        content,
        pictures.PICTURE_FORMATS[image.format],
        image.height,
        image.width,
        info.channels,
    )


def _array_picture(path: epath.Path, info: DatasetInfo) -> records.Picture:
    array = _read_array(path)
    if array.ndim != 3 or array.shape[2] != info.channels or not array.size:
        raise UserError(
            f"{path} has the shape {array.shape}; images are height x width x "
            f"{info.channels} channels"
        )
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise UserError(f"{path} holds {array.dtype}; images are uint8 or uint16")
    if array.max() > info.max_value:
        raise UserError(
            f"{path} has the value {array.max()}, but max_value is {info.max_value}"
        )
    if array.dtype.itemsize == 1 and info.max_value > 255:
        # It would be nearly black beside the others.
        raise UserError(f"{path} has 8 bits, but max_value is {info.max_value}")
    depth = np.uint8 if info.max_value < 256 else np.uint16
    height, width, channels = array.shape
    png = pictures.encode_image(array.astype(depth))
    return records.Picture(png, "png", height, width, channels)


def orientation_hint(path: epath.Path) -> str:
    """Returns a hint where the camera was held upright and only EXIF tells."""
    if path.suffix.lower() in _ARRAYS:
        return ""
    turned = pictures.exif_orientation(path.read_bytes()) > 4
    return " before its EXIF rotation; rotate the pixels themselves" if turned else ""
