"""Reads masks (label images) in all supported formats, without interpreting them."""

import io
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds
from deeplab_tf.images import decoding, image_files, pixels
from deeplab_tf.images.formats import FORMATS, is_tiff

_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG", "MPO")
_NAMES = "PNG, TIFF, BMP, GIF, WebP, JPEG or .npy"
MASK_SUFFIXES = tuple(
    suffix for name in (*_FORMATS[:-1], "NPY") for suffix in FORMATS[name]
)
MAX_VALUE = 65535
_NPY = b"\x93NUMPY"
_LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp", "jpeg2000", "lerc"}
_LOSSLESS_TIFF = {"NONE", "LZW", "DEFLATE", "ADOBE_DEFLATE", "PACKBITS", "ZSTD", "LZMA"}
_BITS_PER_SAMPLE = 258  # TIFF tag
# Pillow scales grey PNGs of 2 and 4 bits to 0..255.
_STRETCH = {2: 85, 4: 17}
_WHITE = {1: 1, 2: 3, 4: 15}


class Mask(NamedTuple):
    """A label image as stored.

    Attributes:
        pixels: Values of one channel or palette indices, uint8 or uint16 `[height,
            width]`; or colours, uint8 `[height, width, 3]`.
        white: The value that is displayed as white: 1, 3 or 15 in files with 1, 2 or 4
            bits; 65535 if a value is above 255; otherwise 255.
        palette: Colours of the palette indices, uint8 `[indices, 3]`; None without one.
        is_clear: Mask of fully transparent pixels, bool `[height, width]`; None if all
            or none are transparent.
        lossy: Name of the format if it is lossy, such as "JPEG"; otherwise "".
        counts: Number of pixels in the file that each pixel stands for, int64 `[height,
            width]`; None if each stands for itself.
    """

    pixels: np.ndarray
    white: int = 255
    palette: np.ndarray | None = None
    is_clear: np.ndarray | None = None
    lossy: str = ""
    counts: np.ndarray | None = None

    def count_pixels(self, where: np.ndarray) -> int:
        """Returns the number of pixels in the file where a bool array is true."""
        return int(np.sum(where if self.counts is None else self.counts[where]))


def read_mask(path: epath.Path) -> Mask:
    """Reads a mask file.

    Raises:
        UserError: if the file is broken, too large or in an unsupported format, or has
            several pages or frames, an EXIF rotation, or values outside 0..65535.
    """
    mask = decode_mask(path, file_kinds.read_bytes(path))
    return mask._replace(is_clear=keep_partial(mask.is_clear))


def keep_partial(is_clear: np.ndarray | None) -> np.ndarray | None:
    """Returns the mask of transparent pixels; None if there is none or all are set."""
    # Tools that do not use transparency may write an alpha channel of zeros.
    return None if is_clear is None or is_clear.all() else is_clear


def is_npy(content: bytes) -> bool:
    """Returns whether a file is a NumPy array, judging by its first bytes."""
    return content[: len(_NPY)] == _NPY


def decode_mask(path: epath.Path, content: bytes) -> Mask:
    """Decodes a mask, or a strip of one, from the content of a file.

    Like `read_mask`, but keeps `is_clear` even if all pixels are transparent.
    """
    if is_npy(content):
        array = _read_npy(path, content)
        pixels.check_pixel_count(path, array.shape[:2], 1)
        return from_array(path, array)
    try:
        image = image_files.open_image(path, io.BytesIO(content))
    except image_files.TooLargeError:
        raise
    except UserError:
        if is_tiff(content):
            return _read_tiff(path, content)
        raise
    if image.format not in _FORMATS:
        raise UserError(f"{path} is {image.format}; masks must be {_NAMES}")
    check_frames(path, image)
    lossy = find_lossy_format(image, content)
    if decoding.read_png_format(content)[0] == 16 or _has_deep_colors(image):
        return from_array(path, _decode_deep(path, image, content))
    mask = _from_image(path, image_files.decode(path, image), content)
    return mask._replace(lossy=lossy)


def read_index_label(path: epath.Path) -> np.ndarray:
    """Reads the values or palette indices of a PNG, uint8 `[height, width]`.

    Raises:
        UserError: if the file is broken, not a PNG, or has RGB colours.
    """
    content = file_kinds.read_bytes(path)
    mask = decode_mask(path, content)
    if decoding.read_png_format(content) == (0, 0):
        # Lossy formats change class ids.
        raise UserError(f"{path} is not a PNG; labels must be PNGs")
    if mask.pixels.ndim == 3:
        raise UserError(
            f"{path} has RGB colours; a label must be a PNG with a palette, or one "
            "channel of class ids"
        )
    if mask.white > 255:
        raise UserError(
            f"{path} has the value {mask.pixels.max()}; class ids are 0..255"
        )
    return mask.pixels


def check_frames(path: epath.Path, image: Image.Image) -> None:
    """Raises `UserError` for a mask with several pages or an EXIF rotation."""
    # The second image of an MPO is a preview.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise UserError(f"{path} has {frames} pages or frames; a mask must have one")
    if decoding.read_exif_orientation(image) != 1:
        raise UserError(
            f"{path} has an EXIF rotation, which viewers may ignore; rotate the pixels "
            "and remove it"
        )


