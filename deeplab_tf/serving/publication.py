"""Publishing an exported model with its comparison, atomically."""

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs
from deeplab_tf.files.file_kinds import is_remote
from deeplab_tf.serving.artefact import read_file

# What every SavedModel has.
GRAPH = "saved_model.pb"
# What files end with; a SavedModel is a folder.
TFLITE, ONNX = ".tflite", ".onnx"


def ending_of(path: str) -> str:
    """Returns `.tflite` or `.onnx` if a path ends so; "" for a SavedModel's."""
    return next((ending for ending in (TFLITE, ONNX) if path.endswith(ending)), "")


def is_saved_model(path: str) -> bool:
    """Returns whether a folder holds a SavedModel."""
    return tf.io.gfile.exists(os.path.join(path, GRAPH))


def comparison_path(artefact_path: str) -> str:
    """Returns where the comparison of an artefact with its model is written."""
    return artefact_path.rstrip("/") + ".parity.json"


def refusal_path(artefact_path: str) -> str:
    """Returns where the comparison of a rejected artefact is kept."""
    return artefact_path.rstrip("/") + ".refused.json"


def require_replaceable(path: str, overwrite: bool = False) -> None:
    """Refuses to replace anything but an earlier export or an empty folder.

    Args:
        path: As in `publish_artefact`.
        overwrite: As in `publish_artefact`.

    Raises:
        UserError: naming what is in the way.
    """
    outputs.require_replaceable(path, overwrite)
    is_folder = tf.io.gfile.isdir(path)
    if tf.io.gfile.exists(path) and is_folder == bool(ending_of(path)):
        kind = "folder" if is_folder else "file"
        expected = ending_of(path).removeprefix(".") or "SavedModel"
        raise UserError(
            f"{path} exists and is a {kind}, not a {expected}; choose another path"
        )
    for other in (comparison_path(path), refusal_path(path)):
        outputs.require_replaceable(other, overwrite)


@contextlib.contextmanager
def publish_artefact(path: str, overwrite: bool = False) -> Iterator[str]:
    """Yields a path to export to; the artefact is published when the block ends.

    If the block fails, what was written is removed and an earlier artefact stays. The
    comparison of an artefact that `gate` rejects is kept, see `refusal_path`:

        with publish_artefact(path) as unfinished:
            export_tflite(model, unfinished, size)
            gate(model, unfinished, dataset, config)

    Args:
        path: Where the artefact is to be: a file that ends with `.tflite` or `.onnx`,
            else the folder of a SavedModel.
        overwrite: Whether to replace what is not an earlier export, too.

    Yields:
        A path in a scratch folder, with the same ending.

    Raises:
        UserError: if `path` holds something that is not an earlier export of its kind.
    """
    require_replaceable(path, overwrite)
    # A link stays a link.
    path = path.rstrip("/") if is_remote(path) else os.path.realpath(path)
    with outputs.publish(path, overwrite) as unfinished:
        with _keep_refusal(unfinished, path):
            yield unfinished
        comparison = _read_if_there(comparison_path(unfinished))
        # Never a comparison beside an artefact of which it is not.
        for stale in (comparison_path(path), refusal_path(path)):
            if tf.io.gfile.exists(stale):
                tf.io.gfile.remove(stale)
    if comparison is not None:
        outputs.write_bytes(comparison, comparison_path(path))


@contextlib.contextmanager
def _keep_refusal(unfinished: str, path: str) -> Iterator[None]:
    """Keeps the comparison of an artefact that is rejected."""
    try:
        yield
    except UserError as error:
        comparison = _read_if_there(comparison_path(unfinished))
        if comparison is None:
            raise
        kept = refusal_path(path)
        tf.io.gfile.makedirs(os.path.dirname(kept))
        outputs.write_bytes(comparison, kept)
        raise UserError(f"{error}; {kept} compares them") from error


def _read_if_there(path: str) -> bytes | None:
    return read_file(path) if tf.io.gfile.exists(path) else None
