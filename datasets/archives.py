"""Archives of images: fetched once, verified, extracted safely and completely."""

import hashlib
from typing import NamedTuple

import tensorflow as tf
from etils import epath

from deeplab_tf.archives import extract
from deeplab_tf.errors import UserError

__all__ = ["Source", "extract", "fetch"]

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
