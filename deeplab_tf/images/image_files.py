"""Opens and checks image and label files."""

import io
import os
import threading
from typing import BinaryIO

import tensorflow as tf
from PIL import Image, features

from deeplab_tf.errors import UserError, import_extra
from deeplab_tf.files import file_kinds
from deeplab_tf.images import decoding, formats

_Path = str | os.PathLike[str]
# Brands in the header of HEIF files, which Pillow reads only with a plugin.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc")


class TooLargeError(UserError):
    """An image with more than `decoding.MAX_PIXELS`."""


def open_image(path: _Path, file: BinaryIO, max_pixels: int | None = 0) -> Image.Image:
    """Opens an image of any format, reading only its header.

    Args:
        path: Path of the file, for errors.
        file: The open file.
        max_pixels: Largest number of pixels; 0 for `decoding.MAX_PIXELS`, None for no
            limit.

    Raises:
        UserError: if the file is not an image, or needs a missing package.
        TooLargeError: if the image exceeds the limit.
    """
    limit = decoding.MAX_PIXELS if max_pixels == 0 else max_pixels
    try:
        _prepare_plugin(path, file)
        image = _open_unlimited(file) if limit is None else Image.open(file)
    except Image.DecompressionBombError as error:
        raise TooLargeError(
            f"{path} has too many pixels; at most {limit:,} are allowed"
        ) from error
    # Pillow raises these, except for the last, which a GFile raises at its end.
    except (OSError, SyntaxError, ValueError, tf.errors.OutOfRangeError) as error:
        if isinstance(error, UserError):
            raise
        size = file_kinds.get_file_size(file)
        reason = f"its {size} bytes are not an image" if size else "it is empty"
        raise UserError(f"{path} is broken: {reason}") from error
    if limit is not None and image.width * image.height > limit:
        raise TooLargeError(
            f"{path} has {image.width}x{image.height} pixels; at most {limit:,} are "
            "allowed"
        )
    return image


# Held while Pillow's own limit, a global variable, is disabled.
_pillow_limit = threading.Lock()


def _open_unlimited(file: BinaryIO) -> Image.Image:
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _prepare_plugin(path: _Path, file: BinaryIO) -> None:
    """Registers the plugin that a HEIF file needs, and rewinds the file."""
    head = file.read(12)
    file.seek(0)
    if head[4:8] != b"ftyp":
        return
    if head[8:12] in (b"avif", b"avis") and not features.check("avif"):
        raise UserError(f"{path} is AVIF, which needs Pillow 11.3 or later")
    if head[8:12] not in _HEIF_BRANDS:
        return
    plugin = import_extra("pillow_heif", "heif", f"{path} is HEIF, which needs")
    plugin.register_heif_opener()


def load_image(path: _Path, content: bytes) -> Image.Image:
    """Decodes an image with Pillow; `path` is for errors.

    Raises:
        UserError: if the image is broken, too large or in an unsupported format.
    """
    image = open_image(path, io.BytesIO(content))
    require_image_format(path, image)
    return decode(path, image)


def require_image_format(path: _Path, image: Image.Image) -> None:
    """Raises `UserError` unless an image has a format in `formats.FORMATS`."""
    if image.format not in (*formats.FORMATS, "MPO"):
        raise UserError(
            f"{path} is {image.format}; images must be {', '.join(formats.FORMATS)}"
        )


def decode(path: _Path, image: Image.Image) -> Image.Image:
    """Reads the pixels of an opened image; raises UserError if it is broken."""
    try:
        image.load()
    except Exception as error:  # Pillow may raise any exception
        raise UserError(f"{path} is broken: {error}") from error
    return image
