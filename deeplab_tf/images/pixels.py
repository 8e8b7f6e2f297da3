"""Reads the pixels of image files that cannot be stored in a record unchanged.

Their format, bit depth or number of channels is one that TensorFlow does not decode, so
they will be stored as PNGs. They are read without loss: files whose values Pillow would
round are read by other packages, or refused.
"""

import contextlib
import io
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from deeplab_tf.errors import UserError, import_extra
from deeplab_tf.images import decoding, formats, image_files

_Path = str | os.PathLike[str]
# Modes whose conversion to grey or RGB keeps every value.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")
# Format -> a marker in the file, the position of the bits per channel relative to it,
# and their mask and offset. Pillow always decodes to 8 bits.
_DEPTHS = {
    "JPEG2000": (b"\xff\x4f\xff\x51", 42, 0x7F, 1),
    "HEIF": (b"hvcC", 21, 0x07, 8),
    "AVIF": (b"av1C", 6, 0x40, 8),  # a flag for more than 8 bits
}
# TIFF tags.
_BITS, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 338, 339
_PREMULTIPLIED = 1


def read_array(
    path: _Path, content: bytes, image: Image.Image | None, channels: int
) -> tuple[np.ndarray, int]:
    """Returns the stored pixels of an image and its EXIF orientation.

    Args:
        path: Path of the file, for errors.
        content: Content of the file.
        image: The file as opened by `image_files.open_image`; None for a .npy file, or
            a TIFF that Pillow cannot open.
        channels: Number of channels of the dataset.

    Returns:
        Pixels `[height, width, channels]` of any type and number of channels, before
        any rotation, and the EXIF orientation, 1..8.

    Raises:
        UserError: if the file is broken, or its values cannot be read without loss.
    """
    if formats.is_npy(path):
        array, orientation = read_npy(path, content), 1
    elif image is None or not _is_lossless_in_pillow(image, channels):
        array, orientation = _read_tiff(path, content, channels)
    else:
        orientation = decoding.read_exif_orientation(image)
        array = _read_other(path, content, image, channels)
    return array[..., None] if array.ndim == 2 else array, orientation


def read_npy(path: _Path, content: bytes) -> np.ndarray:
    """Returns the array of a .npy file; raises UserError if it is broken."""
    try:
        return np.lib.format.read_array(io.BytesIO(content))
    except Exception as error:  # NumPy evaluates headers as Python literals
        raise UserError(f"{path} is broken: {error}") from error


def _is_lossless_in_pillow(image: Image.Image, channels: int) -> bool:
    """Returns whether Pillow reads an image without loss; false for some TIFFs."""
    if image.format != "TIFF":
        return True
    tags = image.tag_v2
    bits = tags.get(_BITS, (1,))
    return (
        channels in (1, 3)
        and image.n_frames == 1
        and image.mode in MODES
        and max(bits) <= 8
        and len(bits) == len(image.getbands())  # Pillow drops unknown channels
        and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
        and _PREMULTIPLIED not in tags.get(_EXTRA_SAMPLES, ())
    )


def _read_other(
    path: _Path, content: bytes, image: Image.Image, channels: int
) -> np.ndarray:
    """Reads a file that needs no tifffile; raises UserError if bits would be lost."""
    if image.format in ("PNG", "JPEG", "MPO"):
        return read_png(path, content)
    bits = _find_bits_per_channel(image.format, content)
    if bits > 8 and image.format == "JPEG2000":
        return _read_jpeg2000(path, content)
    if bits > 8:
        raise UserError(
            f"{path} is {image.format} with more than 8 bits per channel, which would "
            "be rounded; save it as a 16-bit PNG or TIFF"
        )
    if image.mode not in MODES:
        raise UserError(f"{path} has mode {image.mode}; save it as RGB")
    orientation = decoding.read_exif_orientation(image)
    array = _as_grey_or_rgb(image_files.decode(path, image), channels)
    if image.format == "TIFF":
        # Pillow turns TIFFs upright, unlike all other formats, so undo that.
        orientation = {6: 8, 8: 6}.get(orientation, orientation)
        return decoding.turn_upright(array, orientation)
    return array


