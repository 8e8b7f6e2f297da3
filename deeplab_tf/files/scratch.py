"""Scratch files and folders on the disk of the output, and atomic folder replacement.

Scratch files and folders are locked while their process lives. If unlocked, they were
left by a killed process and may be removed.
"""

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NAME = re.compile(r"\.deeplab_tf-[0-9a-f]{16}\.tmp")
_EARLIER = ".earlier"
# Constants of renameat2 (Linux) and renamex_np (macOS).
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


def _make_path(folder: str) -> str:
    return os.path.join(folder, f".deeplab_tf-{secrets.token_hex(8)}.tmp")


def _try_lock(descriptor: int, path: str) -> bool:
    """Locks an open file; returns False if another process locked or removed it."""
    if fcntl:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # on disks without locks, leftovers are not removed either
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def create_file(folder: str) -> Iterator[BinaryIO]:
    """Opens a scratch file for writing, and removes it at the end unless moved."""
    while True:
        # The tempfile module would create files that other users cannot read.
        scratch = open(_make_path(folder), "xb")  # noqa: SIM115
        if _try_lock(scratch.fileno(), scratch.name):
            break
        scratch.close()  # another process removed it as a leftover
    with scratch:
        try:
            yield scratch
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(scratch.name)


@contextlib.contextmanager
def create_folder(parent: str | None) -> Iterator[str]:
    """Creates a scratch folder and removes it at the end.

    Args:
        parent: Parent folder, created if needed; None for the temporary folder of the
            system.
    """
    if parent is None or fcntl is None:
        if parent is not None:
            os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as scratch:
            yield scratch
        return
    os.makedirs(parent, exist_ok=True)
    remove_leftovers(parent)
    scratch, descriptor = _make_folder(parent)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)
        os.close(descriptor)


def _make_folder(parent: str) -> tuple[str, int]:
    while True:
        scratch = _make_path(parent)
        os.mkdir(scratch)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(scratch, os.O_RDONLY)
            if _try_lock(descriptor, scratch):
                return scratch, descriptor
            os.close(descriptor)


def remove_leftovers(folder: str) -> None:
    """Removes the scratch files and folders of killed processes.

    If a process was killed between the two renames of `replace_folder`, the earlier
    folder is restored.
    """
    if fcntl is None or not os.path.isdir(folder):
        return
    for name in filter(_NAME.fullmatch, os.listdir(folder)):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            options = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
            descriptor = os.open(path, options)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_leftover(path)
            finally:
                os.close(descriptor)


def _remove_leftover(path: str) -> None:
    if not os.path.isdir(path):
        os.remove(path)
        return
    _restore_earlier(path)
    shutil.rmtree(path)


def _restore_earlier(scratch: str) -> None:
    """Moves back the folders that an interrupted `replace_folder` had moved."""
    earlier = os.path.join(scratch, _EARLIER)
    if not os.path.isdir(earlier):
        return
    for name in os.listdir(earlier):
        target = os.path.join(os.path.dirname(scratch), name)
        if not os.path.lexists(target):
            os.rename(os.path.join(earlier, name), target)


def replace_folder(new: str, path: str) -> None:
    """Replaces a folder atomically, where the disk supports it.

    Args:
        new: The new folder, inside a scratch folder, to which the earlier one is moved.
        path: The folder to replace; it need not exist.
    """
    if not os.path.isdir(path):
        os.rename(new, path)
        return
    if _try_exchange(new, path):
        return
    # Some disks, such as NFS, cannot exchange two folders. If we are killed between the
    # two renames, `remove_leftovers` undoes the first.
    earlier = os.path.join(os.path.dirname(new), _EARLIER)
    os.mkdir(earlier)
    earlier = os.path.join(earlier, os.path.basename(path))
    os.rename(path, earlier)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(earlier, path)
        raise


def _try_exchange(one: str, other: str) -> bool:
    """Exchanges two folders atomically; returns False if that is not supported."""
    one, other = os.fsencode(one), os.fsencode(other)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return libc.renamex_np(one, other, _RENAME_SWAP) == 0
        paths = _AT_FDCWD, one, _AT_FDCWD, other
        return libc.renameat2(*paths, _RENAME_EXCHANGE) == 0
    except (AttributeError, OSError, TypeError):  # an older system, or Windows
        return False
