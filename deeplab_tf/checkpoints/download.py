"""Files from the network: resumed where they broke off, verified, and kept.

A file that is in the cache is used without any request. Where no SHA-256 of a file was
published, that of its first use is kept beside it and compared from then on.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import re
import string
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf
from tqdm import tqdm

from deeplab_tf.errors import UserError
from deeplab_tf.locks import locked

_CACHE_VARIABLE = "DEEPLAB_TF_CACHE"
CACHE_HINT = f"give another folder as cache_dir or {_CACHE_VARIABLE}"
_CACHE = os.path.join("~", ".cache", "deeplab_tf")
_WEB = ("http://", "https://")
_FILE_URL = re.compile("file:(//(localhost)?)?(?=/)", re.IGNORECASE)
# What a file may not be called, and what basename has for a folder.
_NO_NAMES = ("", ".", "..")
_TIMEOUT = 30  # seconds of silence
_BLOCK = 1 << 20
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416
# tf.io.gfile has no common name for what it raises.
_UNREADABLE = (OSError, http.client.HTTPException, tf.errors.OpError)
# Of the cache's disk; those of a connection are others, or none of the system's.
_OF_THE_DISK = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EIO),
}


class _Origin(NamedTuple):
    """What there is a part of: the file at a URL, as it was then.

    Attributes:
        url: Where it is from.
        validator: What the server knows it by, an ETag or a time.
        total: Bytes of the whole file in digits; "" where that was not told.
    """

    url: str
    validator: str
    total: str


def cache_folder(cache_dir: str | None = None) -> str:
    """Returns the folder of the cache, which need not be there yet.

    Args:
        cache_dir: Folder on a disk of this machine; None takes the environment
            variable DEEPLAB_TF_CACHE, else `~/.cache/deeplab_tf`.

    Raises:
        UserError: if it is on no disk of this machine.
    """
    folder = os.path.expanduser(cache_dir or os.environ.get(_CACHE_VARIABLE) or _CACHE)
    if "://" in folder:
        raise UserError(
            f"the cache must be a folder on a disk of this machine; received {folder}"
        )
    return folder


def is_web(url: str) -> bool:
    """Whether a URL is fetched from a web server, not through `tf.io.gfile`."""
    return url.lower().startswith(_WEB)


def local_path(url: str) -> str:
    """Returns the path of a `file:` URL, or one that begins with `~`, else the same."""
    match = _FILE_URL.match(url)
    return (
        urllib.parse.unquote(url[match.end() :]) if match else os.path.expanduser(url)
    )


def file_name(url: str) -> str:
    """Returns the last part of a path or of a URL's path.

    Raises:
        UserError: if it cannot be read as a URL.
    """
    try:
        return os.path.basename(urllib.parse.urlsplit(url).path if is_web(url) else url)
    except ValueError as error:
        raise UserError(f"{url} is no URL: {error}") from error


def fetch(
    url: str,
    cache_dir: str,
    sha256: str = "",
    find_damage: Callable[[str], str | None] | None = None,
) -> str:
    """Returns the path of a file in the cache, which is fetched unless it is there.

    What broke off goes on where it stopped the next time, if the server allows it and
    the file is still the same there. Several processes may ask for a file at once; one
    fetches it (but on Windows all do).

    Args:
        url: http, https, or what `tf.io.gfile` reads: `file://`, `gs://`, a path.
        cache_dir: Folder on a disk of this machine; made if need be.
        sha256: SHA-256 in hexadecimal digits; "" where none was published.
        find_damage: Tells of a path what is wrong with that file, None if nothing is.
            It is asked before the SHA-256 of a first use is recorded; what is damaged
            is not kept.

    Raises:
        UserError: if it cannot be fetched, naming where it can be put by hand, if it
            is damaged or another file than it should be, or if the cache cannot be
            written.
    """
    name = file_name(url)
    path = os.path.join(cache_dir, name)
    if name in _NO_NAMES:
        raise UserError(f"{url} names no file")
    with _blaming_cache(cache_dir):
        if not os.path.exists(path):
            with locked(path):
                if not os.path.exists(path):  # nobody fetched it meanwhile
                    _fetch_anew(url, path, sha256, find_damage)
                    return path
        hint = f"remove {path} to fetch it again"
        _verify(path, path, sha256, find_damage, hint)
    return path


@contextlib.contextmanager
def _blaming_cache(folder: str) -> Iterator[None]:
    """Tells in one line what the disk says of the cache."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be used: {error}; {CACHE_HINT}"
        ) from error


def _fetch_anew(url: str, path: str, sha256: str, find_damage) -> None:
    part = f"{path}.part"
    try:
        _download(url, part) if is_web(url) else _copy(local_path(url), part)
    except _UNREADABLE as error:
        if getattr(error, "errno", None) in _OF_THE_DISK:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{url} cannot be fetched: {reason}; without a network put the file at "
            f"{path}"
        ) from error
    try:
        _verify(part, path, sha256, find_damage, f"{url} sent it; it was not kept")
    except UserError:
        _discard(part)
        raise
    os.replace(part, path)
    _discard(part)


def _discard(part: str) -> None:
    """Removes an unfinished file, and what tells where it is from."""
    for path in (part, _origin(part)):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _origin(part: str) -> str:
    return f"{part}.from"


