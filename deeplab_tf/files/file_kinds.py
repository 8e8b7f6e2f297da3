"""What a path is, found without opening it, and files that are opened safely.

A folder of images may also hold directories called `x.png`, FIFOs, device nodes, links
that lead nowhere and names that are not UTF-8. Opening some of these blocks, and others
never end. Paths with a scheme, such as `gs://bucket/x.png`, are those of `tf.io.gfile`.
"""

import contextlib
import enum
import errno
import glob
import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, TypeVar

import tensorflow as tf

from deeplab_tf.errors import UserError, escape

PathLike = str | os.PathLike[str]
Path = TypeVar("Path", bound=PathLike)


class Kind(enum.Enum):
    """What a path is; the value is a noun for messages."""

    FILE = "file"
    DIRECTORY = "directory"
    FIFO = "FIFO"
    SOCKET = "socket"
    DEVICE = "device"
    LINK_LOOP = "symbolic link loop"
    BROKEN_LINK = "broken link"
    UNREADABLE = "no permission to read"
    NOT_UTF8 = "name not UTF-8"
    TOO_LONG = "name too long"
    MISSING = "missing"


_SPECIAL = (Kind.FIFO, Kind.SOCKET, Kind.DEVICE, Kind.LINK_LOOP, Kind.NOT_UTF8)
_PREDICATES = {
    Kind.UNREADABLE: "cannot be read: permission denied",
    Kind.NOT_UTF8: "has a name that is not UTF-8; rename it",
    Kind.TOO_LONG: "does not exist: the name is too long",
    Kind.MISSING: "does not exist",
}
_MODES = (
    (stat.S_ISREG, Kind.FILE),
    (stat.S_ISDIR, Kind.DIRECTORY),
    (stat.S_ISFIFO, Kind.FIFO),
    (stat.S_ISSOCK, Kind.SOCKET),
)
_ERRORS = {
    errno.ELOOP: Kind.LINK_LOOP,
    errno.ENAMETOOLONG: Kind.TOO_LONG,
    errno.EACCES: Kind.UNREADABLE,
}
# The most that one read returns on Linux; a record does not hold more either.
MAX_BYTES = 0x7FFFF000
# The longest name of a file on all common file systems.
MAX_NAME_BYTES = 255
_SHOWN = 3  # names of skipped entries


def is_remote(path: PathLike) -> bool:
    """Returns whether only TensorFlow can read a path."""
    path = os.fspath(path)
    return "://" in path and not path.startswith("file://")


def _local(path: PathLike) -> str:
    return os.fspath(path).removeprefix("file://")


def kind_of(path: PathLike) -> Kind:
    """Returns what a path is, after following links, without opening it.

    Raises:
        UserError: if the file system of a remote path cannot be asked.
    """
    path = os.fspath(path)
    try:
        path.encode()  # TensorFlow cannot open other names
    except UnicodeEncodeError:
        return Kind.NOT_UTF8
    return _remote_kind(path) if is_remote(path) else _local_kind(_local(path))


def _remote_kind(path: str) -> Kind:
    try:
        if tf.io.gfile.isdir(path):
            return Kind.DIRECTORY
        return Kind.FILE if tf.io.gfile.exists(path) else Kind.MISSING
    except tf.errors.OpError as error:
        raise UserError(f"{path} cannot be read: {error.message}") from error


def _local_kind(path: str) -> Kind:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        missing = Kind.BROKEN_LINK if os.path.islink(path) else Kind.MISSING
        return _ERRORS.get(error.errno, missing)
    except ValueError:  # a null byte
        return Kind.MISSING
    kind = next((kind for is_kind, kind in _MODES if is_kind(mode)), Kind.DEVICE)
    is_readable = kind is not Kind.FILE or os.access(path, os.R_OK)
    return kind if is_readable else Kind.UNREADABLE


def describe(path: PathLike, kind: Kind | None = None) -> str:
    """Returns a sentence that says what a path is, such as "x.png is a FIFO"."""
    kind = kind or kind_of(path)
    return f"{escape(path)} {_PREDICATES.get(kind, f'is a {kind.value}')}"


def require_file(path: PathLike) -> None:
    """Refuses a path that is not a readable file.

    Raises:
        UserError: saying what it is instead.
    """
    kind = kind_of(path)
    if kind is not Kind.FILE:
        hint = "" if kind in _PREDICATES else "; a file is needed"
        raise UserError(describe(path, kind) + hint)


def refuse_special(name: str, path: str) -> None:
    """Refuses a flag value that is neither a file or directory nor a new path.

    Args:
        name: The flag, for the message.
        path: Its value, which need not be a path.

    Raises:
        UserError: if the path is a FIFO, a socket, a device or a link loop, or
            is not UTF-8.
    """
    kind = Kind.FILE if is_remote(path) else kind_of(path)
    if kind in _SPECIAL:
        raise UserError(f"--{name}={describe(path, kind)}")


