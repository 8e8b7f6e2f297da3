"""Decompresses untrusted gzip, bzip2 and xz files in bounded memory.

In the standard library, `lzma.open` has no memory limit, and damaged files raise many
different exceptions.
"""

import bz2
import functools
import io
import lzma
import zlib
from collections.abc import Callable
from typing import BinaryIO

# Small, because the rest of a block is copied at the end of each stream.
_INPUT = 1 << 14
_OUTPUT = 1 << 16
_LZMA_MEMORY = 128 << 20  # `xz -9` needs 65 MiB
_MAX_STREAMS = 100_000


class ArchiveError(Exception):
    """Describes what is wrong with an archive in one line."""


def decompress(file: BinaryIO) -> tuple[BinaryIO, bool]:
    """Returns a reader for the decompressed data, and whether the file is compressed.

    The file must be seekable and positioned at its start.

    Raises:
        ArchiveError: if the compressed data is damaged; also raised by `read`.
        OSError: if the file cannot be read; also raised by `read`.
    """
    make_decompressor = _find_decompressor(file.read(10))
    file.seek(0)
    if make_decompressor is None:
        return file, False
    return io.BufferedReader(_Decompressed(file, make_decompressor), _OUTPUT), True


def _find_decompressor(magic: bytes) -> Callable | None:
    """Returns a decompressor factory for the first bytes; None if uncompressed."""
    if magic.startswith(b"\x1f\x8b"):
        return functools.partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS)
    if magic.startswith(b"BZh") and magic[4:10] == b"1AY&SY":
        return bz2.BZ2Decompressor
    if magic.startswith(b"\xfd7zXZ\0"):
        return functools.partial(
            lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY
        )
    return None


class _Decompressed(io.RawIOBase):
    """Reads one or more compressed streams in a row."""

    def __init__(self, file: BinaryIO, make_decompressor: Callable):
        super().__init__()
        self._file, self._make_decompressor = file, make_decompressor
        self._decompressor, self._rest = make_decompressor(), b""
        self._streams, self._is_pending = 1, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Fills a buffer with decompressed bytes and returns their number."""
        data = b""
        while not data:
            if self._decompressor.eof:
                if not self._start_next():
                    return 0
            elif not (self._rest or self._is_pending):
                self._rest = self._file.read(_INPUT)
                if not self._rest:
                    raise ArchiveError("it is cut off")
            data = self._decompress(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _decompress(self, size: int) -> bytes:
        """Returns up to `size` decompressed bytes; none if more input is needed."""
        try:
            data = self._decompressor.decompress(self._rest, size)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise ArchiveError(f"its compression is damaged: {error}") from error
        except MemoryError as error:
            raise ArchiveError("decompressing it needs too much memory") from error
        # zlib hands unused input back; bz2 and lzma keep it.
        self._rest = getattr(self._decompressor, "unconsumed_tail", b"")
        self._is_pending = len(data) == size
        return data

    def _start_next(self) -> bool:
        """Skips zero padding and starts the next stream; returns False at the end."""
        rest = self._decompressor.unused_data.lstrip(b"\0")
        while not rest:
            block = self._file.read(_INPUT)
            if not block:
                return False
            rest = block.lstrip(b"\0")
        self._streams += 1
        if self._streams > _MAX_STREAMS:
            raise ArchiveError(f"it has more than {_MAX_STREAMS} compressed streams")
        self._decompressor, self._rest = self._make_decompressor(), rest
        self._is_pending = False
        return True
