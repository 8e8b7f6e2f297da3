"""Reads images of any size a few rows at a time.

PNGs, TIFFs and .npy files are read in strips, so memory depends only on the width of an
image. Other formats are decoded at once, up to a size limit.
"""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds
from deeplab_tf.images import decoding, encoding, formats, image_files, pixels
from deeplab_tf.images.png_strips import cut_png, read_exif

_Path = str | os.PathLike[str]
_STRIP_PIXELS = 1 << 22  # 12 megabytes of RGB
STRIP_FORMATS = ("PNG", "TIFF", "NPY")
# Pixels of images in other formats: 800 megabytes in Pillow.
_MAX_AT_ONCE = 200_000_000
_INTERLACED = "interlaced PNG"
# A strip as a PNG, or as pixels `[rows, width, channels]`.
Strip = bytes | np.ndarray


class Header(NamedTuple):
    """Format, size and EXIF orientation of an image file, before any rotation.

    `format` is Pillow's name, "NPY" or "interlaced PNG".
    """

    format: str
    height: int
    width: int
    orientation: int = 1

    @property
    def is_large(self) -> bool:
        """Whether the image is too large to be decoded at once."""
        return self.height * self.width > decoding.MAX_PIXELS


def read_header(path: _Path) -> Header:
    """Reads the header of an image file of any size.

    Raises:
        UserError: if the file is broken or not an image.
    """
    with file_kinds.open_file(path) as file:
        if formats.is_npy(path):
            shape = _read_npy_header(path, file)[0]
            return Header("NPY", *(*shape, 0, 0)[:2])
        is_tiff = formats.is_tiff(file.read(4))
        file.seek(0)
        if is_tiff and _has_tifffile():
            page = _open_tiff(path, file)
            orientation = int(page.tags.valueof("Orientation", 1))
            return Header("TIFF", page.imagelength, page.imagewidth, orientation)
        image = image_files.open_image(path, file, max_pixels=None)
        # Pillow would decode the entire PNG to find EXIF data at its end.
        exif = read_exif(file) if image.format == "PNG" else image
        orientation = decoding.read_exif_orientation(exif)
        size = (image.height, image.width)
        if is_tiff and orientation > 4:  # Pillow returns the size after rotation
            size = size[::-1]
        is_interlaced = image.format == "PNG" and image.info.get("interlace")
        name = _INTERLACED if is_interlaced else str(image.format)
        return Header(name, *size, orientation)


def read_size(path: _Path, apply_exif: bool) -> tuple[int, int]:
    """Returns the height and width of an image, with or without EXIF rotation."""
    header = read_header(path)
    size = (header.height, header.width)
    return size[::-1] if apply_exif and header.orientation > 4 else size


