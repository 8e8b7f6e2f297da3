"""Decompression of untrusted gzip, bzip2 and xz files in bounded memory.

The modules of the standard library for whole files will not do: `lzma.open` takes no
limit of memory, and all of them report damage by exceptions of several kinds.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import BinaryIO

# Bytes read at once. Few, because a stream that ends early copies the rest.
_INPUT = 1 << 14
_OUTPUT = 1 << 16
_LZMA_MEMORY = 128 << 20  # `xz -9` needs 65 MiB
_MAX_STREAMS = 100_000


class ArchiveError(Exception):
    """What is wrong with an archive, in one line."""


def decompress(file: BinaryIO) -> tuple[BinaryIO, bool]:
    """Returns the decompressed contents of a file, and whether it is compressed.

    Args:
        file: Opened at its start; seekable.

    Raises:
        ArchiveError: if the compressed data is damaged; also from `read`.
        OSError: if the file cannot be read; also from `read`.
    """
    start = _find_compression(file.read(10))
    file.seek(0)
    if start is None:
        return file, False
    return io.BufferedReader(_Decompressed(file, start), _OUTPUT), True


def _find_compression(magic: bytes) -> Callable | None:
    """Returns what makes a decompressor, from the first bytes; None for plain tar."""
    if magic.startswith(b"\x1f\x8b"):
        return _start_gzip
    if magic.startswith(b"BZh") and magic[4:10] == b"1AY&SY":
        return bz2.BZ2Decompressor
    return _start_xz if magic.startswith(b"\xfd7zXZ\0") else None


def _start_gzip():
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _start_xz():
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)


class _Decompressed(io.RawIOBase):
    """The data of one or several compressed streams, one after the other."""

    def __init__(self, file: BinaryIO, start: Callable):
        super().__init__()
        self._file, self._start = file, start
        self._decompressor, self._rest = start(), b""
        self._streams, self._is_pending = 1, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
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
        try:
            data = self._decompressor.decompress(self._rest, size)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise ArchiveError(f"its compression is damaged: {error}") from error
        except MemoryError as error:
            raise ArchiveError("decompressing it needs too much memory") from error
        # zlib hands back what it did not use; bz2 and lzma keep it.
        self._rest = getattr(self._decompressor, "unconsumed_tail", b"")
        self._is_pending = len(data) == size
        return data

    def _start_next(self) -> bool:
        """Starts the next stream; padding by zeros may precede it."""
        rest = self._decompressor.unused_data.lstrip(b"\0")
        while not rest:
            block = self._file.read(_INPUT)
            if not block:
                return False
            rest = block.lstrip(b"\0")
        self._streams += 1
        if self._streams > _MAX_STREAMS:
            raise ArchiveError(f"it has more than {_MAX_STREAMS} compressed streams")
        self._decompressor, self._rest = self._start(), rest
        self._is_pending = False
        return True
