"""Extracts tar archives safely: completely or not at all.

An extracted folder contains a stamp, `archive.txt`: a text file with the size and time
of the archive and the SHA-256 of each file, in the format of `sha256sum`.
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

from deeplab_tf.errors import UserError
from deeplab_tf.files import scratch
from deeplab_tf.files.compression import ArchiveError
from deeplab_tf.files.ledger import digest_file
from deeplab_tf.files.tar import Member, read_members
from deeplab_tf.progress import ProgressBar

_STAMP = "archive.txt"
# Stamps of earlier versions, which lack checksums, start with a digit.
_STAMP_START = re.compile(rb"(# )?[0-9]+ bytes of [0-9]+: ")
_STAMP_LINE = re.compile(rb"([0-9a-f]{64})  (.+)\n")
_MAX_LINE = 1 << 14
_GIB = 1 << 30
_MAX_BYTES = 4 * _GIB
_ATTEMPTS = 10


class UnusableFolderError(UserError):
    """The archive cannot be extracted into this folder."""


def extract(
    archive: epath.Path,
    folder: epath.Path,
    wanted: Sequence[str] | None = None,
    limit: int = _MAX_BYTES,
) -> epath.Path:
    """Extracts an archive, or parts of it, and returns the folder.

    The folder is published atomically. While the archive and the checksums of all files
    are unchanged, the folder is reused. Otherwise, the archive is extracted again, and
    a folder with changed files is renamed and kept. Several processes may extract the
    same archive at once.

    Args:
        archive: Tar file, plain or compressed by gzip, bzip2 or xz.
        folder: Folder to create, on a local disk.
        wanted: Files and folders to extract; None extracts all.
        limit: Maximum total size of the extracted files, in bytes.

    Raises:
        UnusableFolderError: if the folder cannot be written, or was not created by us.
        UserError: if the archive is damaged, lacks a wanted path, exceeds `limit`, or
            has a member that is not a regular file or folder, or would be written
            outside the folder. The error names the archive and the member.
    """
    # Opening a FIFO would block forever, and etils treats a FIFO as a file.
    is_remote = "://" in os.fspath(archive)
    if not (archive.exists() if is_remote else os.path.isfile(archive)):
        raise UserError(f"there is no archive {archive}")
    target = os.path.abspath(folder)
    try:
        stamp_header = _make_stamp_header(archive, wanted)
        if _is_intact(target, stamp_header):
            # A process killed right after publishing leaves a scratch folder.
            scratch.remove_leftovers(os.path.dirname(target))
            return folder
        _require_replaceable(target)
        _require_safe(archive, wanted, limit)
        with scratch.create_folder(os.path.dirname(target)) as unfinished:
            new = os.path.join(unfinished, os.path.basename(target))
            _extract_members(archive, new, stamp_header, wanted, limit)
            _publish(new, target, stamp_header)
    except ArchiveError as error:
        raise UserError(f"{archive} cannot be extracted: {error}") from error
    except OSError as error:
        raise UnusableFolderError(
            f"{archive} cannot be extracted into {os.path.dirname(target)}: {error}"
        ) from error
    return folder


def find_damage(archive: epath.Path, limit: int = _MAX_BYTES) -> str | None:
    """Returns why `extract` would refuse an archive, or None.

    Raises OSError if the archive cannot be read.
    """
    try:
        _require_safe(archive, None, limit)
    except ArchiveError as error:
        return str(error)
    return None


def _make_stamp_header(archive: epath.Path, wanted: Sequence[str] | None) -> bytes:
    """Returns the first line of a stamp, which `sha256sum` reads as a comment."""
    stats = archive.stat()
    parts = "all" if wanted is None else " ".join(wanted)
    return f"# {stats.length} bytes of {stats.mtime}: {parts}\n".encode()


def _require_safe(
    archive: epath.Path, wanted: Sequence[str] | None, limit: int
) -> None:
    """Reads an entire archive; raises ArchiveError if it must not be extracted.

    Called before writing, because writing a hostile archive could take minutes.
    """
    with archive.open("rb") as file:
        for _ in _read_wanted(file, wanted, limit):
            pass


def _read_wanted(
    file: BinaryIO, wanted: Sequence[str] | None, limit: int
) -> Iterator[Member]:
    """Yields the wanted members, and validates all members."""
    size = 0
    for member in read_members(file):
        if member.name.partition("/")[0] == _STAMP:
            raise ArchiveError(
                f"its member {_STAMP} has the name of the stamp that we add"
            )
        if _is_wanted(member.name, wanted):
            size += member.size
            if size > limit:
                raise ArchiveError(
                    f"it contains more than {limit / _GIB:.3g} GiB; if that is "
                    "expected, extract it yourself and give the folder"
                )
            yield member


def _extract_members(
    archive: epath.Path,
    folder: str,
    stamp_header: bytes,
    wanted: Sequence[str] | None,
    limit: int,
) -> None:
    """Extracts the wanted members to a new folder and writes its stamp."""
    os.mkdir(folder)
    with open(os.path.join(folder, _STAMP), "xb") as stamp, archive.open("rb") as file:
        stamp.write(stamp_header)
        found = _read_wanted(file, wanted, limit)
        for member in ProgressBar(
            found, "extract", total=len(wanted) if wanted else None, unit="file"
        ):
            _write(member, folder, stamp)
    for name in wanted or ():
        if not os.path.exists(os.path.join(folder, name)):
            raise UserError(
                f"{archive} does not contain {name}; is it the right archive?"
            )


def _write(member: Member, folder: str, stamp: BinaryIO) -> None:
    """Extracts a member; appends the checksum of a regular file to the stamp."""
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


def _is_wanted(name: str, wanted: Sequence[str] | None) -> bool:
    """Returns whether a name is a wanted path or below one."""
    return wanted is None or any(
        name == path or name.startswith(f"{path}/") for path in wanted
    )


def _has_stamp(folder: str) -> bool:
    """Returns whether a folder was extracted by us, judging by its stamp."""
    path = os.path.join(folder, _STAMP)
    if not _is_plain_file(path):
        return False
    with open(path, "rb") as stamp:
        return bool(_STAMP_START.match(stamp.readline(_MAX_LINE)))


def _is_intact(folder: str, stamp_header: bytes | None = None) -> bool:
    """Returns whether a folder contains exactly the files in its stamp, unchanged.

    If `stamp_header` is given, the stamp must start with it.
    """
    if not _has_stamp(folder):
        return False
    count = 1  # the stamp
    with open(os.path.join(folder, _STAMP), "rb") as stamp:
        if stamp.readline(_MAX_LINE) != stamp_header and stamp_header is not None:
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
    """Returns the number of files of any kind in a folder, including links."""
    count = 0
    for here, folders, files in os.walk(folder):
        links = (os.path.islink(os.path.join(here, name)) for name in folders)
        count += len(files) + sum(links)
    return count


def _require_replaceable(folder: str) -> None:
    """Raises UnusableFolderError unless a folder is missing, empty or ours."""
    if not os.path.lexists(folder):
        return
    if os.path.islink(folder) or not os.path.isdir(folder):
        raise UnusableFolderError(
            f"{folder} exists but is not a folder; move it elsewhere"
        )
    if os.listdir(folder) and not _has_stamp(folder):
        raise UnusableFolderError(
            f"{folder} exists but was not extracted by this program; move it elsewhere"
        )


def _publish(new: str, target: str, stamp_header: bytes) -> None:
    """Moves a new folder to the target, unless another process was first.

    Retries if the target appears or changes in the meantime.
    """
    for _ in range(_ATTEMPTS):
        try:
            os.rename(new, target)
            return
        except OSError:
            if not os.path.isdir(target):
                raise
        if _is_intact(target, stamp_header):
            return  # another process published it first
        _require_replaceable(target)
        _move_away(target, os.path.dirname(new))
    raise UnusableFolderError(
        f"{target} cannot be replaced: other processes are writing there"
    )


def _move_away(folder: str, trash: str) -> None:
    """Moves an unchanged folder to the trash; renames and reports a changed one."""
    if not os.listdir(folder) or _is_intact(folder):
        os.rename(folder, os.path.join(trash, secrets.token_hex(4)))
        return
    aside = f"{folder}.replaced.{secrets.token_hex(4)}"
    os.rename(folder, aside)
    print(f"note: {folder} was changed; it was moved to {aside}", file=sys.stderr)
