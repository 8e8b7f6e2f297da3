"""Tar archives extracted safely and completely, or not at all."""

import contextlib
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence

import tensorflow as tf
from etils import epath
from tqdm import tqdm

from deeplab_tf.errors import UserError

# What an extracted folder was made of; its last file, so it is complete with it.
_STAMP = "archive.txt"
_UNFINISHED = ".unfinished"
_BLOCK = 1 << 20
_GIB = 1 << 30
_DAMAGE = (tarfile.TarError, EOFError, zlib.error)


class _DamageError(Exception):
    """What is wrong with an archive, in one line."""


class UnusableFolderError(UserError):
    """A folder that an archive cannot be extracted into."""


def extract(
    archive: epath.Path,
    folder: epath.Path,
    wanted: Sequence[str] | None = None,
    limit: int = 4 * _GIB,
) -> epath.Path:
    """Returns a folder with some files and folders of an archive, or with all.

    It gets its name when it is complete; then it is not extracted again unless the
    archive changes. Links are refused, wherever they lead to.

    Args:
        archive: Tar file, compressed or not.
        folder: Folder to make, on a disk of this machine.
        wanted: Paths in the archive; None is all of it.
        limit: Bytes that the extracted files may have together.

    Raises:
        UnusableFolderError: if the folder cannot be written.
        UserError: if the archive is broken, lacks something that is wanted, has a
            member that is no plain file or folder or would be written elsewhere, or
            more than `limit` bytes; names archive and member.
    """
    stat = tf.io.gfile.stat(os.fspath(archive))
    what = "all" if wanted is None else " ".join(wanted)
    stamp = f"{stat.length} bytes of {stat.mtime_nsec}: {what}\n"
    if (folder / _STAMP).exists() and (folder / _STAMP).read_text() == stamp:
        return folder
    if not hasattr(tarfile, "data_filter"):
        raise UserError(
            "extracting archives safely needs Python 3.10.12, 3.11.4 or later; "
            f"update it, or extract {archive} yourself and give the folder"
        )
    unfinished = folder.with_name(folder.name + _UNFINISHED)
    try:
        _clear(unfinished)
        _extract_all(archive, unfinished, wanted, limit)
        (unfinished / _STAMP).write_text(stamp)
        _clear(folder)
        return unfinished.rename(folder)
    except _DamageError as error:
        raise UserError(f"{archive} cannot be extracted: {error}") from error
    except OSError as error:
        raise UnusableFolderError(
            f"{archive} cannot be extracted into {folder.parent}: {error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _clear(unfinished)


def find_damage(archive: epath.Path) -> str | None:
    """Returns what is wrong with an archive, in one line; None if nothing is.

    It is read to its end; nothing is written.

    Raises:
        OSError: if it cannot be read.
    """
    try:
        with _open(archive) as tar:
            for _ in tar:
                pass
            _check_end(tar)
    except _DamageError as error:
        return str(error)
    return None


@contextlib.contextmanager
def _open(archive: epath.Path) -> Iterator[tarfile.TarFile]:
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=file) as tar:
            yield tar
    except (*_DAMAGE, OSError) as error:
        # What gzip and bz2 find wrong are OSErrors, but none of the system's.
        if getattr(error, "errno", None) is not None:
            raise
        # Where no format fits, the other lines tell of each why.
        reason = str(error).partition("\n")[0].rstrip(":")
        raise _DamageError(reason) from error


def _clear(folder: epath.Path) -> None:
    if folder.exists():
        folder.rmtree()


def _extract_all(
    archive, folder: epath.Path, wanted: Sequence[str] | None, limit: int
) -> None:
    folder.mkdir(parents=True)
    size = 0
    with _open(archive) as tar, tqdm(tar, desc="extract", unit="file") as members:
        for member in members:
            # All are looked at: an archive that tries it once deserves no trust at all.
            _require_safe(archive, member, folder)
            if _is_wanted(os.path.normpath(member.name), wanted):
                size += member.size
                _require_within(archive, size, limit)
                tar.extract(member, os.fspath(folder), filter="data")
        _check_end(tar)
    for name in wanted or ():
        if not (folder / name).exists():
            raise UserError(f"{archive} has no {name}; is it the right archive?")


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises ReadError where an archive was cut; tarfile ends there in silence."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it has no end")
    while tar.fileobj.read(_BLOCK):
        pass  # gzip verifies its checksum at the very end


def _require_safe(archive, member: tarfile.TarInfo, folder: epath.Path) -> None:
    if member.name.startswith("/"):
        raise UserError(f"{archive} has the absolute path {member.name}; refused")
    what = f"{archive} has the member {member.name}; refused"
    # The filter of Python before 3.10.18, 3.11.13, 3.12.11 and 3.13.4 lets a chain of
    # links lead out of the folder (CVE-2025-4517).
    if not (member.isfile() or member.isdir()):
        raise UserError(f"{what}: it is no plain file or folder")
    try:
        tarfile.data_filter(member, os.fspath(folder))
    except tarfile.FilterError as error:
        raise UserError(f"{what}: {error}") from error


def _require_within(archive, size: int, limit: int) -> None:
    if size > limit:
        raise UserError(
            f"{archive} has more than {limit / _GIB:.3g} GiB of files; refused, "
            "extract it yourself and give the folder if that is right"
        )


def _is_wanted(name: str, wanted: Sequence[str] | None) -> bool:
    return wanted is None or any(
        name == path or name.startswith(f"{path}/") for path in wanted
    )
