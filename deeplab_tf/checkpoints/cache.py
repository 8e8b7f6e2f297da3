"""The download cache: private to its user and verified before each use.

If no complete SHA-256 is published for a file, that of its first use is recorded next
to the file and compared on every later use.
"""

import contextlib
import hashlib
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator

from deeplab_tf.errors import UserError
from deeplab_tf.files.ledger import digest_file

try:
    import grp
    import pwd
except ImportError:  # Windows
    grp = pwd = None  # type: ignore[assignment]

_VARIABLE = "DEEPLAB_TF_CACHE"
_DEFAULT = os.path.join("~", ".cache", "deeplab_tf")
CACHE_HINT = f"give a different folder as cache_dir or {_VARIABLE}"
_MAX_RECORD = 1 << 14
_SHA256 = re.compile(rb"([0-9a-fA-F]{64})( [ *][^\n]*)?\n?")
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def cache_folder(cache_dir: str | None = None) -> str:
    """Returns the cache folder, which may not exist yet.

    Args:
        cache_dir: Local folder; None uses the environment variable DEEPLAB_TF_CACHE,
            else `~/.cache/deeplab_tf`.

    Raises:
        UserError: if the folder is not local.
    """
    folder = os.path.expanduser(cache_dir or os.environ.get(_VARIABLE) or _DEFAULT)
    if "://" in folder:
        raise UserError(
            f"the cache must be a folder on a local disk; received {folder}"
        )
    return folder


def make_private_folder(folder: str) -> str:
    """Creates a folder in the cache if needed, and returns it.

    Raises:
        UserError: if it cannot be created, or other users can write to it.
    """
    with translate_os_errors(folder):
        os.makedirs(os.path.dirname(os.path.abspath(folder)), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        status = os.stat(folder)
    if pwd is None:
        return folder
    if status.st_uid not in (0, os.geteuid()):
        owner = _find_user_name(status.st_uid)
        raise UserError(
            f"the cache {folder} belongs to {owner}, who could replace what is loaded "
            f"from it; {CACHE_HINT}"
        )
    mode = status.st_mode
    if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not _is_own_group(status)):
        raise UserError(
            f"other users can write to the cache {folder}; run chmod go-w "
            f"{shlex.quote(folder)} or {CACHE_HINT}"
        )
    return folder


@contextlib.contextmanager
def translate_os_errors(folder: str) -> Iterator[None]:
    """Converts an OSError about the cache to a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be used: {error}; {CACHE_HINT}"
        ) from error


def is_regular_file(path: str) -> bool:
    """Returns whether a file exists; raises UserError for a folder, link or device."""
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "a device")
        raise UserError(f"{path} is {what}, not a regular file; remove it")
    return True


def read_sidecar(path: str) -> bytes:
    """Reads a file written by `write_sidecar`; returns b"" if it does not exist."""
    if not is_regular_file(path):
        return b""
    with open(path, "rb") as file:
        return file.read(_MAX_RECORD)


def write_sidecar(path: str, text: str) -> None:
    """Atomically writes a small file with details of a download next to it."""
    unfinished = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.remove(unfinished)
    with open(unfinished, "x", encoding="utf-8") as file:
        file.write(text)
    os.replace(unfinished, path)


def verify_file(
    found: str,
    path: str,
    sha256: str,
    find_damage: Callable[[str], str | None] | None,
    hint: str,
) -> None:
    """Compares a file with its published SHA-256, or with that of its first use.

    Records the SHA-256 on the first use, unless a complete one is published.

    Args:
        found: File to verify.
        path: Its path in the cache.
        sha256: Published SHA-256, or its first digits; "" if none is published.
        find_damage: Describes the damage of a file on its first use, or returns None.
        hint: Advice at the end of an error.

    Raises:
        UserError: if the SHA-256 differs, or the file is damaged on its first use.
    """
    record, name = f"{path}.sha256", os.path.basename(path)
    is_complete = len(sha256) == hashlib.sha256().digest_size * 2
    recorded = "" if is_complete else _read_sha256(record)
    digest = digest_file(found)
    for expected, source in (
        (sha256.lower(), "published"),
        (recorded, f"recorded on its first use ({record})"),
    ):
        if not digest.startswith(expected):
            raise UserError(
                f"{name} has the SHA-256 {digest}, but {expected} was {source}; {hint}"
            )
    if is_complete or recorded:
        return
    damage = find_damage and find_damage(found)
    if damage:
        raise UserError(f"{name} is damaged or unsafe: {damage}; {hint}")
    # A read-only cache has no records.
    with contextlib.suppress(OSError):
        write_sidecar(record, f"{digest}  {name}\n")


def _read_sha256(record: str) -> str:
    """Returns the recorded SHA-256; "" if there is no record."""
    if not is_regular_file(record):
        return ""
    match = _SHA256.fullmatch(read_sidecar(record))
    if not match:
        path = record.removesuffix(".sha256")
        raise UserError(
            f"{record} contains no SHA-256; remove it and {path} to download again"
        )
    return match[1].decode().lower()


def _is_own_group(status: os.stat_result) -> bool:
    """Returns whether the group of a file contains only its owner."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    is_private = status.st_gid == user.pw_gid and group.gr_name == user.pw_name
    return is_private and set(group.gr_mem) <= {user.pw_name}


def _find_user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"
