"""Publishes exported models, with their comparisons, atomically."""

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs
from deeplab_tf.files.file_kinds import is_remote
from deeplab_tf.serving.artefact import read_file
from deeplab_tf.serving.choices import OPENVINO, ending_of, require_format

GRAPH = "saved_model.pb"  # a file in every SavedModel


def is_saved_model(path: str) -> bool:
    """Returns whether a folder is a SavedModel."""
    return tf.io.gfile.exists(os.path.join(path, GRAPH))


def comparison_path(artefact_path: str) -> str:
    """Returns the path of the comparison of an artefact with its model."""
    return artefact_path.rstrip("/") + ".parity.json"


def rejected_comparison_path(artefact_path: str) -> str:
    """Returns the path of the comparison of a rejected artefact."""
    return artefact_path.rstrip("/") + ".refused.json"


def weights_path(path: str) -> str:
    """Returns the path of the weights of an OpenVINO file."""
    return path.removesuffix(OPENVINO) + ".bin"


def require_replaceable(path: str, overwrite: bool = False) -> None:
    """Raises UserError if `publish_artefact` would refuse a path."""
    require_format(path)
    outputs.require_replaceable(path, overwrite)
    is_folder = tf.io.gfile.isdir(path)
    if tf.io.gfile.exists(path) and is_folder == bool(ending_of(path)):
        kind = "folder" if is_folder else "file"
        expected = ending_of(path).removeprefix(".") or "SavedModel"
        raise UserError(
            f"{path} exists but is a {kind}, not a {expected}; choose another path"
        )
    others = [comparison_path(path), rejected_comparison_path(path)]
    if ending_of(path) == OPENVINO:
        others.append(weights_path(path))
    for other in others:
        outputs.require_replaceable(other, overwrite)


@contextlib.contextmanager
def publish_artefact(path: str, overwrite: bool = False) -> Iterator[str]:
    """Yields a path to export to, and publishes the artefact when the block ends.

    If the block fails, the earlier artefact is kept. If `gate` rejects the artefact,
    its comparison is kept at `rejected_comparison_path`:

        with publish_artefact(path) as unfinished:
            export_tflite(model, unfinished, size)
            gate(model, unfinished, dataset, config)

    Args:
        path: Path of the artefact: a file ending in `.tflite`, `.onnx`, `.xml`,
            `.pb` or `.keras`, else the folder of a SavedModel.
        overwrite: Whether to replace files that are not an earlier export.

    Yields:
        A path in a scratch folder, with the same ending.

    Raises:
        UserError: if `path` exists and is not an earlier export of the same format.
    """
    require_replaceable(path, overwrite)
    # Replace the target of a link, not the link.
    path = path.rstrip("/") if is_remote(path) else os.path.realpath(path)
    with outputs.publish(path, overwrite) as unfinished:
        with _keep_rejected_comparison(unfinished, path):
            yield unfinished
        comparison = _read_if_exists(comparison_path(unfinished))
        # Never leave the comparison of a different artefact next to this one.
        for stale in (comparison_path(path), rejected_comparison_path(path)):
            if tf.io.gfile.exists(stale):
                tf.io.gfile.remove(stale)
        if ending_of(path) == OPENVINO:
            _publish_weights(weights_path(unfinished), path, overwrite)
    if comparison is not None:
        outputs.write_bytes(comparison, comparison_path(path))


def _publish_weights(unfinished: str, path: str, overwrite: bool) -> None:
    """Publishes the weights of an OpenVINO file before its graph.

    The earlier graph is removed first, so that it never has the new weights, even if
    the program is killed.
    """
    with outputs.publish(weights_path(path), overwrite) as copy:
        os.replace(unfinished, copy)
        if tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)


@contextlib.contextmanager
def _keep_rejected_comparison(unfinished: str, path: str) -> Iterator[None]:
    """Keeps the comparison of a rejected artefact, and names its path in the error."""
    try:
        yield
    except UserError as error:
        comparison = _read_if_exists(comparison_path(unfinished))
        if comparison is None:
            raise
        kept = rejected_comparison_path(path)
        tf.io.gfile.makedirs(os.path.dirname(kept))
        outputs.write_bytes(comparison, kept)
        raise UserError(f"{error}; see {kept}") from error


def _read_if_exists(path: str) -> bytes | None:
    return read_file(path) if tf.io.gfile.exists(path) else None
