"""Tar archives extracted safely and completely, or not at all.

An extracted folder holds a stamp: a text file that names the archive and has the
SHA-256 of each file, in the format of `sha256sum`.
"""

import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from etils import epath
from tqdm import tqdm

from deeplab_tf.errors import UserError
from deeplab_tf.files import scratch
from deeplab_tf.files.compression import ArchiveError
from deeplab_tf.files.ledger import digest_file
from deeplab_tf.files.tar import Member, read_members

_STAMP = "archive.txt"
# Stamps without checksums, of earlier versions, begin with a digit.
_STAMP_START = re.compile(rb"(# )?[0-9]+ bytes of [0-9]+: ")
_STAMP_LINE = re.compile(rb"([0-9a-f]{64})  (.+)\n")
_MAX_LINE = 1 << 14
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
            with scratch.folder(os.path.dirname(target)) as unfinished:
                new = os.path.join(unfinished, os.path.basename(target))
                _extract_members(archive, new, title, wanted, limit)
                _publish(new, target, title)
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
    os.mkdir(folder)
    with open(os.path.join(folder, _STAMP), "xb") as stamp, archive.open("rb") as file:
        stamp.write(title)
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
            if digest_file(path) != match[1].decode():
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


def _publish(new: str, target: str, title: bytes) -> None:
    """Renames a complete folder to its final name."""
    for _ in range(_ATTEMPTS):
        try:
            os.rename(new, target)
            return
        except OSError:
            if not os.path.isdir(target):
                raise
        if _is_intact(target, title):
            return  # another process was faster
        _require_replaceable(target)
        _move_away(target, os.path.dirname(new))
    raise UnusableFolderError(f"{target} cannot be replaced: others write there")


def _move_away(folder: str, unfinished: str) -> None:
    """Moves a folder to those to be removed, or aside if it was changed."""
    if not os.listdir(folder) or _is_intact(folder):
        os.rename(folder, os.path.join(unfinished, secrets.token_hex(4)))
        return
    aside = f"{folder}.replaced.{secrets.token_hex(4)}"
    os.rename(folder, aside)
    print(f"note: {folder} was changed; it is kept as {aside}", file=sys.stderr)
