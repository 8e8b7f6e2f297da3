"""Cuts a PNG into PNGs of a few rows each, without decoding it all at once."""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from deeplab_tf.images.decoding import PNG_SIGNATURE

_SIGNATURE = bytes(PNG_SIGNATURE) + b"\r\n\x1a\n"
_READ_BYTES = 1 << 20
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Bits and colour type of a PNG, by bytes per pixel.
_BYTE_FORMATS = {1: (8, 0), 2: (8, 4), 3: (8, 2), 4: (8, 6), 6: (16, 2), 8: (16, 6)}


class _Header(NamedTuple):
    """The fields of a PNG header (IHDR), in order."""

    width: int
    height: int
    bits: int
    color_type: int
    compression: int
    filtering: int
    interlace: int

    @property
    def pixel_bits(self) -> int:
        return self.bits * _CHANNELS[self.color_type]

    @property
    def row_bytes(self) -> int:
        return -(-self.width * self.pixel_bits // 8)


def cut_png(file: BinaryIO, rows: int) -> Iterator[bytes]:
    """Yields PNGs of up to `rows` rows, from top to bottom.

    They have the same depth, colour type, palette and transparency as the original.

    Args:
        file: An open PNG that is not interlaced.
        rows: Height of each PNG except the last.

    Raises:
        ValueError, zlib.error, struct.error: if the file is broken.
    """
    if file.read(8) != _SIGNATURE:
        raise ValueError("not a PNG")
    chunks = _read_chunks(file)
    kind, content = next(chunks)
    header = _Header(*struct.unpack(">IIBBBBB", content))
    if kind != b"IHDR" or header.interlace:
        raise ValueError("an interlaced PNG")
    yield from _cut(header, chunks, rows)


def read_exif(file: BinaryIO) -> Image.Exif:
    """Returns the EXIF data of an open PNG; Pillow would decode the PNG to find it."""
    exif = Image.Exif()
    file.seek(len(_SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            exif.load(file.read(length))
            break
        file.seek(length + 4, os.SEEK_CUR)
    return exif


def _read_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yields the type and content of each chunk, and image data in pieces."""
    while True:
        length, kind = struct.unpack(">I4s", file.read(8))
        while kind == b"IDAT" and length > _READ_BYTES:
            yield kind, file.read(_READ_BYTES)
            length -= _READ_BYTES
        yield kind, file.read(length)
        file.read(4)  # checksum
        if kind == b"IEND":
            return


def _cut(
    header: _Header, chunks: Iterator[tuple[bytes, bytes]], rows: int
) -> Iterator[bytes]:
    """Yields PNGs of up to `rows` rows; raises ValueError for a truncated file."""
    before: list[tuple[bytes, bytes]] = []
    data = bytearray()
    inflate = zlib.decompressobj()
    previous = bytes(header.row_bytes)
    stride, left = header.row_bytes + 1, header.height
    for kind, content in chunks:
        if kind in (b"PLTE", b"tRNS"):
            before.append((kind, content))
        if kind != b"IDAT":
            continue
        while content and left:
            count = min(rows, left)
            # A few bytes may decompress to any number of bytes.
            data += inflate.decompress(content, stride * count - len(data))
            content = inflate.unconsumed_tail
            if len(data) < stride * count:
                continue
            raw = _undo_filters(header, previous, bytes(data), count)
            data.clear()
            left -= count
            previous = raw[-header.row_bytes :]
            png = _add_filters(raw, count)
            yield _assemble(header._replace(height=count), before, png)
    if left:
        raise ValueError(f"image file is truncated ({left} rows are missing)")


def _undo_filters(header: _Header, previous: bytes, data: bytes, count: int) -> bytes:
    """Undoes the filters of `count` rows; `previous` is the unfiltered row above.

    Filters work on bytes, whatever the pixels mean. So the rows are decoded as a PNG
    in a decodable format with the same bytes per pixel, with `previous` as first row.
    """
    pixel_bytes = max(1, header.pixel_bits // 8)
    bits, color_type = _BYTE_FORMATS[pixel_bytes]
    width = header.row_bytes // pixel_bytes
    header = _Header(width, count + 1, bits, color_type, 0, 0, 0)
    png = _assemble(header, [], b"\0" + previous + data)
    if bits == 16:
        array = tf.io.decode_png(png, dtype=tf.uint16).numpy().astype(">u2")
    else:
        array = np.asarray(Image.open(io.BytesIO(png)))
    return array[1:].tobytes()


def _add_filters(raw: bytes, count: int) -> bytes:
    """Prepends the filter type, 0 for none, to each row."""
    rows = np.frombuffer(raw, np.uint8).reshape(count, -1)
    return np.pad(rows, ((0, 0), (1, 0))).tobytes()


def _assemble(header: _Header, before: list[tuple[bytes, bytes]], data: bytes) -> bytes:
    """Returns a PNG of a header, chunks to put before the data, and raw rows."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", *header)),
        *before,
        (b"IDAT", zlib.compress(data, 0)),
        (b"IEND", b""),
    ]
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
