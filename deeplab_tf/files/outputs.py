"""Writes files atomically, and never replaces files that are not ours.

To recognise our earlier output, every folder that we write to contains a ledger,
`.deeplab_tf.sha256`, which lists the SHA-256 and name of each file that we wrote there
in the format of `sha256sum`. A file is ours if the ledger has its digest; a folder is
ours if all of its files are.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.files import scratch
from deeplab_tf.files.file_kinds import is_remote
from deeplab_tf.files.ledger import (
    LEDGER,
    Ledger,
    digest_file,
    find_digests,
    format_entry,
    is_regular_file,
    merge_parts,
    open_ledger,
)

_OTHER_PATH = "choose another path"
_FOREIGN = "was not written by deeplab_tf or has been modified since"
_REMEDIES = (
    "choose another path, move the existing one elsewhere, or add --overwrite to "
    "replace it"
)


def split_path(path: str) -> tuple[str, str]:
    """Splits a path into folder, such as "." or "gs://bucket/", and name."""
    folder, slash, name = path.rpartition("/")
    if folder.endswith(":/") or not folder:
        folder += slash
    return folder or ".", name


def _resolve_links(path: str) -> str:
    """Resolves local links; raises UserError for an empty path or a link loop."""
    if not path:
        raise UserError(
            "the output path is empty; give a path (is a shell variable unset?)"
        )
    if is_remote(path):
        return path.rstrip("/")
    real = os.path.realpath(path.removeprefix("file://"))
    if os.path.islink(real):
        raise UserError(f"{path} is a symbolic link loop; {_OTHER_PATH}")
    return real


def is_ours(path: str) -> bool:
    """Returns whether an existing file is unchanged output of ours."""
    path = _resolve_links(path)
    folder, name = split_path(path)
    digests = find_digests(folder, name)
    return bool(digests) and digest_file(path) in digests


def is_recorded(path: str) -> bool:
    """Returns whether we wrote a file to this path, even if it changed since."""
    folder, name = split_path(_resolve_links(path))
    return bool(open_ledger(folder).digests(name))


def record_before_move(source: str, path: str) -> None:
    """Records the digest of `source`, about to be moved to `path`, in its ledger."""
    _record_digest(_resolve_links(path), digest_file(source))


def _find_identities(paths: Iterable[str]) -> set:
    """Returns keys that are equal for the same file: device and inode, or path."""
    found = set()
    for path in paths:
        if is_remote(path):
            found.add(path)
        elif os.path.exists(path):
            stat = os.stat(path)
            found.add((stat.st_dev, stat.st_ino))
    return found


def _require_replaceable_file(path: str, overwrite: bool = False) -> None:
    """Raises UserError if a file exists that is not ours."""
    if not tf.io.gfile.exists(path):
        return
    if not is_regular_file(path):
        raise UserError(f"{path} exists but is not a regular file; {_OTHER_PATH}")
    if not (overwrite or is_ours(path)):
        raise UserError(f"{path} exists but {_FOREIGN}; {_REMEDIES}")


def claim(
    folder: str,
    names: Iterable[str],
    overwrite: bool = False,
    inputs: Iterable[str] = (),
) -> None:
    """Checks, before long work, that files may be written to a folder.

    Args:
        folder: The folder, which need not exist.
        names: Names of the files.
        overwrite: Whether files that are not ours may be replaced. They are added to
            the ledger.
        inputs: Input files of the program, which are never replaced.

    Raises:
        UserError: if an existing file may not be replaced; the error names it.
    """
    real = _resolve_links(folder)
    if not tf.io.gfile.isdir(real):
        return
    scratch.remove_leftovers(real)
    merge_parts(real)
    existing = set(tf.io.gfile.listdir(real))
    paths = [os.path.join(folder, name) for name in names if name in existing]
    protected = _find_identities(inputs) if paths else set()
    for path in paths:
        if _find_identities([path]) & protected:
            raise UserError(
                f"{path} is an input file and would be replaced; {_OTHER_PATH}"
            )
        target = _resolve_links(path)
        _require_replaceable_file(target, overwrite)
        if overwrite:
            _record_digest(target, digest_file(target))


def merge_ledgers(folders: Iterable[str]) -> None:
    """Adds the files that workers wrote to the ledgers; see `ledger.merge_parts`."""
    for folder in folders:
        if tf.io.gfile.isdir(folder):
            merge_parts(_resolve_links(folder))


def _record_digest(path: str, digest: str) -> None:
    folder, name = split_path(path)
    open_ledger(folder).add(name, digest)


def write_bytes(content: bytes, path: str) -> None:
    """Atomically writes a file to an existing folder; follows links.

    Raises UserError if `path` exists and is not ours.
    """
    path = _resolve_links(path)
    _require_replaceable_file(path)
    _record_digest(path, hashlib.sha256(content).hexdigest())
    if is_remote(path):
        unfinished = f"{path}.unfinished"
        with tf.io.gfile.GFile(unfinished, "wb") as file:
            file.write(content)
        tf.io.gfile.rename(unfinished, path, overwrite=True)
        return
    with scratch.create_file(os.path.dirname(path)) as file:
        file.write(content)
        file.flush()
        os.replace(file.name, path)


def write_text(text: str, path: str) -> None:
    """Atomically writes a UTF-8 text file; see `write_bytes`."""
    write_bytes(text.encode(), path)


def require_replaceable(path: str, overwrite: bool = False) -> None:
    """Raises UserError if `publish` would; call this before long work."""
    real = _resolve_links(path)
    if _is_protected(real):
        raise UserError(
            f"{path} would be replaced entirely, but it is (or contains) the current "
            "folder, the home folder or a bucket; give the path of a new folder"
        )
    if not tf.io.gfile.isdir(real):
        _require_replaceable_file(real, overwrite)
    elif not overwrite and (foreign := _find_foreign_file(real)):
        raise UserError(f"{path} contains {foreign}, which {_FOREIGN}; {_REMEDIES}")


def _is_protected(path: str) -> bool:
    """Returns whether a path is a bucket, or the current or home folder or a parent."""
    if is_remote(path):
        return "/" not in path.partition("://")[2] and tf.io.gfile.isdir(path)
    folders = (os.getcwd(), os.path.expanduser("~"), os.sep)
    protected = (pathlib.Path(os.path.realpath(folder)) for folder in folders)
    return any(pathlib.Path(path) in (p, *p.parents) for p in protected)


def _list_files(folder: str) -> list[str]:
    """Returns the files of a folder and its subfolders, relative to it."""
    found = []
    for here, folders, names in tf.io.gfile.walk(folder):
        # Object stores may also list a folder as a file.
        names = [name for name in names if f"{name}/" not in folders]
        below = os.path.join(here, "").removeprefix(os.path.join(folder, ""))
        found += [below + name for name in names]
        if not is_remote(folder):
            links = (x for x in folders if os.path.islink(os.path.join(here, x)))
            found += [below + name for name in links]
    return sorted(name for name in found if name)


def _find_foreign_file(folder: str) -> str | None:
    """Returns the first file of a folder that is not ours, if any."""
    ledger = Ledger(folder)
    for name in _list_files(folder):
        path = os.path.join(folder, name)
        if name == LEDGER:
            continue
        digests = ledger.digests(name)
        if not (digests and is_regular_file(path) and digest_file(path) in digests):
            return name
    return None


def remove_if_empty(folder: str, keep_folder: bool = False) -> None:
    """Removes a folder, or only its ledger, if it contains no other files."""
    if set(tf.io.gfile.listdir(folder)) - {LEDGER}:
        return
    ledger = os.path.join(folder, LEDGER)
    if tf.io.gfile.exists(ledger):
        tf.io.gfile.remove(ledger)
    if not keep_folder:
        tf.io.gfile.rmtree(folder)


def write_ledger(folder: str) -> None:
    """Lists all files of a folder in its ledger, which makes them ours."""
    names = [name for name in _list_files(folder) if name != LEDGER]
    lines = [
        format_entry(name, digest_file(os.path.join(folder, name))) for name in names
    ]
    with tf.io.gfile.GFile(os.path.join(folder, LEDGER), "wb") as file:
        file.write("".join(lines).encode(errors="surrogateescape"))


@contextlib.contextmanager
def publish(path: str, overwrite: bool = False) -> Iterator[str]:
    """Yields a path to write a file or folder to, and publishes it atomically.

    If the block fails, the earlier output is kept. If the program is killed, `path` has
    either the complete earlier output or the complete new one. In an object store,
    which cannot move folders, it may have neither.

    Args:
        path: Path of the output: a new path, an empty folder, or output of ours.
        overwrite: Whether to replace output that is not ours.

    Yields:
        A path in a scratch folder, with the same name.

    Raises:
        UserError: if `path` may not be replaced.
    """
    require_replaceable(path, overwrite)
    real = _resolve_links(path)
    with scratch.create_folder(
        None if is_remote(real) else os.path.dirname(real)
    ) as folder:
        unfinished = os.path.join(folder, os.path.basename(real))
        yield unfinished
        if os.path.isdir(unfinished):
            write_ledger(unfinished)
        # Check again, because the block may have taken hours.
        require_replaceable(path, overwrite)
        if is_remote(real):
            _upload(unfinished, real)
        else:
            _move(unfinished, real)


def _move(unfinished: str, path: str) -> None:
    if os.path.isdir(unfinished):
        scratch.replace_folder(unfinished, path)
        return
    _record_digest(path, digest_file(unfinished))
    os.replace(unfinished, path)


def _upload(source: str, target: str) -> None:
    """Copies a file or folder to a remote file system.

    The graph of a SavedModel is removed first and copied last, because a folder is a
    valid SavedModel only while it contains the graph.
    """
    if not os.path.isdir(source):
        tf.io.gfile.makedirs(split_path(target)[0])
        _record_digest(target, digest_file(source))
        tf.io.gfile.copy(source, target, overwrite=True)
        return
    if tf.io.gfile.isdir(target):
        for name in sorted(_list_files(target), key=_is_graph, reverse=True):
            tf.io.gfile.remove(os.path.join(target, name))
    for name in sorted(_list_files(source), key=_is_graph):
        copy = os.path.join(target, name)
        tf.io.gfile.makedirs(os.path.dirname(copy))
        tf.io.gfile.copy(os.path.join(source, name), copy)


def _is_graph(name: str) -> bool:
    return name == "saved_model.pb"