@contextlib.contextmanager
def open_file(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a file for reading, unbuffered, and nothing that is not a file.

    Raises:
        UserError: if it is not a readable file, or is replaced by something else
            while it is opened.
    """
    if is_remote(path):
        with _open_remote(os.fspath(path)) as file:
            yield file
        return
    require_file(path)  # first, for opening a device may do something
    with open(_local(path), "rb", buffering=0, opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{escape(path)} is not a file any more")
        yield file


def _open_at_once(path: str, flags: int) -> int:
    """Opens a path without waiting for the writer of a FIFO."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def _open_remote(path: str) -> Iterator[BinaryIO]:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            yield file
    except tf.errors.OutOfRangeError:  # the end of the file
        raise
    except tf.errors.OpError as error:
        require_file(path)
        raise UserError(f"{path} cannot be read: {error.message}") from error


def read_bytes(path: PathLike) -> bytes:
    """Returns the content of a file.

    Raises:
        UserError: if it is not a readable file, or is larger than `MAX_BYTES`.
    """
    with open_file(path) as file:
        size = file_size(file)
        if size > MAX_BYTES:
            raise UserError(
                f"{escape(path)} has {size:,} bytes; at most {MAX_BYTES:,} are read"
            )
        # Not all: files of /proc have no size, and some of them no end.
        return file.read(size) if size else b""


def file_size(file: BinaryIO) -> int:
    """Returns the bytes of an open file, and goes back to its beginning."""
    try:
        size = os.fstat(file.fileno()).st_size
    except (AttributeError, io.UnsupportedOperation):  # remote, or in memory
        file.seek(0, os.SEEK_END)
        size = file.tell()
    file.seek(0)
    return size


def list_names(folder: PathLike) -> list[str]:
    """Returns the names in a folder that are not hidden, sorted.

    Raises:
        UserError: if it is not a folder that can be read.
    """
    try:
        if is_remote(folder):
            names = tf.io.gfile.listdir(os.fspath(folder))
        else:  # TensorFlow fails for all names where one is not UTF-8
            names = os.listdir(_local(folder))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"{escape(folder)} cannot be listed: {error}") from error
    # Object stores end the names of folders with a slash.
    return sorted(name.rstrip("/") for name in names if not name.startswith("."))


def expand_glob(pattern: str) -> list[str]:
    """Returns the paths that match a pattern, sorted."""
    if is_remote(pattern):
        return sorted(tf.io.gfile.glob(pattern))
    return sorted(glob.glob(_local(pattern)))


def find_other_kinds(paths: Iterable[Path]) -> dict[Path, Kind]:
    """Returns those of some listed paths that are not readable files.

    Remote ones are taken for files until they are opened: object stores hold nothing
    else, and asking for each would take longer than reading it.
    """
    kinds = {path: kind_of(path) for path in paths if not is_remote(path)}
    return {path: kind for path, kind in kinds.items() if kind is not Kind.FILE}


def keep_files(paths: Sequence[Path], where: str) -> list[Path]:
    """Returns the readable files among listed paths, and reports the others.

    Args:
        paths: The paths.
        where: Folder or pattern that gave them, for the report.
    """
    others = find_other_kinds(paths)
    report_skipped(others, len(paths), where)
    return [path for path in paths if path not in others]


def report_skipped(others: Mapping[Path, Kind], total: int, where: PathLike) -> None:
    """Prints one line on stderr about listed entries that are not files, if any.

    Args:
        others: The entries, and what they are.
        total: Number of entries that were listed.
        where: What was listed.
    """
    if not others:
        return
    named = [
        f"{escape(os.path.basename(path))} ({kind.value})"
        for path, kind in list(others.items())[:_SHOWN]
    ]
    if len(others) > _SHOWN:
        named.append(f"and {len(others) - _SHOWN} more")
    print(
        f"skipped {len(others)} of {total} entries of {escape(where)}: "
        f"{', '.join(named)}",
        file=sys.stderr,
    )


def require_room_in_name(path: PathLike, ending: str) -> None:
    """Refuses a file next to whose name no longer one fits.

    Args:
        path: The file, whose stem begins the other name.
        ending: What that name has instead of the suffix.

    Raises:
        UserError: if the file system could not hold such a name.
    """
    stem = os.path.splitext(os.path.basename(os.fspath(path)))[0]
    length = len(os.fsencode(stem + ending))
    if length > MAX_NAME_BYTES:
        raise UserError(
            f"{escape(path)} gives the output a name of {length} bytes, "
            f"*{ending}; at most {MAX_NAME_BYTES} are possible; rename it"
        )
