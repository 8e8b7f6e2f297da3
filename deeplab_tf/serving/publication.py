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


@contextlib.contextmanager
def unpublished(path: str) -> Iterator[str]:
    """Gives a name to write an artefact to; at the end it takes its own.

    If the block fails, what was written is removed and an earlier artefact stays:

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
    if "://" in path:
        with tempfile.TemporaryDirectory() as folder:
            unfinished = os.path.join(folder, os.path.basename(path))
            yield unfinished
            _copy(unfinished, path)
        return
    folder, name = os.path.split(path)
    unfinished = os.path.join(folder, f"unfinished.{name}")
    _remove(unfinished)
    os.makedirs(folder or ".", exist_ok=True)
    try:
        yield unfinished
        _replace(path, unfinished)
    finally:
        _remove(unfinished)


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
    if os.path.isdir(path):
        shutil.rmtree(path)
    os.replace(unfinished, path)
    _remove(comparison_path(path))
    if os.path.exists(comparison_path(unfinished)):
        os.replace(comparison_path(unfinished), comparison_path(path))


def _remove(path: str) -> None:
    """Removes an artefact and its comparison, if they are there."""
    for each in (path, comparison_path(path)):
        if os.path.isdir(each):
            shutil.rmtree(each)
        elif os.path.exists(each):
            os.remove(each)


def _files(path: str) -> list[str]:
    """Returns the files of an artefact from its end on, that of a graph last."""
    folders = tf.io.gfile.walk(path)
    found = [f"{folder}/{name}" for folder, _, names in folders for name in names]
    ends = [x.removeprefix(path) for x in found if tf.io.gfile.exists(x)]
    return sorted(ends or [""], key=lambda end: end == f"/{GRAPH}")


def _copy(source: str, target: str) -> None:
    """Copies an artefact to a store, where nothing can be moved in one go."""
    # Of an earlier one first what makes it an artefact, as it is not whole any more.
    stale = [comparison_path(target), *(target + end for end in _files(target)[::-1])]
    for path in filter(tf.io.gfile.exists, stale):
        tf.io.gfile.remove(path)
    pairs = [(source + end, target + end) for end in _files(source)]
    for old, new in (*pairs, tuple(map(comparison_path, (source, target)))):
        if os.path.exists(old):
            tf.io.gfile.makedirs(os.path.dirname(new))
            tf.io.gfile.copy(old, new)
