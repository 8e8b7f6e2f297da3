"""Tar archives extracted safely and completely, or not at all.

An extracted folder holds a stamp: a text file that names the archive and has the
SHA-256 of each file, in the format of `sha256sum`.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from etils import epath
from tqdm import tqdm

from deeplab_tf.errors import UserError
from deeplab_tf.files.compression import ArchiveError
from deeplab_tf.files.tar import Member, read_members

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_STAMP = "archive.txt"
# Stamps without checksums, of earlier versions, begin with a digit.
_STAMP_START = re.compile(rb"(# )?[0-9]+ bytes of [0-9]+: ")
_STAMP_LINE = re.compile(rb"([0-9a-f]{64})  (.+)\n")
_MAX_LINE = 1 << 14
_UNFINISHED = ".unfinished."
_BLOCK = 1 << 20
_GIB = 1 << 30
_LIMIT = 4 * _GIB
_ATTEMPTS = 10


class UnusableFolderError(UserError):
    """A folder that an archive cannot be extracted into."""


def extract(
    archive: epath.Path,
    folder: epath.Path,
    wanted: Sequence[str] | None = None,
    limit: int = _LIMIT,
) -> epath.Path:
    """Extracts an archive, or some files and folders of it, and returns the folder.

    The folder gets its name when it is complete. It is reused as long as the archive
    is the same and every file still has its checksum; otherwise the archive is
    extracted again, and a folder with other files than ours is kept under another
    name. Several processes may extract the same archive at once.

    Args:
        archive: Tar file, compressed by gzip, bzip2, xz or not at all.
        folder: Folder to make, on a disk of this machine.
        wanted: Paths in the archive; None is all of it.
        limit: Bytes that the extracted files may have together.

    Raises:
        UnusableFolderError: if the folder cannot be written, or holds something else.
        UserError: if the archive is broken, lacks something that is wanted, has a
            member that is no plain file or folder or would be written elsewhere, or
            more than `limit` bytes; names archive and member.
    """
    # Opening a FIFO would wait for ever; etils does not tell it from a file.
    is_remote = "://" in os.fspath(archive)
    if not (archive.exists() if is_remote else os.path.isfile(archive)):
        raise UserError(f"there is no archive {archive}")
    target = os.path.abspath(folder)
    try:
        title = _describe(archive, wanted)
        if not _is_intact(target, title):
            _require_replaceable(target)
            _require_safe(archive, wanted, limit)
            with _make_unfinished(target) as unfinished:
                _extract_members(archive, unfinished, title, wanted, limit)
                _publish(unfinished, target, title)
    except ArchiveError as error:
        raise UserError(f"{archive} cannot be extracted: {error}") from error
    except OSError as error:
        raise UnusableFolderError(
            f"{archive} cannot be extracted into {os.path.dirname(target)}: {error}"
        ) from error
    return folder


def find_damage(archive: epath.Path, limit: int = _LIMIT) -> str | None:
    """Returns why `extract` would refuse an archive, in one line; None if it would not.

    Reads the archive to its end and writes nothing.

    Raises:
        OSError: if the archive cannot be read.
    """
    try:
        _require_safe(archive, None, limit)
    except ArchiveError as error:
        return str(error)
    return None


def digest_file(path: str, digest) -> str:
    """Returns the digest of a file in hexadecimal digits.

    Args:
        path: Path of the file.
        digest: A new hash object, such as `hashlib.sha256()`.
    """
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _describe(archive: epath.Path, wanted: Sequence[str] | None) -> bytes:
    """Returns the first line of a stamp, a comment for `sha256sum`."""
    found = archive.stat()
    what = "all" if wanted is None else " ".join(wanted)
    return f"# {found.length} bytes of {found.mtime}: {what}\n".encode()


def _require_safe(
    archive: epath.Path, wanted: Sequence[str] | None, limit: int
) -> None:
    """Reads an archive to its end; raises ArchiveError if it is not to be extracted.

    Writing as it is read would take minutes to write, and to remove, what a hostile
    archive has before it is refused.
    """
    with archive.open("rb") as file:
        for _ in _read_wanted(file, wanted, limit):
            pass


def _read_wanted(
    file: BinaryIO, wanted: Sequence[str] | None, limit: int
) -> Iterator[Member]:
    """Yields the wanted members; all others are validated as well."""
    size = 0
    for member in read_members(file):
        if member.name.partition("/")[0] == _STAMP:
            raise ArchiveError(f"its member {_STAMP} has the name of our stamp")
        if _is_wanted(member.name, wanted):
            size += member.size
            _require_within(size, limit)
            yield member


def _extract_members(
    archive: epath.Path,
    folder: str,
    title: bytes,
    wanted: Sequence[str] | None,
    limit: int,
) -> None:
    with open(os.path.join(folder, _STAMP), "xb") as stamp, archive.open("rb") as file:
        stamp.write(title)
        stamp.flush()  # so that the folder is known to be ours
        found = _read_wanted(file, wanted, limit)
        for member in tqdm(found, desc="extract", unit="file"):
            _write(member, folder, stamp)
    for name in wanted or ():
        if not os.path.exists(os.path.join(folder, name)):
            raise UserError(f"{archive} has no {name}; is it the right archive?")


def _write(member: Member, folder: str, stamp: BinaryIO) -> None:
    """Writes a file or folder, and the checksum of a file to the stamp."""
    path = os.path.join(folder, *member.name.split("/"))
    os.makedirs(path if member.is_folder else os.path.dirname(path), exist_ok=True)
    if member.is_folder:
        return
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for block in member.blocks():
            file.write(block)
            digest.update(block)
    stamp.write(f"{digest.hexdigest()}  {member.name}\n".encode())


def _require_within(size: int, limit: int) -> None:
    if size > limit:
        raise ArchiveError(
            f"it has more than {limit / _GIB:.3g} GiB of files; extract it yourself "
            "and give the folder if that is right"
        )


def _is_wanted(name: str, wanted: Sequence[str] | None) -> bool:
    return wanted is None or any(
        name == path or name.startswith(f"{path}/") for path in wanted
    )


def _has_stamp(folder: str) -> bool:
    path = os.path.join(folder, _STAMP)
    if not _is_plain_file(path):
        return False
    with open(path, "rb") as stamp:
        return bool(_STAMP_START.match(stamp.readline(_MAX_LINE)))


def _is_intact(folder: str, title: bytes | None = None) -> bool:
    """Whether a folder holds the files of its stamp, unchanged, and no others.

    Args:
        folder: Folder, which need not exist.
        title: First line that the stamp must have; None accepts any.
    """
    if not _has_stamp(folder):
        return False
    count = 1  # the stamp
    with open(os.path.join(folder, _STAMP), "rb") as stamp:
        if stamp.readline(_MAX_LINE) != title and title is not None:
            return False
        while line := stamp.readline(_MAX_LINE):
            match = _STAMP_LINE.fullmatch(line)
            if not match:
                return False
            path = os.path.join(folder, os.fsdecode(match[2]))
            if not _is_plain_file(path):
                return False
            if digest_file(path, hashlib.sha256()) != match[1].decode():
                return False
            count += 1
    return count == _count_files(folder)


def _is_plain_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _count_files(folder: str) -> int:
    """Returns the number of files of any kind in a folder, links included."""
    count = 0
    for here, folders, files in os.walk(folder):
        links = (os.path.islink(os.path.join(here, name)) for name in folders)
        count += len(files) + sum(links)
    return count


def _require_replaceable(folder: str) -> None:
    """Raises UnusableFolderError unless a folder is absent, empty or one of ours."""
    if not os.path.lexists(folder):
        return
    if os.path.islink(folder) or not os.path.isdir(folder):
        raise UnusableFolderError(f"{folder} is in the way: it is no folder")
    if os.listdir(folder) and not _has_stamp(folder):
        raise UnusableFolderError(
            f"{folder} is in the way: it was not extracted from an archive by this "
            "program; move it"
        )


@contextlib.contextmanager
def _make_unfinished(target: str) -> Iterator[str]:
    """Yields a new folder next to `target`; removes it unless it was renamed.

    A lock on the folder shows other processes that it is in use. One that a killed
    process left is not locked any more, and removed by the next.
    """
    os.makedirs(os.path.dirname(target), exist_ok=True)
    _remove_leftovers(target)
    with contextlib.ExitStack() as stack:
        for _ in range(_ATTEMPTS):
            path = _name_unfinished(target)
            os.mkdir(path)
            # Another process may have taken it for a leftover until it is locked.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                stack.enter_context(_lock_folder(path))
                break
        else:
            raise FileNotFoundError("other processes remove what is extracted")
        stack.callback(_discard, path)
        yield path


def _name_unfinished(target: str) -> str:
    return f"{target}{_UNFINISHED}{secrets.token_hex(4)}"


@contextlib.contextmanager
def _lock_folder(path: str) -> Iterator[bool]:
    """Locks a folder; yields whether its disk and the system allow that.

    Raises:
        BlockingIOError: if another process has it locked.
        FileNotFoundError: if another process removed it.
    """
    if fcntl is None:
        yield False
        return
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        is_locked = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # some network disks
            is_locked = False
        os.stat(path)
        yield is_locked
    finally:
        os.close(lock)


def _remove_leftovers(target: str) -> None:
    """Removes the unfinished folders of processes that were killed."""
    parent, name = os.path.split(target)
    leftover = re.compile(re.escape(name + _UNFINISHED) + "[0-9a-f]{8}")
    for found in filter(leftover.fullmatch, os.listdir(parent)):
        path = os.path.join(parent, found)
        with contextlib.suppress(OSError), _lock_folder(path) as is_locked:
            if is_locked and _is_ours(path):
                _remove(path)


def _is_ours(unfinished: str) -> bool:
    """Whether a folder holds our stamp, or a process was killed before it wrote one."""
    names = os.listdir(unfinished)
    if names == [_STAMP] and not os.path.getsize(os.path.join(unfinished, _STAMP)):
        return True
    return not names or _has_stamp(unfinished)


def _remove(folder: str) -> None:
    """Removes a folder of ours; its stamp last, so that it can be removed again."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != _STAMP:
                os.remove(entry.path)
    shutil.rmtree(folder)


def _discard(unfinished: str) -> None:
    with contextlib.suppress(OSError):  # it was renamed, or its disk is full or gone
        _remove(unfinished)


def _publish(unfinished: str, target: str, title: bytes) -> None:
    """Renames a complete folder to its final name."""
    for _ in range(_ATTEMPTS):
        try:
            os.rename(unfinished, target)
            return
        except OSError:
            if not os.path.isdir(target):
                raise
        if _is_intact(target, title):
            return  # another process was faster
        _require_replaceable(target)
        _move_away(target)
    raise UnusableFolderError(f"{target} cannot be replaced: others write there")


def _move_away(folder: str) -> None:
    """Removes a folder if all of it is ours; otherwise gives it another name."""
    if not os.listdir(folder):
        os.rmdir(folder)
    elif _is_intact(folder):
        old = _name_unfinished(folder)
        os.rename(folder, old)
        _remove(old)
    else:
        aside = f"{folder}.replaced.{secrets.token_hex(4)}"
        os.rename(folder, aside)
        print(f"note: {folder} was changed; it is kept as {aside}", file=sys.stderr)
