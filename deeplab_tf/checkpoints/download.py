"""Downloads into a cache: resumable, verified and limited in size.

A file in the cache is used without any request. Neither pooch nor the download manager
of TensorFlow Datasets resumes downloads, locks files or limits the size, and the latter
does not verify existing files.
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

from deeplab_tf.checkpoints.cache import (
    is_regular_file,
    read_sidecar,
    translate_os_errors,
    verify_file,
    write_sidecar,
)
from deeplab_tf.errors import UserError
from deeplab_tf.files.locks import path_lock
from deeplab_tf.progress import ProgressBar

_WEB = ("http://", "https://")
_FILE_URL = re.compile("file:(//(localhost)?)?(?=/)", re.IGNORECASE)
# Not valid as file names; basename returns "" for a folder.
_NO_NAMES = ("", ".", "..")
_TIMEOUT = 30  # seconds without data
_BLOCK = 1 << 18
_LIMIT = 4 << 30  # maximum bytes of a file
# Suffixes of a file in the cache and of the files next to it.
_SUFFIXES = ("", ".lock", ".part", ".part.from", ".sha256")
_BYTES = re.compile("[0-9]{1,15}")
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416
# urllib raises ValueError for an invalid redirect or header.
_UNREADABLE = (OSError, ValueError, http.client.HTTPException, tf.errors.OpError)
# Errors of the local disk, as opposed to those of the connection.
_DISK_ERRORS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EIO),
}


class _Origin(NamedTuple):
    """The origin of a partial file.

    `validator` is the ETag or modification time that the server reported; `total` is
    the size of the complete file in bytes, as digits, or "" if not reported.
    """

    url: str
    validator: str
    total: str


def is_web_url(url: str) -> bool:
    """Returns whether a URL is http(s) rather than a path for `tf.io.gfile`."""
    return url.lower().startswith(_WEB)


def local_path(url: str) -> str:
    """Returns the path of a `file:` URL, and expands `~`."""
    match = _FILE_URL.match(url)
    return (
        urllib.parse.unquote(url[match.end() :]) if match else os.path.expanduser(url)
    )


def file_name(url: str) -> str:
    """Returns the last part of a path or URL; raises UserError for an invalid URL."""
    try:
        return os.path.basename(
            urllib.parse.urlsplit(url).path if is_web_url(url) else url
        )
    except ValueError as error:
        raise UserError(f"{url} is not a valid URL: {error}") from error


def fetch(
    url: str,
    cache_dir: str,
    sha256: str = "",
    find_damage: Callable[[str], str | None] | None = None,
) -> str:
    """Downloads a file unless it is cached, and returns its path in the cache.

    The next call resumes an interrupted download if the server supports it and its file
    has not changed. If several processes request a file at once, one downloads it (on
    Windows, each does).

    Args:
        url: An http(s) URL, or anything that `tf.io.gfile` reads: `file://`, `gs://` or
            a path.
        cache_dir: Local folder, created if needed.
        sha256: SHA-256 in hexadecimal digits, or the first of them; "" if none is
            published.
        find_damage: Describes the damage of the file at a path, or returns None. Called
            on the first use of a file without a complete SHA-256; damaged files are
            deleted.

    Raises:
        UserError: if the file cannot be downloaded (the error says where to put it by
            hand) or fails verification, or the cache cannot be written.
    """
    name = file_name(url)
    path = os.path.join(cache_dir, name)
    if name in _NO_NAMES:
        raise UserError(f"{url} does not name a file")
    with translate_os_errors(cache_dir):
        for suffix in _SUFFIXES:
            is_regular_file(
                path + suffix
            )  # raises for links, before anything is opened
        if not is_regular_file(path):
            with path_lock(path):
                if not is_regular_file(path):  # not downloaded meanwhile
                    _fetch_missing(url, path, sha256, find_damage)
                    return path
        hint = f"remove {path} to download it again"
        verify_file(path, path, sha256, find_damage, hint)
    return path


def _fetch_missing(url: str, path: str, sha256: str, find_damage) -> None:
    """Downloads a file into the cache; keeps it only if it passes verification."""
    part = f"{path}.part"
    try:
        _download(url, part) if is_web_url(url) else _copy_file(local_path(url), part)
    except UserError:
        raise
    except _UNREADABLE as error:
        if getattr(error, "errno", None) in _DISK_ERRORS:
            raise
        reason = _shorten(str(error)) or type(error).__name__
        raise UserError(
            f"{url} cannot be downloaded: {reason}; without a network, save the file "
            f"as {path}"
        ) from error
    try:
        verify_file(part, path, sha256, find_damage, f"downloaded from {url}, not kept")
    except UserError:
        _discard(part)
        raise
    os.replace(part, path)
    _discard(part)


def _shorten(reason: str) -> str:
    """Shortens text from a server to one printable line."""
    line = " ".join(reason.split())[:300]
    return "".join(c if c.isprintable() else "?" for c in line)


def _discard(part: str) -> None:
    """Removes a partial file and the record of its origin."""
    for path in (part, _origin_path(part)):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _origin_path(part: str) -> str:
    return f"{part}.from"


def _copy_file(path: str, part: str) -> None:
    """Copies a file that `tf.io.gfile` reads, replacing any partial copy."""
    if "://" not in path and os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is not a file")
    total = tf.io.gfile.stat(path).length
    _discard(part)
    with tf.io.gfile.GFile(path, "rb") as source, open(part, "xb") as file:
        _copy_stream(source.read, file, _parse_size(str(total)))


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only; urllib also follows them to ftp."""

    def http_error_302(self, req, fp, code, msg, headers):
        fp.close()  # urllib would read the entire page into memory
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not is_web_url(newurl):
            reason = f"redirection to {newurl} is not allowed"
            raise urllib.error.HTTPError(newurl, code, reason, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, part: str) -> None:
    """Downloads a file, resuming a partial one if possible."""
    origin = _read_origin(url, part)
    start = os.path.getsize(part) if origin else 0
    # Escapes characters that need it and are not escaped yet.
    escaped = urllib.parse.quote(url, safe=string.punctuation)
    request = urllib.request.Request(escaped, headers={"User-Agent": "deeplab_tf"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        # If the file has changed, the server sends all of it.
        request.add_header("If-Range", origin.validator)
    try:
        with _make_opener().open(request, timeout=_TIMEOUT) as response:
            if response.status != _PARTIAL_CONTENT:
                start = 0
            # Some servers ignore If-Range.
            if not start or _is_continuation(response.headers, origin, start):
                _read_response(response, url, part, start)
                return
    except urllib.error.HTTPError as error:
        error.close()
        if not start or error.code != _RANGE_NOT_SATISFIABLE:
            raise
    _discard(part)
    _download(url, part)


def _make_opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_WebRedirects)


def _read_origin(url: str, part: str) -> _Origin | None:
    """Returns the origin of a partial file if it can be resumed from this URL."""
    text = read_sidecar(_origin_path(part)).decode("utf-8", "replace")
    fields = text.split("\n")[:-1]
    # The record may be edited or from a different version.
    if len(fields) != len(_Origin._fields) or fields[0] != url:
        return None
    origin = _Origin(*fields)
    is_valid = origin.validator.isascii() and origin.validator.isprintable()
    is_ours = is_regular_file(part) and os.stat(part).st_nlink == 1
    return origin if is_valid and is_ours else None


def _is_continuation(headers, origin: _Origin, start: int) -> bool:
    """Returns whether the response continues our partial file."""
    # Servers need not repeat a modification time.
    sizes = {origin.total, _read_total(headers, start)} - {""}
    return _read_validator(headers) in ("", origin.validator) and len(sizes) < 2


def _read_validator(headers) -> str:
    """Returns the value for If-Range, or "" if there is none."""
    tag = headers.get("ETag", "")
    # Weak tags do not identify the exact bytes.
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _read_total(headers, start: int) -> str:
    """Returns the size of the complete file as digits, or "" if not reported.

    Raises:
        OSError: if the size is invalid or too large.
    """
    length = headers.get("Content-Length", "").strip()
    size = _parse_size(length) if length else None
    total = headers.get("Content-Range", "").rpartition("/")[2].strip()
    if total not in ("", "*"):
        return str(_parse_size(total))
    return "" if size is None else str(_parse_size(str(start + size)))


def _parse_size(text: str) -> int:
    """Parses a number of bytes; raises OSError if it exceeds the limit."""
    if not _BYTES.fullmatch(text) or int(text) > _LIMIT:
        raise OSError(
            f"its size of {text[:40]} bytes is not in 0..{_LIMIT}, the maximum for "
            "downloads"
        )
    return int(text)


def _read_response(response, url: str, part: str, start: int) -> None:
    """Writes a response to a partial file from byte `start` and records its origin."""
    headers = response.headers
    if response.status == _PARTIAL_CONTENT and not headers.get(
        "Content-Range", ""
    ).startswith(f"bytes {start}-"):
        raise OSError(
            f"the server was asked for all bytes from {start} but sent "
            f"{headers.get('Content-Range')}"
        )
    total = _read_total(headers, start)
    if not start:
        _write_origin(_Origin(url, _read_validator(headers), total), part)
    with open(part, "r+b" if start else "xb") as file:
        file.seek(start)
        # Not read, which would follow a chunk of negative size to the end.
        _copy_stream(response.read1, file, int(total) if total else None)


def _write_origin(origin: _Origin, part: str) -> None:
    """Records the origin of a partial file, if a validator allows resuming it."""
    _discard(part)
    if origin.validator:
        write_sidecar(_origin_path(part), "".join(f"{field}\n" for field in origin))


def _copy_stream(read: Callable[[int], bytes], file, total: int | None) -> None:
    """Appends a stream to a file, with a progress bar.

    `read` takes a maximum number of bytes and returns b"" at the end; `total` is the
    size of the complete file. Raises OSError if the stream is too short or too long.
    """
    name = os.path.basename(file.name).removesuffix(".part")
    units = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    limit = _LIMIT if total is None else total
    with ProgressBar(desc=name, total=total, initial=file.tell(), **units) as progress:
        while block := read(_BLOCK):
            if file.tell() + len(block) > limit:
                raise OSError(f"more than {limit} bytes were sent")
            file.write(block)
            progress.update(len(block))
    if total is not None and file.tell() != total:
        raise OSError(f"it was interrupted after {file.tell()} of {total} bytes")
