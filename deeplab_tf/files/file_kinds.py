"""Determines the kind of a path without opening it, and opens files safely.

A folder of images may also contain directories called `x.png`, FIFOs, devices, broken
links and names that are not UTF-8. Opening some of these blocks, and reading others
never ends. Paths with a scheme, such as `gs://bucket/x.png`, go through `tf.io.gfile`.
"""

import contextlib
import enum
import errno
import glob
import io
import os
import stat
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, TypeVar

import tensorflow as tf

from deeplab_tf.errors import UserError, escape

PathLike = str | os.PathLike[str]
Path = TypeVar("Path", bound=PathLike)


class Kind(enum.Enum):
    """The kind of a path; the value describes it in messages."""

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
# Limit of a single read on Linux, and of a TFRecord.
MAX_BYTES = 0x7FFFF000
# Limit on all common file systems.
MAX_NAME_BYTES = 255
_SHOWN = 3  # names of skipped entries
# Files and folders that Windows and macOS create.
_SYSTEM_NAMES = frozenset(
    ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin")
)


def is_remote(path: PathLike) -> bool:
    """Returns whether only `tf.io.gfile` can read a path."""
    path = os.fspath(path)
    return "://" in path and not path.startswith("file://")


def _strip_file_scheme(path: PathLike) -> str:
    return os.fspath(path).removeprefix("file://")


def find_kind(path: PathLike) -> Kind:
    """Returns the kind of a path without opening it; follows links.

    Raises:
        UserError: if a remote file system cannot be reached.
    """
    path = os.fspath(path)
    try:
        path.encode()  # TensorFlow cannot open other names
    except UnicodeEncodeError:
        return Kind.NOT_UTF8
    return (
        _remote_kind(path) if is_remote(path) else _local_kind(_strip_file_scheme(path))
    )


def _remote_kind(path: str) -> Kind:
    try:
        if tf.io.gfile.isdir(path):
            return Kind.DIRECTORY
        return Kind.FILE if tf.io.gfile.exists(path) else Kind.MISSING
    except tf.errors.OpError as error:
        raise UserError(f"{path} cannot be read: {error.message}") from error


def _local_kind(path: str) -> Kind:
    """Returns the kind of a local path, following links."""
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
    """Returns a sentence about a path, such as "x.png is a FIFO"."""
    kind = kind or find_kind(path)
    return f"{escape(path)} {_PREDICATES.get(kind, f'is a {kind.value}')}"


def require_file(path: PathLike) -> None:
    """Raises UserError unless a path is a readable file."""
    kind = find_kind(path)
    if kind is not Kind.FILE:
        hint = "" if kind in _PREDICATES else "; a file is needed"
        raise UserError(describe(path, kind) + hint)


def refuse_special(name: str, path: str) -> None:
    """Raises UserError if a flag value is the path of a special file.

    That is a FIFO, a socket, a device, a link loop or a name that is not UTF-8. The
    value need not be a path; `name` is the name of the flag.
    """
    kind = Kind.FILE if is_remote(path) else find_kind(path)
    if kind in _SPECIAL:
        raise UserError(f"--{name}={describe(path, kind)}")


@contextlib.contextmanager
def open_file(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a file, and nothing else, for unbuffered reading.

    Raises:
        UserError: if the path is not a readable file, even if it becomes something else
            while it is being opened.
    """
    if is_remote(path):
        with _open_remote(os.fspath(path)) as file:
            yield file
        return
    require_file(path)  # opening a device may have side effects
    with open(
        _strip_file_scheme(path), "rb", buffering=0, opener=_open_without_blocking
    ) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{escape(path)} is no longer a file")
        yield file


def _open_without_blocking(path: str, flags: int) -> int:
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


@contextlib.contextmanager
def make_local(path: PathLike) -> Iterator[str]:
    """Yields a local path of a file: its own, or that of a temporary copy.

    Raises:
        UserError: if the path is not a readable file.
    """
    require_file(path)
    if not is_remote(path):
        yield _strip_file_scheme(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(path))
        try:
            tf.io.gfile.copy(os.fspath(path), local)
        except tf.errors.OpError as error:
            raise UserError(f"{path} cannot be read: {error.message}") from error
        yield local


def read_bytes(path: PathLike) -> bytes:
    """Returns a file's content; raises UserError if unreadable or above `MAX_BYTES`."""
    with open_file(path) as file:
        size = get_file_size(file)
        if size > MAX_BYTES:
            raise UserError(
                f"{escape(path)} has {size:,} bytes; the limit is {MAX_BYTES:,}"
            )
        # Do not read to the end: files in /proc have no size, and some never end.
        return file.read(size) if size else b""


def get_file_size(file: BinaryIO) -> int:
    """Returns the size of an open file and rewinds it."""
    try:
        size = os.fstat(file.fileno()).st_size
    except (AttributeError, io.UnsupportedOperation):  # remote, or in memory
        file.seek(0, os.SEEK_END)
        size = file.tell()
    file.seek(0)
    return size


def list_names(folder: PathLike) -> list[str]:
    """Returns the sorted visible names in a folder; raises UserError if unreadable."""
    try:
        if is_remote(folder):
            names = tf.io.gfile.listdir(os.fspath(folder))
        else:  # TensorFlow fails if any name is not UTF-8
            names = os.listdir(_strip_file_scheme(folder))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"{escape(folder)} cannot be listed: {error}") from error
    # In object stores, the names of folders end with a slash.
    return sorted(name for n in names if not is_hidden(name := n.rstrip("/")))


