"""An artefact takes its place, and an earlier one's, once it is whole."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

import tensorflow as tf

from deeplab_tf.errors import UserError

# What every SavedModel has, and what is written of it last.
GRAPH = "saved_model.pb"
# What files end with; a SavedModel is a folder.
TFLITE, ONNX = ".tflite", ".onnx"


def ending_of(path: str) -> str:
    """Returns `.tflite` or `.onnx` if a path ends so; "" for a SavedModel's."""
    return next((ending for ending in (TFLITE, ONNX) if path.endswith(ending)), "")


def is_saved_model(path: str) -> bool:
    """Whether a folder holds a SavedModel."""
    return tf.io.gfile.exists(os.path.join(path, GRAPH))


def comparison_path(artefact_path: str) -> str:
    """Returns where the comparison of an artefact with its model is written."""
    return artefact_path.rstrip("/") + ".parity.json"


def refusal_path(artefact_path: str) -> str:
    """Returns where the comparison of an artefact is kept that was refused."""
    return artefact_path.rstrip("/") + ".refused.json"


@contextlib.contextmanager
def unpublished(path: str) -> Iterator[str]:
    """Gives a name to write an artefact to; at the end it takes its own.

    If the block fails, what was written is removed and an earlier artefact stays; of an
    artefact that `gate` refuses the comparison is kept, see `refusal_path`:

        with unpublished(path) as unfinished:
            export_tflite(model, unfinished, size)
            gate(model, unfinished, dataset, config)

    Args:
        path: Where the artefact is to be: a file that ends with `.tflite` or `.onnx`,
            else the folder of a SavedModel.

    Yields:
        A path beside it, with the same ending.

    Raises:
        UserError: if `path` holds something that is not an artefact of its kind.
    """
    path = path.rstrip("/")
    require_replaceable(path)
    is_store = "://" in path
    # A link stays a link.
    path = path if is_store else os.path.realpath(path)
    with _scratch(path, is_store) as scratch:
        unfinished = os.path.join(scratch, os.path.basename(path))
        with _kept_refusal(unfinished, path):
            yield unfinished
        if is_store:
            _copy(unfinished, path)
        else:
            _replace(path, unfinished)


@contextlib.contextmanager
def _scratch(path: str, is_store: bool) -> Iterator[str]:
    """Makes a folder for what is unfinished, in the end removed: beside its place."""
    if is_store:
        with tempfile.TemporaryDirectory() as scratch:
            yield scratch
        return
    folder, name = os.path.split(path)
    scratch = os.path.join(folder, f".unfinished.{name}")
    shutil.rmtree(scratch, ignore_errors=True)  # of a program that was killed
    os.makedirs(scratch)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


@contextlib.contextmanager
def _kept_refusal(unfinished: str, path: str) -> Iterator[None]:
    """Keeps the comparison of what is refused."""
    try:
        yield
    except UserError as error:
        comparison, kept = comparison_path(unfinished), refusal_path(path)
        if not os.path.exists(comparison):
            raise
        tf.io.gfile.copy(comparison, kept, overwrite=True)
        raise UserError(f"{error}; {kept} compares them") from error


def require_replaceable(path: str) -> None:
    """Refuses to overwrite anything but an artefact or an empty folder.

    Args:
        path: As in `unpublished`.

    Raises:
        UserError: naming the path.
    """
    if not tf.io.gfile.exists(path):
        return
    if not tf.io.gfile.isdir(path):
        is_replaceable = bool(ending_of(path))
    else:
        is_empty = not tf.io.gfile.listdir(path)
        is_replaceable = not ending_of(path) and (is_empty or is_saved_model(path))
    if not is_replaceable:
        kind = ending_of(path).removeprefix(".") or "SavedModel"
        raise UserError(f"{path} is there and is no {kind}; give a new path")


def _replace(path: str, unfinished: str) -> None:
    """Moves an artefact and its comparison to where earlier ones may be."""
    earlier = os.path.join(os.path.dirname(unfinished), "earlier")
    if os.path.isdir(path):
        os.replace(path, earlier)
    try:
        os.replace(unfinished, path)
    except OSError:
        if os.path.exists(earlier):
            os.replace(earlier, path)
        raise
    for stale in (comparison_path(path), refusal_path(path)):
        if os.path.exists(stale):
            os.remove(stale)
    if os.path.exists(comparison_path(unfinished)):
        os.replace(comparison_path(unfinished), comparison_path(path))


def _files(path: str) -> list[str]:
    """Returns the files of an artefact from its end on, that of a graph last."""
    folders = tf.io.gfile.walk(path)
    found = [f"{folder}/{name}" for folder, _, names in folders for name in names]
    ends = [x.removeprefix(path) for x in found if tf.io.gfile.exists(x)]
    return sorted(ends or [""], key=lambda end: end == f"/{GRAPH}")


def _copy(source: str, target: str) -> None:
    """Copies an artefact to a store, where nothing can be moved in one go."""
    # Of an earlier one first what makes it an artefact, as it is not whole any more.
    stale = [target + end for end in _files(target)[::-1]]
    stale += [comparison_path(target), refusal_path(target)]
    for path in filter(tf.io.gfile.exists, stale):
        tf.io.gfile.remove(path)
    pairs = [(source + end, target + end) for end in _files(source)]
    for old, new in (*pairs, tuple(map(comparison_path, (source, target)))):
        if os.path.exists(old):
            tf.io.gfile.makedirs(os.path.dirname(new))
            tf.io.gfile.copy(old, new)
