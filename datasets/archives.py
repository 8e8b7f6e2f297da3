"""Archives of images: fetched once, verified, extracted safely and completely."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
from etils import epath
from tqdm import tqdm

from deeplab_tf.data.records import UNFINISHED
from deeplab_tf.errors import UserError

# What an extracted folder was made of; its last file, so it is complete with it.
_STAMP = "archive.txt"
_BLOCK = 1 << 20


class Source(NamedTuple):
    """Where an archive is, and what tells that it is the right one.

    Attributes:
        url: http, https or ftp, or a path that `tf.io.gfile` copies.
        size: Bytes, where `sha256` is known.
        sha256: SHA-256 in hexadecimal digits; "" where it is not known.
        md5: MD5 likewise.
    """

    url: str
    size: int = 0
    sha256: str = ""
    md5: str = ""


def fetch(source: Source, folder: epath.Path) -> epath.Path:
    """Returns the archive of a source, which is downloaded unless it is there.

    A download that breaks off begins anew the next time; TensorFlow Datasets, which
    does it, does not resume.

    Args:
        source: What to fetch.
        folder: Folder of the downloads; made if need be.

    Raises:
        UserError: if it cannot be fetched or is not the archive that it should be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("*.tmp.*"))
    try:
        archive = _downloaded(source, folder)
    except BaseException:
        # The download manager leaves them, of up to the size of the archive each.
        for partial in set(folder.glob("*.tmp.*")) - before:
            partial.rmtree()
        raise
    if source.md5 and _md5(archive) != source.md5:
        for path in (archive, archive.with_name(f"{archive.name}.INFO")):
            path.unlink()  # else it would be found the next time
        raise UserError(f"{source.url} has another MD5 than {source.md5}")
    return archive


def _downloaded(source: Source, folder: epath.Path) -> epath.Path:
    import tensorflow_datasets as tfds  # here: it takes seconds to import
    from tensorflow_datasets.core.download import checksums, download_manager

    known = {}
    if source.sha256:
        name = source.url.rpartition("/")[2]
        known[source.url] = checksums.UrlInfo(source.size, source.sha256, name)
    try:
        manager = tfds.download.DownloadManager(download_dir=folder, url_infos=known)
        return manager.download(source.url)
    except download_manager.NonMatchingChecksumError as error:
        raise UserError(
            f"{source.url} is not the archive of {source.size} bytes with the SHA-256 "
            f"{source.sha256}"
        ) from error
    except (OSError, tfds.download.DownloadError, tf.errors.OpError) as error:
        raise UserError(f"{source.url} cannot be fetched: {error}") from error


def _md5(path: epath.Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def extract(
    archive: epath.Path, folder: epath.Path, wanted: Sequence[str]
) -> epath.Path:
    """Returns a folder with some files and folders of an archive.

    It gets its name when it is complete; then it is not extracted again unless the
    archive changes.

    Args:
        archive: Tar file, compressed or not.
        folder: Folder to make, on a disk of this machine.
        wanted: Paths in the archive.

    Raises:
        UserError: if the archive is broken, lacks something that is wanted, or has a
            member that would be written elsewhere; names archive and member.
    """
    stat = tf.io.gfile.stat(os.fspath(archive))
    stamp = f"{stat.length} bytes of {stat.mtime_nsec}: {' '.join(wanted)}\n"
    if (folder / _STAMP).exists() and (folder / _STAMP).read_text() == stamp:
        return folder
    if not hasattr(tarfile, "data_filter"):
        raise UserError(
            "extracting archives safely needs Python 3.10.12, 3.11.4 or later; "
            "update it, or extract the archive yourself and give --voc_root"
        )
    unfinished = folder.with_name(folder.name + UNFINISHED)
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


def _extract_all(archive, folder: epath.Path, wanted: Sequence[str]) -> None:
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
    for name in wanted:
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
    name = os.path.normpath(member.name)
    if any(name == path or name.startswith(f"{path}/") for path in wanted):
        tar.extract(member, os.fspath(folder), filter="data")
