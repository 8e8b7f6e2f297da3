"""Finds the local path of a checkpoint by name, path or URL, downloading if needed."""

import hashlib
import os

import tensorflow as tf
from etils import epath

from deeplab_tf.checkpoints.cache import CACHE_HINT, make_private_folder
from deeplab_tf.checkpoints.download import fetch, file_name, is_web_url, local_path
from deeplab_tf.checkpoints.exported_graph import FROZEN, TFLITE
from deeplab_tf.checkpoints.handles import is_handle
from deeplab_tf.checkpoints.keras_file import KERAS, is_keras_file
from deeplab_tf.checkpoints.pytorch.weights import (
    SUFFIXES as TORCH_SUFFIXES,
    is_torch_file,
)
from deeplab_tf.checkpoints.zoo import (
    ZOO,
    ZooModel,
    find_checkpoint,
    require_checkpoint,
)
from deeplab_tf.checkpoints.zoo.pytorch import find_address, find_sha256
from deeplab_tf.errors import UserError
from deeplab_tf.files.archives import UnusableFolderError, extract, find_damage
from deeplab_tf.files.locks import path_lock

_ARCHIVES = (".tar.gz", ".tgz", ".tar")
# Files that are downloaded without an archive.
_FILES = (KERAS, FROZEN, TFLITE, *TORCH_SUFFIXES)


def normalize_source(source: str | os.PathLike) -> str:
    """Returns a name, URL or path as a string that `tf.io.gfile` can handle."""
    if not os.fspath(source):
        raise UserError(
            "name_path_or_url must be a model zoo checkpoint, a path or a URL; "
            f"received {source!r}"
        )
    source = os.fspath(source)
    address = find_address(source)
    if address is not None and not _is_hidden_by_path(source):
        source = address
    if is_handle(source):
        return source
    source = local_path(source)
    try:
        if not is_web_url(source):
            tf.io.gfile.exists(source)
    except tf.errors.OpError as error:
        raise UserError(f"{source} cannot be read: {error.message}") from error
    return source


def find_in_zoo(source: str) -> ZooModel | None:
    """Returns the zoo model that has this name, or whose archive has it."""
    if is_handle(source):
        return None
    if _should_extract(source):
        name = file_name(source)
        found = (find_checkpoint(n) for n, c in ZOO.items() if c.archive == name)
        return next(found, None)
    known = find_checkpoint(source)
    return None if known and _is_hidden_by_path(source) else known


def _is_hidden_by_path(name: str) -> bool:
    """Returns whether a path hides the zoo model of that name; prints a note if so."""
    if not _is_existing_path(name):
        return False
    print(f"note: using {os.path.abspath(name)}, not the zoo model {name}")
    return True


def _should_extract(source: str) -> bool:
    """Returns whether a source must be extracted, perhaps after a download."""
    name = file_name(source).lower()
    is_tar = name.endswith(_ARCHIVES) and not name.endswith(TORCH_SUFFIXES)
    return is_web_url(source) or (is_tar and not tf.io.gfile.isdir(source))


def locate_source(source: str, known: ZooModel | None, cache: str) -> str:
    """Returns a local path to load, after downloading and extracting if needed."""
    if _should_extract(source):
        return _extract_user_archive(source, known, cache)
    if known:
        archive = _fetch(known.checkpoint.url, known, make_private_folder(cache))
        return _extract(archive, cache)
    is_file = (
        _is_existing_path(source) or is_keras_file(source) or is_torch_file(source)
    )
    if not os.path.dirname(source) and not is_file:
        require_checkpoint(source)
    return source


def _fetch(url: str, known: ZooModel | None, folder: str) -> str:
    """Downloads a file and verifies it; an archive must also be safe to extract."""
    published = known.checkpoint.sha256 if known else find_sha256(url)
    if url.endswith(_FILES):  # their readers find any damage
        return fetch(url, folder, published)
    return fetch(url, folder, published, lambda path: find_damage(epath.Path(path)))


def _is_existing_path(path: str) -> bool:
    """Returns whether a file, folder or checkpoint prefix exists."""
    return tf.io.gfile.exists(path) or tf.io.gfile.exists(f"{path}.index")


def _extract_user_archive(archive: str, known: ZooModel | None, cache: str) -> str:
    """Extracts a user's archive and returns the folder with its weights."""
    # The folder depends on the location, so archives with equal names do not clash.
    is_url = "://" in archive
    place = archive if is_url else os.path.abspath(archive)
    name = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    if not is_url and not os.path.isfile(archive):
        raise UserError(f"there is no archive {archive}")
    own = make_private_folder(os.path.join(make_private_folder(cache), name))
    if is_url:
        archive = _fetch(archive, known, own)
        if archive.endswith(_FILES):
            return archive
    return _extract(archive, own)


def _extract(archive: str, folder: str) -> str:
    """Extracts an archive into a folder and returns the folder with its weights."""
    name = os.path.basename(archive)
    for suffix in _ARCHIVES:
        name = name.removesuffix(suffix)
    path = os.path.join(folder, f"{name}.extracted")
    with path_lock(path):
        try:
            extract(epath.Path(archive), epath.Path(path))
        except UnusableFolderError as error:
            raise UserError(f"{error}; {CACHE_HINT}") from error
    return _find_weights_folder(archive, path)


def _find_weights_folder(archive: str, path: str) -> str:
    """Returns the only folder with weights in an extracted archive."""
    found = []
    for here, folders, files in os.walk(path):
        # Archives made on macOS have an extra hidden file for each file.
        visible = [file for file in files if not file.startswith(".")]
        if any(file.endswith((".index", FROZEN, TFLITE)) for file in visible):
            found.append(here)
            folders.clear()  # an export has its own checkpoint further down
    if len(found) != 1:
        names = ", ".join(sorted(os.path.relpath(here, path) for here in found))
        raise UserError(
            f"{archive} contains several checkpoints ({names}); extract it and give one"
            if found
            else f"{archive} contains no checkpoint, frozen graph, TFLite file or "
            "SavedModel"
        )
    return found[0]