def read_strips(path: _Path, start: int = 0) -> Iterator[tuple[int, Strip]]:
    """Yields the position of the first row, and the pixels, of each strip.

    Args:
        path: The image file.
        start: First row that is needed; strips before it may be left out.

    Raises:
        UserError: if the file is broken.
    """
    header = read_header(path)
    rows = max(1, _STRIP_PIXELS // max(1, header.width))
    with file_kinds.open_file(path) as file:
        try:
            yield from _read_strips(path, file, header, rows, start)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # decoders may raise any exception
            raise UserError(f"{path} is broken: {error}") from error


def _read_strips(
    path: _Path, file: BinaryIO, header: Header, rows: int, start: int
) -> Iterator[tuple[int, Strip]]:
    """Yields the strips of an open file by the method that its format needs."""
    if header.format == "PNG":
        pngs = cut_png(file, rows)
        yield from ((number * rows, png) for number, png in enumerate(pngs))
        return
    if header.format not in STRIP_FORMATS:
        yield from _decode_and_split(path, file, header, rows, start)
        return
    page = _open_tiff(path, file) if header.format == "TIFF" else None
    if page is not None:
        pixels.check_photometric(path, page.photometric)
    for top in range(start - start % rows, header.height, rows):
        bottom = min(top + rows, header.height)
        if page is None:
            yield top, _read_npy_rows(path, file, top, bottom)
        else:
            yield top, _read_tiff_rows(page, file, top, bottom)


class RowReader:
    """Reads rows of an image, converted to the format of a dataset.

    Args:
        path: The image file.
        channels: Number of channels of the dataset.
        max_value: Largest pixel value of the dataset.

    Raises:
        UserError: if the file is broken, or too large for a format that is decoded at
            once.
    """

    def __init__(self, path: _Path, channels: int = 3, max_value: int = 255):
        self.path = path
        self.header = header = read_header(path)
        size = header.width * header.height
        if header.format not in STRIP_FORMATS and size > _MAX_AT_ONCE:
            raise UserError(
                f"{path} is a {header.format} file of {header.width}x{header.height} "
                f"pixels; images with more than {_MAX_AT_ONCE:,} pixels must be PNG "
                "(not interlaced), TIFF or .npy files"
            )
        self._format = channels, max_value
        self._strips: Iterator[tuple[int, Strip]] = iter(())
        self._start = 0
        self._rows: np.ndarray | None = None

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Returns the rows from `top` to `bottom`, `[rows, width, channels]`.

        Fast if rows are read from top to bottom; successive reads may overlap.
        """
        bottom = min(bottom, self.header.height)
        if self._rows is None or top < self._start:
            self._strips, self._rows = read_strips(self.path, top), None
        # Copy, so that the memory of the rows above is freed.
        parts = [] if self._rows is None else [self._rows[top - self._start :].copy()]
        self._rows, start, end = None, top, top + sum(map(len, parts))
        while end < bottom:
            first, strip = next(self._strips)
            if first + _get_height(strip) <= end:
                continue
            decoded = self._decode(strip)[end - first :]
            parts.append(decoded)
            end += len(decoded)
        self._rows, self._start = np.concatenate(parts), start
        return self._rows[: bottom - top]

    def _decode(self, strip: Strip) -> np.ndarray:
        channels, max_value = self._format
        if isinstance(strip, bytes):
            image = encoding.encode(self.path, strip, channels, max_value)
            return encoding.decode(self.path, image, max_value)
        if channels == 3 and strip.shape[2] == 1 and self.header.format != "NPY":
            strip = np.repeat(strip, 3, 2)  # as TensorFlow does
        encoding.check_array(self.path, strip, channels, max_value)
        return strip.astype(np.uint8 if max_value < 256 else np.uint16)


def _get_height(strip: Strip) -> int:
    is_png = isinstance(strip, bytes)
    return int.from_bytes(strip[20:24], "big") if is_png else len(strip)


def _read_npy_header(
    path: _Path, file: BinaryIO
) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        return (np.lib.format.read_array_header_2_0 if version > (1, 0) else read)(file)
    except Exception as error:  # NumPy evaluates headers as Python literals
        raise UserError(f"{path} is broken: {error}") from error


def _has_tifffile() -> bool:
    try:
        import tifffile  # noqa: F401
    except ImportError:
        return False
    return True


def _open_tiff(path: _Path, file: BinaryIO) -> Any:
    """Returns the first page of a TIFF, as opened by tifffile."""
    tifffile = pixels.import_tifffile(path)
    try:
        return tifffile.TiffFile(file).series[0].keyframe
    except Exception as error:  # tifffile may raise any exception
        raise UserError(f"{path} is broken: {error}") from error


def _read_tiff_rows(page: Any, file: BinaryIO, top: int, bottom: int) -> np.ndarray:
    """Reads the rows from `top` to `bottom` of a TIFF, `[rows, width, samples]`."""
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    samples = page.samplesperpixel // planes
    out = np.zeros((planes, bottom - top, page.imagewidth, samples), page.dtype)
    if page.is_contiguous and page.dtype.kind == "u" and page.bitspersample in (8, 16):
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        row_bytes = page.imagewidth * samples * dtype.itemsize
        for plane in range(planes):
            row = plane * page.imagelength + top
            file.seek(page.dataoffsets[0] + row * row_bytes)
            data = file.read((bottom - top) * row_bytes)
            out[plane] = np.frombuffer(data, dtype).reshape(out.shape[1:])
    else:
        _decode_segments(page, file, top, bottom, out)
    return np.moveaxis(out, 0, 2).reshape(*out.shape[1:3], -1)


def _decode_segments(
    page: Any, file: BinaryIO, top: int, bottom: int, out: np.ndarray
) -> None:
    """Decodes rows of a compressed or tiled TIFF into `out`."""
    height = page.tilelength if page.is_tiled else page.rowsperstrip
    across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
    down = -(-page.imagelength // height)
    for plane in range(len(out)):
        for row in range(top // height, -(-bottom // height)):
            for column in range(across):
                index = (plane * down + row) * across + column
                file.seek(page.dataoffsets[index])
                data = file.read(page.databytecounts[index])
                tables = {"jpegtables": page.jpegtables} if page.jpegtables else {}
                segment, (_, _, y, x, _), _ = page.decode(data, index, **tables)
                if segment is None:  # sparse
                    continue
                first = max(y, top)
                part = segment[0, first - y : bottom - y, : page.imagewidth - x]
                rows = slice(first - top, first - top + len(part))
                out[plane, rows, x : x + part.shape[1]] = part


def _read_npy_rows(path: _Path, file: BinaryIO, top: int, bottom: int) -> np.ndarray:
    """Reads the rows from `top` to `bottom` of a .npy file."""
    file.seek(0)
    shape, is_fortran, dtype = _read_npy_header(path, file)
    if is_fortran or dtype.hasobject:
        file.seek(0)
        array = pixels.read_npy(path, file.read())[top:bottom]
    else:
        row = int(np.prod(shape[1:]))
        file.seek(top * row * dtype.itemsize, os.SEEK_CUR)
        data = file.read((bottom - top) * row * dtype.itemsize)
        array = np.frombuffer(data, dtype).reshape(-1, *shape[1:])
    return array[..., None] if array.ndim == 2 else array


def _decode_and_split(
    path: _Path, file: BinaryIO, header: Header, rows: int, start: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes the entire image, then yields 8-bit RGB strips from row `start` on."""
    image = image_files.open_image(path, file, max_pixels=None)
    image_files.require_image_format(path, image)
    if image.mode not in pixels.MODES:
        raise UserError(f"{path} has mode {image.mode}; save it as RGB")
    image_files.decode(path, image)
    for top in range(start - start % rows, header.height, rows):
        bottom = min(top + rows, header.height)
        strip = image.crop((0, top, header.width, bottom))
        yield top, np.asarray(strip.convert("RGB"))
