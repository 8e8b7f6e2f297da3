"""The ledger of a folder: the names and SHA-256 of the files that we wrote there.

Several processes may append to a ledger on one machine, but not in an object store. The
workers of a pipeline therefore write parts, which `merge_parts` adds to the ledger.
"""

import contextlib
import contextvars
import errno
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Sequence

import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.files.file_kinds import is_remote

LEDGER = ".deeplab_tf.sha256"
_PART_NAME = re.compile(r"\.deeplab_tf\.(\w+)\.sha256")
_LINE = re.compile(r"(\\?)([0-9a-f]{64})  (.+)")
_BLOCK = 1 << 20
_PART: contextvars.ContextVar[str] = contextvars.ContextVar("part", default="")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


def digest_file(path: str, digest=None) -> str:
    """Returns the hexadecimal digest of a file; `digest` is a hash object (SHA-256)."""
    digest = digest or hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_regular_file(path: str) -> bool:
    """Returns whether an existing path is a regular file, not a link to one."""
    if is_remote(path):
        return not tf.io.gfile.isdir(path)
    return os.path.isfile(path) and not os.path.islink(path)


def _name_part(part: str) -> str:
    # Not LEDGER with a suffix: in memory, TensorFlow takes each start of a file name
    # for a folder.
    return f".deeplab_tf.{part}.sha256" if part else LEDGER


class Ledger:
    """The digests of the files that we wrote to a folder, by name.

    Args:
        folder: The folder.
        part: Name of the part to read and write; "" is the ledger itself.

    Raises:
        UserError: if the ledger is a folder, a link or a device.
    """

    def __init__(self, folder: str, part: str = ""):
        self._path = os.path.join(folder, _name_part(part))
        if tf.io.gfile.exists(self._path) and not is_regular_file(self._path):
            raise UserError(f"{self._path} is not a regular file; move it elsewhere")
        self._digests, self._version, self._is_cut = {}, None, False

    def digests(self, name: str) -> set[str]:
        """Returns the digests of a file; after an interrupted write, it has several."""
        version = self._current_version()
        if version != self._version:
            self._digests, self._version = self._read(), version
        return self._digests.get(name, set())

    def add(self, name: str, digest: str) -> None:
        """Adds a file; call this before writing it, in case we are killed."""
        if digest not in self.digests(name):
            self._append([(name, digest)])

    def add_part(self, part: "Ledger") -> None:
        """Adds the files of another ledger of the folder."""
        part.digests("")  # reads it
        files = [(n, d) for n, found in part._digests.items() for d in sorted(found)]
        self._append([(n, d) for n, d in files if d not in self.digests(n)])

    def _append(self, files: Sequence[tuple[str, str]]) -> None:
        if not files:
            return
        text = "".join(format_entry(*file) for file in files)
        content = text.encode(errors="surrogateescape")
        if self._is_cut:
            content = b"\n" + content
        if is_remote(self._path):
            with tf.io.gfile.GFile(self._path, "ab") as file:
                file.write(content)
        else:
            # A single write, because several processes may append at once.
            with open(self._path, "ab", buffering=0) as file:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, "No room for the ledger", self._path)
        self._is_cut = False
        for name, digest in files:
            self._digests.setdefault(name, set()).add(digest)
        self._version = self._current_version()

    def _current_version(self) -> tuple[int, ...] | None:
        """Returns values that change whenever the file does; None without a file."""
        if not tf.io.gfile.exists(self._path):
            return None
        if is_remote(self._path):
            stat = tf.io.gfile.stat(self._path)
            return stat.length, stat.mtime_nsec
        # tf.io.gfile has whole seconds only, too coarse to detect another process.
        stat = os.stat(self._path)
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _read(self) -> dict[str, set[str]]:
        """Returns the digests in the file by name, leaving out invalid lines."""
        found = {}
        if not tf.io.gfile.exists(self._path):
            return found
        with tf.io.gfile.GFile(self._path, "rb") as file:
            lines = file.read().decode(errors="surrogateescape").split("\n")
        self._is_cut = bool(lines[-1])
        for line in filter(None, map(_LINE.fullmatch, lines)):
            name = line[3]
            if line[1]:
                name = re.sub(r"\\[\\nr]", lambda match: _ESCAPES[match[0]], name)
            found.setdefault(name, set()).add(line[2])
        return found


@functools.lru_cache(maxsize=64)
def _open_part(folder: str, part: str) -> Ledger:
    return Ledger(folder, part)


def open_ledger(folder: str) -> Ledger:
    """Returns the cached ledger of a folder, or the part that `write_part` names."""
    return _open_part(folder, _PART.get())


def find_digests(folder: str, name: str) -> set[str]:
    """Returns the digests of a file in the ledger, and in the part in use."""
    parts = {"", _PART.get()}
    return set().union(*(_open_part(folder, part).digests(name) for part in parts))


@contextlib.contextmanager
def write_part(name: str) -> Iterator[None]:
    """Adds files to a part of the ledger instead, in this thread."""
    token = _PART.set(name)
    try:
        yield
    finally:
        _PART.reset(token)


def merge_parts(folder: str) -> None:
    """Adds the parts of a folder to its ledger and removes them."""
    for name in sorted(tf.io.gfile.listdir(folder)):
        if match := _PART_NAME.fullmatch(name):
            _open_part(folder, "").add_part(Ledger(folder, match[1]))
            tf.io.gfile.remove(os.path.join(folder, name))


def format_entry(name: str, digest: str) -> str:
    """Returns the ledger line of a file, in the format of `sha256sum`."""
    escaped = name
    for escape, character in _ESCAPES.items():
        escaped = escaped.replace(character, escape)
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"