def _find_bits_per_channel(image_format: str | None, content: bytes) -> int:
    if image_format not in _DEPTHS:
        return 8
    text, position, mask, offset = _DEPTHS[image_format]
    start = content.find(text)
    at = start + position
    return (content[at] & mask) + offset if start >= 0 and at < len(content) else 8


def _as_grey_or_rgb(image: Image.Image, channels: int) -> np.ndarray:
    """Converts pixels to the channels of the dataset if that is lossless."""
    is_grey = image.mode in ("1", "L", "LA")
    if channels == 1 and is_grey:
        return np.asarray(image.convert("L"))
    keeps_alpha = channels == 4 and image.has_transparency_data
    array = np.asarray(image.convert("RGBA" if keeps_alpha else "RGB"))
    is_grey = channels == 1 and bool((array == array[..., :1]).all())
    return array[..., 0] if is_grey else array


def read_png(path: _Path, content: bytes) -> np.ndarray:
    """Decodes a PNG, uint8 or uint16; raises UserError if it is broken."""
    dtype = tf.uint16 if decoding.read_png_format(content)[0] == 16 else tf.uint8
    try:
        return tf.io.decode_png(content, dtype=dtype).numpy()
    except tf.errors.InvalidArgumentError as error:
        image_files.load_image(path, content)  # its error message is clearer
        raise UserError(f"{path} is broken: {error.message}") from error


def _read_jpeg2000(path: _Path, content: bytes) -> np.ndarray:
    needed_by = f"{path} is JPEG 2000 with more than 8 bits, which needs"
    imagecodecs = import_extra("imagecodecs", "tiff", needed_by)
    try:
        return imagecodecs.jpeg2k_decode(content)
    except Exception as error:
        raise UserError(f"{path} is broken: {error}") from error


def import_tifffile(path: _Path) -> Any:
    """Imports tifffile; raises UserError, which names the file, if it is missing."""
    return import_extra("tifffile", "tiff", f"{path} is a TIFF of a kind that needs")


@contextlib.contextmanager
def open_tiff(path: _Path, content: bytes) -> Iterator[Any]:
    """Opens a TIFF with tifffile; errors while it is open become UserErrors."""
    tifffile = import_tifffile(path)
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # tifffile may raise any exception
        raise UserError(f"{path} is broken: {error}") from error


def _read_tiff(path: _Path, content: bytes, channels: int) -> tuple[np.ndarray, int]:
    """Returns pixels and EXIF orientation of a TIFF, read with tifffile."""
    with open_tiff(path, content) as file:
        series = file.series[0]
        check_pixel_count(path, series.shape, channels)
        array, axes = series.asarray(), series.axes
        photometric = series.keyframe.photometric
        orientation = series.keyframe.tags.valueof("Orientation", 1)
    check_photometric(path, photometric)
    orientation = orientation if orientation in range(1, 9) else 1
    # In planar files, the channels are the first axis.
    is_planar = array.ndim == 3 and axes[-1] == "X"
    return np.moveaxis(array, 0, -1) if is_planar else array, int(orientation)


def check_photometric(path: _Path, photometric) -> None:
    """Raises UserError unless the values of a TIFF are brightness or RGB."""
    if photometric.name == "PALETTE":
        raise UserError(f"{path} has a palette; save it as RGB")
    if photometric.name not in ("MINISBLACK", "RGB"):
        raise UserError(f"{path} has {photometric.name} values; save it as RGB")


def check_pixel_count(path: _Path, shape: tuple[int, ...], channels: int) -> None:
    """Raises `TooLargeError` if an array has more than `decoding.MAX_PIXELS`."""
    if math.prod(shape) > decoding.MAX_PIXELS * channels:
        raise image_files.TooLargeError(
            f"{path} has the shape {shape}; at most {decoding.MAX_PIXELS:,} pixels "
            "are allowed"
        )