def is_hidden(name: str) -> bool:
    """Returns whether a name starts with a dot or belongs to the operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def list_tree(folder: PathLike, skipped: Collection[str] = ()) -> list[str]:
    """Returns the sorted files in a folder and its subfolders, as `subfolder/name`.

    Hidden files and folders are left out. Links are followed, except to a folder that
    contains them. An empty folder with a suffix, such as `x.png`, is listed like a
    file, so that it will be reported.

    Args:
        folder: Folder to list.
        skipped: Absolute paths, without links, of subfolders to leave out.

    Raises:
        UserError: if the folder or a subfolder cannot be read.
    """
    if is_remote(folder):
        return _list_remote_tree(os.fspath(folder))
    return sorted(_walk(_strip_file_scheme(folder), "", {*skipped}))


def _walk(root: str, below: str, left_out: set[str]) -> Iterator[str]:
    """Yields the visible files of a folder, recursively; see `list_tree`."""
    folder = os.path.join(root, below)
    real = os.path.realpath(folder)
    if real in left_out:
        return
    names = list_names(folder)
    if not names and os.path.splitext(below)[1]:
        yield below
    for name in names:
        path = f"{below}/{name}" if below else name
        if os.path.isdir(os.path.join(root, path)):
            yield from _walk(root, path, left_out | {real})
        else:
            yield path


def _list_remote_tree(root: str) -> list[str]:
    found = []
    for folder, subfolders, names in tf.io.gfile.walk(root):
        # Object stores may also list a folder as a file.
        names = [name for name in names if name and f"{name}/" not in subfolders]
        below = os.path.join(folder, "").removeprefix(os.path.join(root, ""))
        found += [below + name for name in names]
    return sorted(path for path in found if not any(map(is_hidden, path.split("/"))))


def expand_glob(pattern: str) -> list[str]:
    """Returns the sorted matches of a glob; `**` also matches subfolders."""
    if is_remote(pattern):
        return sorted(tf.io.gfile.glob(pattern))
    return sorted(glob.glob(_strip_file_scheme(pattern), recursive=True))


def find_non_files(paths: Iterable[Path]) -> dict[Path, Kind]:
    """Returns the paths that are not readable files, with their kinds.

    Remote paths count as files until they are opened, because object stores contain
    little else and each query would take longer than reading the file.
    """
    kinds = {path: find_kind(path) for path in paths if not is_remote(path)}
    return {path: kind for path, kind in kinds.items() if kind is not Kind.FILE}


def keep_files(paths: Sequence[Path], where: str) -> list[Path]:
    """Returns the readable files among `paths`; reports the skipped ones on stderr.

    `where` is the folder or pattern that matched the paths, for the report.
    """
    skipped = find_non_files(paths)
    report_skipped(skipped, len(paths), where)
    return [path for path in paths if path not in skipped]


def report_skipped(skipped: Mapping[Path, Kind], total: int, where: PathLike) -> None:
    """Reports skipped paths in one line on stderr, if there are any.

    `total` is the number of paths that the folder or pattern `where` matched.
    """
    if not skipped:
        return
    named = [
        f"{escape(os.path.basename(path))} ({kind.value})"
        for path, kind in list(skipped.items())[:_SHOWN]
    ]
    if len(skipped) > _SHOWN:
        named.append(f"and {len(skipped) - _SHOWN} more")
    print(
        f"skipped {len(skipped)} of {total} entries of {escape(where)}: "
        f"{', '.join(named)}",
        file=sys.stderr,
    )


def require_room_in_name(path: PathLike, ending: str) -> None:
    """Raises UserError if the name of an output would exceed `MAX_NAME_BYTES`.

    The name of the output is that of the input `path` with `ending` for its extension.
    """
    stem = os.path.splitext(os.path.basename(os.fspath(path)))[0]
    length = len(os.fsencode(stem + ending))
    if length > MAX_NAME_BYTES:
        raise UserError(
            f"the output name for {escape(path)} (ending in {ending}) would be "
            f"{length} bytes long; at most {MAX_NAME_BYTES} are allowed; give the "
            "input a shorter name"
        )