def _copy(path: str, part: str) -> None:
    """Writes a file that `tf.io.gfile` reads; begins anew every time."""
    total = tf.io.gfile.stat(path).length
    with tf.io.gfile.GFile(path, "rb") as source, open(part, "wb") as file:
        _pour(source, file, total)


def _download(url: str, part: str) -> None:
    """Writes what a web server sends, behind what it sent before if that is right."""
    origin = _resumable(url, part)
    start = os.path.getsize(part) if origin else 0
    # What needs to be escaped, and is not yet.
    spelled = urllib.parse.quote(url, safe=string.punctuation)
    request = urllib.request.Request(spelled, headers={"User-Agent": "deeplab_tf"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        # The server sends the whole file if it is not the one that we have a part of.
        request.add_header("If-Range", origin.validator)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            if response.status != _PARTIAL_CONTENT:
                start = 0
            # Some servers send a part of whatever they have now.
            if not start or _is_same(response.headers, origin, start):
                _receive(response, url, part, start)
                return
    except urllib.error.HTTPError as error:
        error.close()
        if not start or error.code != _RANGE_NOT_SATISFIABLE:
            raise
    _discard(part)
    _download(url, part)


def _resumable(url: str, part: str) -> _Origin | None:
    """Returns what there is a part of, if it is of this URL and can be known again."""
    if not (os.path.exists(part) and os.path.exists(_origin(part))):
        return None
    with open(_origin(part)) as file:
        fields = file.read().split("\n")[:-1]
    # It may have been cut short as well.
    is_of_url = len(fields) == len(_Origin._fields) and fields[0] == url
    return _Origin(*fields) if is_of_url else None


def _is_same(headers, origin: _Origin, start: int) -> bool:
    """Whether a part that is sent is of the file that there is the beginning of."""
    # A server need not repeat a time.
    sizes = {origin.total, _total(headers, start)} - {""}
    return _validator(headers) in ("", origin.validator) and len(sizes) < 2


def _validator(headers) -> str:
    """Returns what If-Range needs; "" if there is nothing."""
    tag = headers.get("ETag", "")
    # A weak tag is the same for files that are only alike.
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _total(headers, start: int) -> str:
    """Returns the bytes of the whole file in digits; "" where that is not told."""
    total = headers.get("Content-Range", "").rpartition("/")[2]
    length = headers.get("Content-Length", "")
    if not total.isdigit() and length.isdigit():
        total = str(start + int(length))
    return total if total.isdigit() else ""


def _receive(response, url: str, part: str, start: int) -> None:
    headers = response.headers
    if response.status == _PARTIAL_CONTENT and not headers.get(
        "Content-Range", ""
    ).startswith(f"bytes {start}-"):
        raise OSError(
            f"the server was asked for the bytes from {start} on and sent "
            f"{headers.get('Content-Range')}"
        )
    total = _total(headers, start)
    if not start:
        _remember(_Origin(url, _validator(headers), total), part)
    with open(part, "r+b" if start else "wb") as file:
        file.seek(start)
        _pour(response, file, int(total) if total else None)


def _remember(origin: _Origin, part: str) -> None:
    """Keeps what a file is of; without a validator it would begin anew."""
    _discard(part)
    if origin.validator:
        with open(_origin(part), "w") as file:
            file.write("".join(f"{field}\n" for field in origin))


def _pour(source, file, total: int | None) -> None:
    """Writes the rest of a source to a file.

    Args:
        source: Has `read`.
        file: Open at the byte that comes next.
        total: Bytes of the whole file; None where that is not known.

    Raises:
        OSError: if the source ends early.
    """
    name = os.path.basename(file.name).removesuffix(".part")
    units = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    with tqdm(desc=name, total=total, initial=file.tell(), **units) as progress:
        while block := source.read(_BLOCK):
            file.write(block)
            progress.update(len(block))
    if total is not None and file.tell() != total:
        raise OSError(f"it broke off after {file.tell()} of {total} bytes")


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _verify(found: str, path: str, sha256: str, find_damage, hint: str) -> None:
    """Compares a file with its SHA-256, which is recorded at the first use.

    Args:
        found: What to look at.
        path: What it is, or becomes once it is verified.
        sha256: The published SHA-256; "" takes the recorded one.
        find_damage: As `fetch` has it.
        hint: What to add to an error.

    Raises:
        UserError: if it is another, or damaged at its first use.
    """
    record = f"{path}.sha256"
    name = os.path.basename(path)
    expected, whose = sha256, "that was published"
    if not expected and os.path.exists(record):
        with open(record) as file:
            expected, whose = file.read().split()[0], f"of its first use ({record})"
    digest = _sha256(found)
    if digest != (expected or digest):
        raise UserError(
            f"{name} has the SHA-256 {digest}, not the one {whose}, {expected}; {hint}"
        )
    if expected:
        return
    damage = find_damage and find_damage(found)
    if damage:
        raise UserError(f"{name} is damaged: {damage}; {hint}")
    # A cache that cannot be written to has none.
    with contextlib.suppress(OSError), open(record, "w") as file:
        file.write(f"{digest}  {name}\n")
