"""Files from the network: resumed where they broke off, verified, and kept.

A file that is in the cache is used without any request. Where no SHA-256 of a file was
published, that of its first use is kept beside it and compared from then on.
"""

import contextlib
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

import tensorflow as tf
from tqdm import tqdm

from deeplab_tf.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_CACHE_VARIABLE = "DEEPLAB_TF_CACHE"
_CACHE = os.path.join("~", ".cache", "deeplab_tf")
_WEB = ("http://", "https://")
_TIMEOUT = 30  # seconds of silence
_BLOCK = 1 << 20
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416
# tf.io.gfile has no common name for what it raises.
_UNREADABLE = (OSError, http.client.HTTPException, tf.errors.OpError)


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
    return url.startswith(_WEB)


def fetch(url: str, cache_dir: str, sha256: str = "") -> str:
    """Returns the path of a file in the cache, which is fetched unless it is there.

    What broke off goes on where it stopped the next time, if the server allows it and
    the file is still the same there. Several processes may ask for a file at once; one
    fetches it (but on Windows all do).

    Args:
        url: http, https, or what `tf.io.gfile` reads: `file://`, `gs://`, a path.
        cache_dir: Folder on a disk of this machine; made if need be.
        sha256: SHA-256 in hexadecimal digits; "" where none was published.

    Raises:
        UserError: if it cannot be fetched, naming where it can be put by hand, or is
            another file than it should be.
    """
    name = os.path.basename(urllib.parse.urlsplit(url).path)
    path = os.path.join(cache_dir, name)
    if not name:
        raise UserError(f"{url} names no file")
    if not os.path.exists(path):
        with locked(path):
            if not os.path.exists(path):  # nobody fetched it meanwhile
                _fetch_anew(url, path, sha256)
                return path
    _verify(path, path, sha256)
    return path


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Keeps out other processes on this machine that ask for the same path.

    A process that is killed leaves no lock. Nobody is kept out where the folder cannot
    be written to, where its disk has no locks, and on Windows.

    Args:
        path: What is to be written; its folder is made if need be.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if fcntl:
                _lock(stack.enter_context(open(f"{path}.lock", "a")), path)
        yield


def _lock(file, path: str) -> None:
    """Waits until nobody else has a file locked, and locks it until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process with {path}", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)


def _fetch_anew(url: str, path: str, sha256: str) -> None:
    part = f"{path}.part"
    try:
        _download(url, part) if is_web(url) else _copy(url, part)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{url} cannot be fetched: {reason}; without a network put the file at "
            f"{path}"
        ) from error
    try:
        _verify(part, path, sha256)
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


def _copy(url: str, part: str) -> None:
    """Writes a file that `tf.io.gfile` reads; begins anew every time."""
    # The paths of file URLs are spelled like those of all others.
    local = url.startswith("file://")
    path = urllib.parse.unquote(url.removeprefix("file://")) if local else url
    total = tf.io.gfile.stat(path).length
    with tf.io.gfile.GFile(path, "rb") as source, open(part, "wb") as file:
        _pour(source, file, total)


def _download(url: str, part: str) -> None:
    """Writes what a web server sends, behind what it sent before if that is right."""
    start, validator = _resumable(url, part)
    request = urllib.request.Request(url, headers={"User-Agent": "deeplab_tf"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        # The server sends the whole file if it is not the one that we have a part of.
        request.add_header("If-Range", validator)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            _receive(response, url, part, start)
    except urllib.error.HTTPError as error:
        error.close()
        if not start or error.code != _RANGE_NOT_SATISFIABLE:
            raise
        _discard(part)
        _download(url, part)


def _resumable(url: str, part: str) -> tuple[int, str]:
    """Returns how much of a file is there, and by what the server knows it again."""
    if not (os.path.exists(part) and os.path.exists(_origin(part))):
        return 0, ""
    with open(_origin(part)) as file:
        origin, validator = file.read().splitlines()
    return (os.path.getsize(part), validator) if origin == url else (0, "")


def _receive(response, url: str, part: str, start: int) -> None:
    if response.status != _PARTIAL_CONTENT:
        start = 0
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise OSError(
            f"the server was asked for the bytes from {start} on and sent "
            f"{response.headers.get('Content-Range')}"
        )
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    if not start:
        _remember_origin(response.headers, url, part)
    with open(part, "r+b" if start else "wb") as file:
        file.seek(start)
        _pour(response, file, total)


def _remember_origin(headers, url: str, part: str) -> None:
    """Keeps what If-Range needs; without it a file that broke off begins anew."""
    tag = headers.get("ETag", "")
    # A weak tag is the same for files that are only alike.
    validator = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    _discard(part)
    if validator:
        with open(_origin(part), "w") as file:
            file.write(f"{url}\n{validator}\n")


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


def _verify(found: str, path: str, sha256: str) -> None:
    """Compares a file with its SHA-256, which is recorded at the first use.

    Args:
        found: What to look at.
        path: What it is, or becomes once it is verified.
        sha256: The published SHA-256; "" takes the recorded one.

    Raises:
        UserError: if it is another.
    """
    record = f"{path}.sha256"
    expected, whose = sha256, "that was published"
    if not expected and os.path.exists(record):
        with open(record) as file:
            expected, whose = file.read().split()[0], f"of its first use ({record})"
    digest = _sha256(found)
    if digest != (expected or digest):
        hint = f"; remove {path} to fetch it again" if found == path else ""
        raise UserError(
            f"{os.path.basename(path)} has the SHA-256 {digest}, not the one {whose}, "
            f"{expected}{hint}"
        )
    if not expected:
        # A cache that cannot be written to has none.
        with contextlib.suppress(OSError), open(record, "w") as file:
            file.write(f"{digest}  {os.path.basename(path)}\n")
