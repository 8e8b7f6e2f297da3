"""A strict, bounded reader of tar archives (POSIX.1-2001 pax, ustar and GNU).

Reads regular files and folders and refuses everything else: links, devices, sparse
files, and paths that lead outside. Unlike `tarfile`, it never trusts a size: memory and
time are bounded for any input, and every error is a one-line `ArchiveError`.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from deeplab_tf.files.compression import ArchiveError, decompress

_HEADER = 512
_BLOCK = 1 << 20
_MAX_ENTRIES = 100_000  # PASCAL VOC 2012 has 40,000
_MAX_FOLDERS = 10_000  # including parents without an entry
_MAX_HEADERS = 150_000  # including extension headers
_MAX_EXTENSION = 1 << 20
_MAX_EXTENSIONS = 4  # in a row
_MAX_RECORDS = 64  # per pax header
_MAX_ALL_RECORDS = 500_000
_MAX_NAME = 1024  # PATH_MAX of macOS
_MAX_COMPONENT = 255
_MAX_DEPTH = 64
_MAX_AFTER_END = 64 << 20
# Compression ratios: below 10 for real archives, 1,000 for gzip bombs, far more for
# bzip2 bombs.
_MAX_RATIO = 100
_SMALL = 256 << 20

_FILE_TYPES = (b"0", b"\0", b"7")
_FOLDER, _LONG_NAME, _PAX, _GLOBAL_PAX = b"5", b"L", b"x", b"g"
_EXTENSIONS = (_LONG_NAME, _PAX, _GLOBAL_PAX)
_REFUSED_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"K": "a link",
    b"S": "a sparse file",
}
_OCTAL = re.compile(rb" *([0-7]*) *")
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]+)=")
_SIZE = re.compile(rb"[0-9]{1,18}")
_DRIVE = re.compile("[A-Za-z]:")
_CONTROL = re.compile("[\0-\x1f\x7f]")


class Member(NamedTuple):
    """A validated member of an archive.

    Attributes:
        name: Relative path, separated by `/`, without `.` and `..`.
        size: Size of the data in bytes; 0 for a folder.
        is_folder: Whether the member is a folder.
        blocks: Returns an iterator over the data, once, before the next member is read.
    """

    name: str
    size: int
    is_folder: bool
    blocks: Callable[[], Iterator[bytes]]


def read_members(file: BinaryIO) -> Iterator[Member]:
    """Yields the members of an archive in order, then verifies its end.

    Args:
        file: Seekable tar file, plain or compressed by gzip, bzip2 or xz.

    Raises:
        ArchiveError: if the archive is damaged or unsafe.
        OSError: if the file cannot be read.
    """
    stream = _Stream(file)
    entries = _Entries()
    while header := _read_header(stream):
        member = _start_member(header, stream)
        if member.name:
            entries.add(member)
            yield member
        stream.skip_data()
    stream.read_to_end()


def quote(name: str | bytes) -> str:
    """Shortens the name of a member to one printable line, for error messages."""
    if isinstance(name, bytes):
        name = name[: 2 * _MAX_NAME].decode("utf-8", "backslashreplace")
    text = ascii(name)[1:-1]
    return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"


class _Header(NamedTuple):
    """A header with its extension headers applied, not yet validated.

    `name` is the path as stored, `size` the size of the data that follows, and `kind`
    the type byte.
    """

    name: bytes
    size: int
    kind: bytes


class _Stream:
    """Reads the bytes of an archive, and tracks how much of a member is left."""

    def __init__(self, file: BinaryIO):
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(0)
        self._file, is_compressed = decompress(file)
        self._is_seekable = not is_compressed
        # Total size that the headers may claim.
        self._budget = max(_SMALL, _MAX_RATIO * size) if is_compressed else size
        self._data = self._padding = self._headers = self._records = 0
        self.position = 0

    def read_block(self) -> bytes:
        """Returns the next 512 bytes, or fewer at the end."""
        self._headers += 1
        if self._headers > _MAX_HEADERS:
            raise ArchiveError(f"it has more than {_MAX_HEADERS} headers")
        self._budget -= _HEADER
        return self._read(_HEADER)

    def count_record(self) -> None:
        """Counts a record of a pax header against the limit."""
        self._records += 1
        if self._records > _MAX_ALL_RECORDS:
            raise ArchiveError(f"it has more than {_MAX_ALL_RECORDS} pax records")

    def start_data(self, header: _Header) -> None:
        """Starts the data after a header; then call `read_data` or `skip_data`."""
        size = header.size
        self._data, self._padding = size, -size % _HEADER
        self._budget -= size
        if self._budget < 0:
            bomb = f"more than {_MAX_RATIO} times the size of the archive"
            reason = "it is cut off" if self._is_seekable else bomb
            raise _make_error(header.name, f"claims {size} bytes of data: {reason}")

    def read_data(self) -> Iterator[bytes]:
        """Yields the remaining data of the member in blocks."""
        while self._data:
            block = self._read(min(_BLOCK, self._data))
            if not block:
                raise ArchiveError("it is cut off")
            self._data -= len(block)
            yield block

    def skip_data(self) -> None:
        """Skips the remaining data of the member, and the padding after it."""
        self._data += self._padding
        self._padding = 0
        if self._is_seekable and self._data:
            # Read the last byte, because seeking beyond the end does not fail.
            self._file.seek(self._data - 1, os.SEEK_CUR)
            self.position += self._data - 1
            self._data = 1
        for _ in self.read_data():
            pass

    def read_to_end(self) -> None:
        """Reads to the end of the file, so that decompression verifies its checksum."""
        left = _MAX_AFTER_END
        while block := self._read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise ArchiveError(
                    f"more than {_MAX_AFTER_END >> 20} MiB follow its end"
                )

    def _read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.position += len(block)
        return block


class _Entries:
    """The paths seen so far, stored as digests to limit memory."""

    def __init__(self):
        self._is_folder: dict[bytes, bool] = {}
        self._folders = 0

    def add(self, member: Member) -> None:
        """Adds a member and its parent folders."""
        parts = member.name.split("/")
        for end in range(len(parts) - 1, 0, -1):
            if self._add("/".join(parts[:end]), True, member):
                break  # its parents are also known
        is_known = self._add(member.name, member.is_folder, member)
        if is_known and not member.is_folder:
            raise _make_error(member.name, "occurs twice")

    def _add(self, path: str, is_folder: bool, member: Member) -> bool:
        """Adds a path; returns whether it was already known."""
        key = hashlib.blake2b(path.encode(), digest_size=16).digest()
        known = self._is_folder.get(key)
        if known is None:
            self._is_folder[key] = is_folder
            self._folders += is_folder
        elif known != is_folder:
            raise _make_error(
                member.name, f"makes {quote(path)} both a file and a folder"
            )
        if len(self._is_folder) > _MAX_ENTRIES:
            raise ArchiveError(f"it has more than {_MAX_ENTRIES} files and folders")
        if self._folders > _MAX_FOLDERS:
            raise ArchiveError(f"it has more than {_MAX_FOLDERS} folders")
        return known is not None


def _make_error(name: str | bytes, reason: str) -> ArchiveError:
    return ArchiveError(f"its member {quote(name)} {reason}")


def _read_header(stream: _Stream) -> _Header | None:
    """Returns the next header with its extensions applied; None at the end."""
    name, size = None, None
    for _ in range(_MAX_EXTENSIONS + 1):
        header = _read_plain_header(stream)
        if header is None:
            if name or size is not None:
                raise ArchiveError("it ends after an extension header")
            return None
        if header.kind not in _EXTENSIONS:
            size = header.size if size is None else size
            return _Header(name or header.name, size, header.kind)
        if header.kind == _LONG_NAME:
            name = _read_extension(stream, header).rstrip(b"\0")
            continue
        records = _read_pax(stream, header)
        if records and header.kind == _GLOBAL_PAX:
            raise ArchiveError("a global pax header sets a path or a size")
        name = records.get(b"path", name)
        size = _parse_pax_size(records.get(b"size"), size)
    raise ArchiveError(f"it has more than {_MAX_EXTENSIONS} extension headers in a row")


def _read_plain_header(stream: _Stream) -> _Header | None:
    """Returns the next header, without applying extensions; None at the end."""
    position = stream.position
    block = stream.read_block()
    if len(block) < _HEADER:
        reason = "it has no end" if position else "it is not a tar archive"
        raise ArchiveError(reason if stream.position else "it is empty")
    if not any(block):
        return None
    _verify_checksum(block, position)
    name = _cut_at_null(block[:100])
    kind = block[156:157]
    if block[257:265] == b"ustar\x0000" and (prefix := _cut_at_null(block[345:500])):
        name = prefix + b"/" + name
    return _Header(name, _parse_size(block[124:136], name), kind)


def _verify_checksum(block: bytes, position: int) -> None:
    computed = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    match = _OCTAL.fullmatch(_cut_at_null(block[148:156]))
    stored = int(match[1] or b"0", 8) if match else -1
    # Some old programs summed signed bytes.
    signed = computed - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if stored not in (computed, signed):
        damaged = f"its header at byte {position} is damaged"
        raise ArchiveError(damaged if position else "it is not a tar archive")


def _cut_at_null(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _parse_size(field: bytes, name: bytes) -> int:
    """Parses a size, in octal digits or GNU's base 256; `name` is for errors."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(_cut_at_null(field))
    if not match:
        raise _make_error(name, "has a negative or broken size")
    return int(match[1] or b"0", 8)