def find_lossy_format(image: Image.Image, content: bytes) -> str:
    """Returns the name of a mask's format if it is lossy; otherwise ""."""
    if image.format in ("JPEG", "MPO"):
        return "JPEG"
    if image.format == "WEBP" and b"VP8 " in _list_riff_chunks(content):
        return "lossy WebP"
    compression = image.info.get("compression")
    if image.format == "TIFF" and compression in _LOSSY_TIFF:
        return f"TIFF with {compression} compression"
    return ""


def _list_riff_chunks(content: bytes) -> list[bytes]:
    """Returns the chunk names of a WebP file."""
    names, start = [], 12
    while start + 8 <= len(content):
        names.append(content[start : start + 4])
        size = int.from_bytes(content[start + 4 : start + 8], "little")
        start += 8 + size + size % 2
    return names


def _has_deep_colors(image: Image.Image) -> bool:
    """Returns whether Pillow would truncate the colours of a TIFF to 8 bits."""
    if image.format != "TIFF" or image.mode in ("I;16", "I;16B", "I", "F"):
        return False
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return max(bits) > 8


def _read_tiff(path: epath.Path, content: bytes) -> Mask:
    """Reads a TIFF that Pillow cannot open, such as one with 32-bit integers."""
    with pixels.open_tiff(path, content) as file:
        page, count = file.pages[0], len(file.pages)
        pixels.check_photometric(path, page.photometric)
        pixels.check_pixel_count(path, page.shape[:2], 1)
        compression = page.compression.name
        array = page.asarray()
    if count > 1:
        raise UserError(f"{path} has {count} pages or frames; a mask must have one")
    if compression not in _LOSSLESS_TIFF or array.ndim != 2:
        raise UserError(
            f"{path} is a TIFF with {compression} compression and the shape "
            f"{array.shape}; save it as a PNG"
        )
    return from_array(path, _require_integers(path, array))


def _decode_deep(path: epath.Path, image: Image.Image, content: bytes) -> np.ndarray:
    """Decodes 16 bits per channel, which Pillow does only for one channel."""
    if image.format == "TIFF":
        raise UserError(
            f"{path} has 16 bits per colour channel; save it as an 8-bit PNG"
        )
    return pixels.read_png(path, content)


def _read_npy(path: epath.Path, content: bytes) -> np.ndarray:
    return _require_integers(path, pixels.read_npy(path, content))


def _require_integers(path: epath.Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biu":
        raise UserError(
            f"{path} has {array.dtype} pixels; a mask must have integers or booleans"
        )
    return array


def from_array(path: epath.Path, array: np.ndarray) -> Mask:
    """Converts an array, `[height, width]` or `[height, width, 1..4]`, to a mask."""
    if not array.size or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 2, 3, 4))
    ):
        raise UserError(
            f"{path} has the shape {array.shape}; a mask must be height x width with "
            "class ids, or height x width x 3 with colours"
        )
    if array.ndim == 3 and array.shape[2] in (2, 4):
        array, alpha = array[..., :-1], array[..., -1]
        return from_array(path, array)._replace(is_clear=_find_clear(alpha))
    if array.ndim == 3 and array.shape[2] == 3:
        return Mask(_reduce_colors(path, array))
    array = array.reshape(array.shape[:2])
    low, high = array.min(), array.max()
    if low < 0 or high > MAX_VALUE:
        raise UserError(
            f"{path} has the value {low if low < 0 else high}; mask values must be in "
            f"0..{MAX_VALUE}"
        )
    if array.dtype.kind == "b":
        return Mask(array.astype(np.uint8), 1)
    if high > 255:
        return Mask(array.astype(np.uint16), MAX_VALUE)
    return Mask(array.astype(np.uint8))


def _reduce_colors(path: epath.Path, colors: np.ndarray) -> np.ndarray:
    """Converts colours to 8 bits without loss; raises UserError if impossible."""
    if colors.dtype == np.uint16 and not (colors % 257).any():
        return (colors // 257).astype(np.uint8)  # 65535 becomes 255
    if colors.dtype != np.uint8:
        raise UserError(
            f"{path} has colours of type {colors.dtype}; colours must have 8 bits"
        )
    return colors


def _find_clear(alpha: np.ndarray) -> np.ndarray | None:
    is_clear = alpha == 0
    return is_clear if is_clear.any() else None


def _from_image(path: epath.Path, image: Image.Image, content: bytes) -> Mask:
    """Converts an opened image to a mask, without changing values or indices."""
    is_clear = None
    if image.mode in ("LA", "PA", "RGBA"):
        is_clear = _find_clear(np.asarray(image.getchannel("A")))
        if image.mode != "RGBA":
            image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.format == "GIF" and image.mode == "P":
        # GIF encoders renumber palette indices.
        image = image.convert("RGB")
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return Mask(np.asarray(image.convert("RGB")), is_clear=is_clear)
    if image.mode == "P":
        palette = np.reshape(image.getpalette("RGB"), (-1, 3)).astype(np.uint8)
        return Mask(np.array(image), palette=palette)
    if image.mode not in ("1", "L", "I", "I;16", "I;16B"):
        raise UserError(
            f"{path} has the mode {image.mode}; a mask must have a palette, one "
            "channel or RGB colours"
        )
    if image.mode != "L":
        return from_array(path, np.array(image))
    depth = decoding.read_png_format(content)[0]
    return Mask(
        np.array(image) // _STRETCH.get(depth, 1),
        _WHITE.get(depth, 255),
        None,
        is_clear,
    )
