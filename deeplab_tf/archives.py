"""Tar archives extracted safely and completely, or not at all."""

import os
import tarfile
import zlib
from collections.abc import Sequence

import tensorflow as tf
from etils import epath
from tqdm import tqdm

from deeplab_tf.errors import UserError

# What an extracted folder was made of; its last file, so it is complete with it.
_STAMP = "archive.txt"
_UNFINISHED = ".unfinished"
_BLOCK = 1 << 20


def extract(
    archive: epath.Path, folder: epath.Path, wanted: Sequence[str] | None = None
) -> epath.Path:
    """Returns a folder with some files and folders of an archive, or with all.

    It gets its name when it is complete; then it is not extracted again unless the
    archive changes.

    Args:
        archive: Tar file, compressed or not.
        folder: Folder to make, on a disk of this machine.
        wanted: Paths in the archive; None is all of it.

    Raises:
        UserError: if the archive is broken, lacks something that is wanted, or has a
            member that would be written elsewhere; names archive and member.
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
    _clear(unfinished)
    try:
        _extract_all(archive, unfinished, wanted)
        (unfinished / _STAMP).write_text(stamp)
    except BaseException:
        _clear(unfinished)
        raise
    _clear(folder)
    return unfinished.rename(folder)


def _clear(folder: epath.Path) -> None:
    if folder.exists():
        folder.rmtree()


def _extract_all(archive, folder: epath.Path, wanted: Sequence[str] | None) -> None:
    folder.mkdir(parents=True)
    try:
        with (
            archive.open("rb") as file,
            tarfile.open(fileobj=file) as tar,
            tqdm(tar, desc="extract", unit="file") as members,
        ):
            for member in members:
                _extract_member(archive, tar, member, folder, wanted)
            _check_end(tar)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{archive} cannot be extracted: {error}") from error
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


def _extract_member(archive, tar, member, folder, wanted) -> None:
    # All are looked at: an archive that tries it once deserves no trust at all.
    if member.name.startswith("/"):
        raise UserError(f"{archive} has the absolute path {member.name}; refused")
    try:
        tarfile.data_filter(member, os.fspath(folder))
    except tarfile.FilterError as error:
        raise UserError(
            f"{archive} has the member {member.name}; refused: {error}"
        ) from error
    if _is_wanted(os.path.normpath(member.name), wanted):
        tar.extract(member, os.fspath(folder), filter="data")


def _is_wanted(name: str, wanted: Sequence[str] | None) -> bool:
    return wanted is None or any(
        name == path or name.startswith(f"{path}/") for path in wanted
    )