def _read_extension(stream: _Stream, header: _Header) -> bytes:
    if header.size > _MAX_EXTENSION:
        raise ArchiveError(f"an extension header claims {header.size} bytes")
    stream.start_data(header)
    data = b"".join(stream.read_data())
    stream.skip_data()
    return data


def _read_pax(stream: _Stream, header: _Header) -> dict[bytes, bytes]:
    """Returns the path and size in a pax header, if it has any."""
    data, records, position = _read_extension(stream, header), {}, 0
    for _ in range(_MAX_RECORDS):
        if position == len(data):
            return records
        stream.count_record()
        match = _RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if not match or data[match.end() : end][-1:] != b"\n" or end > len(data):
            raise ArchiveError("a pax header is broken")
        if match[2].startswith(b"GNU.sparse"):
            raise ArchiveError("a member is a sparse file")
        if match[2] in (b"path", b"size"):
            records[match[2]] = data[match.end() : end - 1]
        position = end
    raise ArchiveError(f"a pax header has more than {_MAX_RECORDS} records")


def _parse_pax_size(value: bytes | None, default: int | None) -> int | None:
    if value is None:
        return default
    if not _SIZE.fullmatch(value):
        raise ArchiveError(f"a pax header has the size {quote(value)}")
    return int(value)


def _start_member(header: _Header, stream: _Stream) -> Member:
    """Validates a header and starts its data; the root folder has an empty name."""
    is_folder = header.kind == _FOLDER or (
        header.kind == b"\0" and header.name.endswith(b"/")  # formats before ustar
    )
    if not is_folder and header.kind not in _FILE_TYPES:
        kind = _REFUSED_TYPES.get(header.kind, "of an unknown type")
        raise _make_error(header.name, f"is {kind}, not a regular file or folder")
    name = _normalize_path(header.name)
    if is_folder and header.size:
        raise _make_error(header.name, "is a folder with data")
    if not is_folder and (not name or header.name.endswith(b"/")):
        raise _make_error(header.name, "is a file with the name of a folder")
    stream.start_data(header)
    return Member(name, header.size, is_folder, stream.read_data)


def _has_long_part(parts: list[str]) -> bool:
    return any(len(part.encode()) > _MAX_COMPONENT for part in parts)


def _normalize_path(raw: bytes) -> str:
    """Normalises a path; raises ArchiveError if it is not portable or leads outside."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _make_error(raw, "has a name that is not UTF-8") from error
    parts = [part for part in name.split("/") if part not in ("", ".")]
    faults = {
        "has no name": not name,
        "has an absolute path": name.startswith("/") or _DRIVE.match(name),
        "leads outside the archive with ..": ".." in parts,
        "has a backslash in its name": "\\" in name,
        "has control characters in its name": _CONTROL.search(name),
        "has a name that is too long": len(raw) > _MAX_NAME
        or (len(raw) > _MAX_COMPONENT and _has_long_part(parts)),
        "is nested too deeply in folders": len(parts) > _MAX_DEPTH,
    }
    for fault, is_present in faults.items():
        if is_present:
            raise _make_error(name, fault)
    return "/".join(parts)
