"""Downloads and verifies the archives of datasets."""

import hashlib
import os
from typing import NamedTuple

from etils import epath

from deeplab_tf.checkpoints import download
from deeplab_tf.files.archives import extract
from deeplab_tf.files.ledger import digest_file

__all__ = ["Source", "extract", "fetch"]


class Source(NamedTuple):
    """The location of an archive and its hexadecimal checksums, "" if unknown.

    The URL is http, https or a path that `tf.io.gfile` copies.
    """

    url: str
    sha256: str = ""
    md5: str = ""


def fetch(source: Source, folder: epath.Path) -> epath.Path:
    """Downloads an archive into a local folder, unless it is there.

    An interrupted download is resumed.

    Raises:
        UserError: if the download fails or a checksum does not match.
    """

    def find_damage(path: str) -> str | None:
        digest = digest_file(path, hashlib.md5(usedforsecurity=False))
        matches = digest == (source.md5 or digest)
        return None if matches else f"its MD5 is {digest}, not {source.md5}"

    path = download.fetch(source.url, os.fspath(folder), source.sha256, find_damage)
    return epath.Path(path)
