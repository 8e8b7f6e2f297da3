"""Writing files: what may be replaced, and how, atomically.

A program of ours replaces nothing but its own earlier output. To recognize it, every
folder that we write to holds a ledger, `.deeplab_tf.sha256`: the SHA-256 and the name
of each file that we wrote there, in the format of `sha256sum`. A file is ours if its
digest is in the ledger, a folder if that holds for every file in it.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator

import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.files import scratch
from deeplab_tf.files.file_kinds import is_remote
from deeplab_tf.files.ledger import (
    LEDGER,
    Ledger,
    digest_file,
    entry,
    is_regular_file,
    open_ledger,
)

_ELSEWHERE = "choose another path"
_CHOICES = "choose another path, move it away, or add --overwrite to replace it"


def split(path: str) -> tuple[str, str]:
    """Returns the folder and the name of a path; "." and the root of a store, too."""
    folder, slash, name = path.rpartition("/")
    if folder.endswith(":/") or not folder:
        folder += slash
    return folder or ".", name


def _real_path(path: str) -> str:
    """Returns the path that a path, which may be a link, stands for.

    Raises:
        UserError: if the path is empty or a loop of links.
    """
    if not path:
        raise UserError(
            "the output path is empty; give a path (is a shell variable unset?)"
        )
    if is_remote(path):
        return path.rstrip("/")
    real = os.path.realpath(path.removeprefix("file://"))
    if os.path.islink(real):
        raise UserError(f"{path} is a loop of links; give another path")
    return real


def is_ours(path: str) -> bool:
    """Returns whether a file is what we wrote there, unchanged.

    Args:
        path: A file that exists.
    """
    path = _real_path(path)
    folder, name = split(path)
    digests = open_ledger(folder).digests(name)
    return bool(digests) and digest_file(path) in digests


def is_listed(path: str) -> bool:
    """Returns whether we wrote a file of this name there, whatever it holds now."""
    folder, name = split(_real_path(path))
    return bool(open_ledger(folder).digests(name))


def list_before_move(source: str, path: str) -> None:
    """Adds a file to the ledger that is about to be moved to its place.

    Args:
        source: The file.
        path: Its place.
    """
    _record(_real_path(path), digest_file(source))


def _identities(paths: Iterable[str]) -> set:
    """Returns the identities of files, whatever names or links lead to them."""
    found = set()
    for path in paths:
        if is_remote(path):
            found.add(path)
        elif os.path.exists(path):
            stat = os.stat(path)
            found.add((stat.st_dev, stat.st_ino))
    return found


def _require_replaceable_file(path: str, overwrite: bool = False) -> None:
    """Refuses to replace a file that is not ours.

    Raises:
        UserError: naming the path.
    """
    if not tf.io.gfile.exists(path):
        return
    if not is_regular_file(path):
        raise UserError(f"{path} exists and is not an ordinary file; {_ELSEWHERE}")
    if not (overwrite or is_ours(path)):
        raise UserError(f"{path} exists and is not our earlier output; {_CHOICES}")


def claim(
    folder: str,
    names: Iterable[str],
    overwrite: bool = False,
    inputs: Iterable[str] = (),
) -> None:
    """Checks that files may be written to a folder, before long work.

    Args:
        folder: The folder, which need not exist.
        names: Names of the files.
        overwrite: Whether files that are not ours may be replaced, too: they are
            added to the ledger.
        inputs: Files that the program reads, which are never replaced.

    Raises:
        UserError: if a file exists that may not be replaced; names it.
    """
    real = _real_path(folder)
    if not tf.io.gfile.isdir(real):
        return
    scratch.remove_leftovers(real)
    existing = set(tf.io.gfile.listdir(real))
    paths = [os.path.join(folder, name) for name in names if name in existing]
    are_read = _identities(inputs) if paths else set()
    for path in paths:
        if _identities([path]) & are_read:
            raise UserError(f"{path} is an input and would be replaced; {_ELSEWHERE}")
        target = _real_path(path)
        _require_replaceable_file(target, overwrite)
        if overwrite:
            _record(target, digest_file(target))


def _record(path: str, digest: str) -> None:
    folder, name = split(path)
    open_ledger(folder).add(name, digest)


def write_bytes(content: bytes, path: str) -> None:
    """Writes a file atomically.

    Args:
        content: What it is to hold.
        path: Path of the file; its folder must exist. A link stays a link.

    Raises:
        UserError: if `path` exists and is not our own output.
    """
    path = _real_path(path)
    _require_replaceable_file(path)
    _record(path, hashlib.sha256(content).hexdigest())
    if is_remote(path):
        unfinished = f"{path}.unfinished"
        with tf.io.gfile.GFile(unfinished, "wb") as file:
            file.write(content)
        tf.io.gfile.rename(unfinished, path, overwrite=True)
        return
    with scratch.file(os.path.dirname(path)) as file:
        file.write(content)
        file.flush()
        os.replace(file.name, path)


def write_text(text: str, path: str) -> None:
    """Writes a UTF-8 text file atomically; see `write_bytes`."""
    write_bytes(text.encode(), path)


def require_replaceable(path: str, overwrite: bool = False) -> None:
    """Refuses a path that `publish` would refuse, before long work.

    Args:
        path: Path of a file or a folder.
        overwrite: As in `publish`.

    Raises:
        UserError: naming what is in the way.
    """
    real = _real_path(path)
    if _is_kept(real):
        raise UserError(
            f"{path} is the current folder, a home folder, the root or a folder above "
            "these, and would be replaced as a whole; give the path of a new folder"
        )
    if not tf.io.gfile.isdir(real):
        _require_replaceable_file(real, overwrite)
    elif not overwrite and (foreign := _foreign_entry(real)):
        raise UserError(
            f"{path} holds {foreign}, which is not our earlier output; {_CHOICES}"
        )


def _is_kept(path: str) -> bool:
    if is_remote(path):
        return "/" not in path.partition("://")[2] and tf.io.gfile.isdir(path)
    return path in _kept_folders()


def _kept_folders() -> set[str]:
    """Returns the folders that are never replaced: current and home, those above."""
    kept = set()
    for path in (os.getcwd(), os.path.expanduser("~"), os.sep):
        path = os.path.realpath(path)
        while path not in kept:
            kept.add(path)
            path = os.path.dirname(path)
    return kept


def _files_of(folder: str) -> list[str]:
    """Returns the files of a folder and its subfolders, relative to it."""
    found = []
    for here, folders, names in tf.io.gfile.walk(folder):
        # To a store a folder may also look like a file.
        names = [name for name in names if f"{name}/" not in folders]
        below = os.path.join(here, "").removeprefix(os.path.join(folder, ""))
        found += [below + name for name in names]
        if not is_remote(folder):
            # Not followed, whatever they lead to.
            links = (x for x in folders if os.path.islink(os.path.join(here, x)))
            found += [below + name for name in links]
    return sorted(name for name in found if name)


def _foreign_entry(folder: str) -> str | None:
    """Returns the first entry of a folder that is not in its ledger, if any."""
    ledger = Ledger(folder)
    for name in _files_of(folder):
        path = os.path.join(folder, name)
        if name == LEDGER:
            continue
        digests = ledger.digests(name)
        if not (digests and is_regular_file(path) and digest_file(path) in digests):
            return name
    return None


def remove_if_empty(folder: str, keep: bool = False) -> None:
    """Removes a folder that holds nothing but its ledger.

    Args:
        folder: The folder.
        keep: Whether only the ledger is removed.
    """
    if set(tf.io.gfile.listdir(folder)) - {LEDGER}:
        return
    ledger = os.path.join(folder, LEDGER)
    if tf.io.gfile.exists(ledger):
        tf.io.gfile.remove(ledger)
    if not keep:
        tf.io.gfile.rmtree(folder)


def seal(folder: str) -> None:
    """Writes the ledger of a folder with all files in it, which makes them ours."""
    names = [name for name in _files_of(folder) if name != LEDGER]
    lines = [entry(name, digest_file(os.path.join(folder, name))) for name in names]
    with tf.io.gfile.GFile(os.path.join(folder, LEDGER), "wb") as file:
        file.write("".join(lines).encode(errors="surrogateescape"))


@contextlib.contextmanager
def publish(path: str, overwrite: bool = False) -> Iterator[str]:
    """Yields a path to write a file or folder to; it is published when the block ends.

    If the block fails, what was written is removed and an earlier output stays. If the
    program is killed, there is the earlier output or the new one, complete. (In a
    store, where folders cannot be moved, there is none until the new one is complete.)

    Args:
        path: Where the file or folder is to be; it is our own earlier output, an empty
            folder, or new.
        overwrite: Whether to replace what is not our own output, too.

    Yields:
        A path in a scratch folder, with the same name.

    Raises:
        UserError: if `path` may not be replaced.
    """
    require_replaceable(path, overwrite)
    real = _real_path(path)
    with scratch.folder(None if is_remote(real) else os.path.dirname(real)) as folder:
        unfinished = os.path.join(folder, os.path.basename(real))
        yield unfinished
        if os.path.isdir(unfinished):
            seal(unfinished)
        # Once more: the block may have taken hours.
        require_replaceable(path, overwrite)
        if is_remote(real):
            _upload(unfinished, real)
        else:
            _move(unfinished, real)


def _move(unfinished: str, path: str) -> None:
    if os.path.isdir(unfinished):
        scratch.replace_folder(unfinished, path)
        return
    _record(path, digest_file(unfinished))
    os.replace(unfinished, path)


def _upload(source: str, target: str) -> None:
    """Copies a file or folder to a store; the ledger comes last and goes first."""
    if not os.path.isdir(source):
        tf.io.gfile.makedirs(split(target)[0])
        _record(target, digest_file(source))
        tf.io.gfile.copy(source, target, overwrite=True)
        return
    if tf.io.gfile.isdir(target):
        for name in sorted(_files_of(target), key=_is_graph, reverse=True):
            tf.io.gfile.remove(os.path.join(target, name))
    for name in sorted(_files_of(source), key=_is_graph):
        copy = os.path.join(target, name)
        tf.io.gfile.makedirs(os.path.dirname(copy))
        tf.io.gfile.copy(os.path.join(source, name), copy)


def _is_graph(name: str) -> bool:
    # Without it no reader takes a folder for a SavedModel.
    return name == "saved_model.pb"
