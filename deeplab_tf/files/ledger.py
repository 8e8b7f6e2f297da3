"""The ledger of a folder: the names and SHA-256 of the files that we wrote there."""

import errno
import functools
import hashlib
import os
import re

import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.files.file_kinds import is_remote

LEDGER = ".deeplab_tf.sha256"
_LINE = re.compile(r"(\\?)([0-9a-f]{64})  (.+)")
_BLOCK = 1 << 20
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


class Ledger:
    """The digests of the files that we wrote to a folder, by name.

    Raises:
        UserError: if the ledger is a folder, a link or a device.
    """

    def __init__(self, folder: str):
        self._path = os.path.join(folder, LEDGER)
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
        if digest in self.digests(name):
            return
        content = format_entry(name, digest).encode(errors="surrogateescape")
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
def open_ledger(folder: str) -> Ledger:
    """Returns the cached ledger of a folder."""
    return Ledger(folder)


def format_entry(name: str, digest: str) -> str:
    """Returns the ledger line of a file, in the format of `sha256sum`."""
    escaped = name
    for escape, character in _ESCAPES.items():
        escaped = escaped.replace(character, escape)
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"
