"""Archives of images: fetched once, verified, extracted safely and completely."""

import hashlib
import os
from typing import NamedTuple

from etils import epath

from deeplab_tf.checkpoints import download
from deeplab_tf.files.archives import extract
from deeplab_tf.files.ledger import digest_file

__all__ = ["Source", "extract", "fetch"]


class Source(NamedTuple):
    """Where an archive is, and the checksums that identify it.

    Attributes:
        url: http or https, or a path that `tf.io.gfile` copies.
        sha256: SHA-256 in hexadecimal digits; "" if none was published.
        md5: MD5 likewise, which is compared before the first use.
    """

    url: str
    sha256: str = ""
    md5: str = ""


def fetch(source: Source, folder: epath.Path) -> epath.Path:
    """Returns the archive of a source, which is downloaded unless it is there.

    Args:
        source: What to fetch; a download that broke off is resumed.
        folder: Folder of the downloads, on a disk of this machine; made if need be.

    Raises:
        UserError: if it cannot be fetched or is not the archive that it should be.
    """

    def find_damage(path: str) -> str | None:
        digest = digest_file(path, hashlib.md5(usedforsecurity=False))
        is_right = digest == (source.md5 or digest)
        return None if is_right else f"its MD5 is {digest}, not {source.md5}"

    path = download.fetch(source.url, os.fspath(folder), source.sha256, find_damage)
    return epath.Path(path)
