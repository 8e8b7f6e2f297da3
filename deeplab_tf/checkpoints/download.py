"""Downloads into a cache: resumed where they broke off, verified, and bounded.

A file that is in the cache is used without any request. pooch and the download manager
of TensorFlow Datasets do not resume, keep no lock and bound nothing, and the latter
does not verify a file that it has already.
"""

import contextlib
import errno
import http.client
import os
import re
import string
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from tqdm import tqdm

from deeplab_tf.checkpoints.cache import (
    blame_cache,
    is_plain_file,
    read_record,
    verify,
    write_record,
)
from deeplab_tf.errors import UserError
from deeplab_tf.files.locks import path_lock

_WEB = ("http://", "https://")
_FILE_URL = re.compile("file:(//(localhost)?)?(?=/)", re.IGNORECASE)
# What a file may not be called, and what basename has for a folder.
_NO_NAMES = ("", ".", "..")
_TIMEOUT = 30  # seconds of silence
_BLOCK = 1 << 18
_LIMIT = 4 << 30  # bytes of a file
# What is next to a file in the cache.
_SUFFIXES = ("", ".lock", ".part", ".part.from", ".sha256")
_BYTES = re.compile("[0-9]{1,15}")
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416
# What urllib finds wrong with a redirect or a header is a ValueError.
_UNREADABLE = (OSError, ValueError, http.client.HTTPException, tf.errors.OpError)
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
        total: Bytes of the file in digits; "" if the server did not report them.
    """

    url: str
    validator: str
    total: str


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
    with blame_cache(cache_dir):
        for suffix in _SUFFIXES:
            is_plain_file(path + suffix)  # before anything is opened
        if not is_plain_file(path):
            with path_lock(path):
                if not is_plain_file(path):  # nobody fetched it meanwhile
                    _fetch_anew(url, path, sha256, find_damage)
                    return path
        hint = f"remove {path} to fetch it again"
        verify(path, path, sha256, find_damage, hint)
    return path


def _fetch_anew(url: str, path: str, sha256: str, find_damage) -> None:
    part = f"{path}.part"
    try:
        _download(url, part) if is_web(url) else _copy(local_path(url), part)
    except UserError:
        raise
    except _UNREADABLE as error:
        if getattr(error, "errno", None) in _OF_THE_DISK:
            raise
        reason = _shorten(str(error)) or type(error).__name__
        raise UserError(
            f"{url} cannot be fetched: {reason}; without a network put the file at "
            f"{path}"
        ) from error
    try:
        verify(part, path, sha256, find_damage, f"{url} sent it; it was not kept")
    except UserError:
        _discard(part)
        raise
    os.replace(part, path)
    _discard(part)


def _shorten(reason: str) -> str:
    """Returns what a server may have written as one short line for a terminal."""
    line = " ".join(reason.split())[:300]
    return "".join(c if c.isprintable() else "?" for c in line)


def _discard(part: str) -> None:
    """Removes an unfinished file, and what tells where it is from."""
    for path in (part, _origin(part)):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _origin(part: str) -> str:
    return f"{part}.from"


def _copy(path: str, part: str) -> None:
    """Writes a file that `tf.io.gfile` reads; begins anew every time."""
    if "://" not in path and os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no file")
    total = tf.io.gfile.stat(path).length
    _discard(part)
    with tf.io.gfile.GFile(path, "rb") as source, open(part, "xb") as file:
        _pour(source.read, file, _require_bytes(str(total)))


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web servers only; urllib would follow them to ftp."""

    def http_error_302(self, req, fp, code, msg, headers):
        fp.close()  # urllib reads the page into memory, however long it is
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not is_web(newurl):
            reason = f"redirection to {newurl} is not allowed"
            raise urllib.error.HTTPError(newurl, code, reason, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
        with _opener().open(request, timeout=_TIMEOUT) as response:
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


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_WebRedirects)


def _resumable(url: str, part: str) -> _Origin | None:
    """Returns the origin of a part, if it is this URL and can be compared."""
    text = read_record(_origin(part)).decode("utf-8", "replace")
    fields = text.split("\n")[:-1]
    # It may be of another version, or edited.
    if len(fields) != len(_Origin._fields) or fields[0] != url:
        return None
    origin = _Origin(*fields)
    is_valid = origin.validator.isascii() and origin.validator.isprintable()
    is_ours = is_plain_file(part) and os.stat(part).st_nlink == 1
    return origin if is_valid and is_ours else None


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
    """Returns the bytes of the file in digits; "" if the server does not say.

    Raises:
        OSError: if it announces something that is no size, or too much.
    """
    length = headers.get("Content-Length", "").strip()
    size = _require_bytes(length) if length else None
    total = headers.get("Content-Range", "").rpartition("/")[2].strip()
    if total not in ("", "*"):
        return str(_require_bytes(total))
    return "" if size is None else str(_require_bytes(str(start + size)))


def _require_bytes(text: str) -> int:
    if not _BYTES.fullmatch(text) or int(text) > _LIMIT:
        raise OSError(
            f"its size of {text[:40]} bytes is not within 0..{_LIMIT}, the most that "
            "is fetched"
        )
    return int(text)


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
    with open(part, "r+b" if start else "xb") as file:
        file.seek(start)
        # read1, as read would follow a chunk of negative size to the end.
        _pour(response.read1, file, int(total) if total else None)


def _remember(origin: _Origin, part: str) -> None:
    """Records the origin of a part; without a validator it could not be resumed."""
    _discard(part)
    if origin.validator:
        write_record(_origin(part), "".join(f"{field}\n" for field in origin))


def _pour(read: Callable[[int], bytes], file, total: int | None) -> None:
    """Writes the rest of a source to a file.

    Args:
        read: Reads up to so many bytes; b"" at the end.
        file: Open at the byte that comes next.
        total: Bytes of the file; None if that is not known.

    Raises:
        OSError: if the source ends early, or does not end where it should.
    """
    name = os.path.basename(file.name).removesuffix(".part")
    units = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    limit = _LIMIT if total is None else total
    with tqdm(desc=name, total=total, initial=file.tell(), **units) as progress:
        while block := read(_BLOCK):
            if file.tell() + len(block) > limit:
                raise OSError(f"more than {limit} bytes were sent")
            file.write(block)
            progress.update(len(block))
    if total is not None and file.tell() != total:
        raise OSError(f"it broke off after {file.tell()} of {total} bytes")
