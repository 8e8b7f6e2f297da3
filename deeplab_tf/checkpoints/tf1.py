"""Reads and writes checkpoint files by official variable name.

Reads official (TF1) checkpoints, ours, and exported graphs (`exported_graph`).
`deeplab_tf.training.state` writes ours, by `tf.train.Checkpoint` with the official
names as keys.
"""

import dataclasses
import functools
import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import Message

from deeplab_tf import strict_json
from deeplab_tf.arguments import check_arguments
from deeplab_tf.checkpoints.exported_graph import (
    ExportedGraph,
    find_exported_graphs,
    is_exported_graph,
    read_exported_graph,
)
from deeplab_tf.checkpoints.keras_file import is_keras_file, load_keras_file
from deeplab_tf.checkpoints.keys import GRAPH_KEY, weight_keys
from deeplab_tf.checkpoints.pytorch.layouts import convert_state_dict
from deeplab_tf.checkpoints.pytorch.weights import is_torch_file, read_torch_file
from deeplab_tf.checkpoints.restore import (
    RestoreReport,
    format_names,
    load_tf1_variables,
    tf1_variables,
)
from deeplab_tf.config import ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.files import text_files
from deeplab_tf.models.checks import BUILT

NAME = "model.ckpt"
# Text proto that names the latest checkpoint of a folder.
STATE_FILE = "checkpoint"
# Suffix of a backup, valid while the checkpoint of the same step is being replaced.
REPLACED = "-replaced"
# Attempts to read a checkpoint that keeps changing, and the seconds between them.
_TRIES, _PAUSE = 20, 0.05


class MissingCheckpointError(UserError):
    """A folder contains no checkpoint, or a prefix does not exist."""


def resolve(path: str) -> str:
    """Returns the checkpoint prefix for a path, which is a prefix or a folder.

    In a folder, this is the checkpoint named by the `checkpoint` file, else the one
    with the highest step (official archives have no `checkpoint` file), else a frozen
    graph or TFLite file. A `checkpoint` file that names a missing checkpoint is ignored
    with a warning. Hidden files, such as those that macOS creates, are ignored. The
    prefix of a `.keras` file, a PyTorch file or a Hugging Face folder is its path.

    Raises:
        MissingCheckpointError: if there is no checkpoint; names those that exist.
        UserError: if the `checkpoint` file is damaged.
    """
    path = os.path.expanduser(path).removesuffix(".index")
    if tf.io.gfile.exists(path + ".index") or is_exported_graph(path):
        return path
    if is_keras_file(path) or is_torch_file(path):
        return path
    if not tf.io.gfile.isdir(path):
        folder = os.path.dirname(path) or "."
        near = _list_prefixes(folder) if tf.io.gfile.isdir(folder) else []
        hint = f"in {folder}: {', '.join(near)}" if near else f"none in {folder} either"
        raise MissingCheckpointError(
            f"no checkpoint {path} (no file {path}.index); {hint}"
        )
    names = _list_prefixes(path)
    found = _find_latest_names(path, names) or names or find_exported_graphs(path)
    if not found:
        raise MissingCheckpointError(
            f"no checkpoint in the folder {path} (no *.index, *.pb or *.tflite file)"
        )
    return os.path.join(path, os.path.basename(found[-1]))


def _find_latest_names(folder: str, names: list[str]) -> list[str]:
    """Returns [name] of the checkpoint in the `checkpoint` file; [] if missing.

    `names` are the checkpoints of the folder by step.
    """
    path = os.path.join(folder, STATE_FILE)
    if not tf.io.gfile.exists(path):
        return []
    state = _read_state(path)
    place, name = os.path.split(state.model_checkpoint_path)
    if name not in names and name + REPLACED in names:
        return [name + REPLACED]
    if name not in names:
        if names:
            _warn_once(f"{path} names {name}, which does not exist; using {names[-1]}")
        return []
    if place and os.path.abspath(place) != os.path.abspath(folder):
        _warn_once(
            f"{path} names {state.model_checkpoint_path}; using {name} of {folder}"
        )
    elif not state.all_model_checkpoint_paths and name != names[-1]:
        _warn_once(f"{path} names {name}, although {folder} also has {names[-1]}")
    return [name]


def _read_state(path: str) -> Message:
    """Parses a `checkpoint` file.

    `tf.train.latest_checkpoint` would silently ignore a damaged file.
    """
    content = text_files.read_content(path, strict_json.MAX_BYTES)
    try:
        text = strict_json.decode_utf8(content, path)
        # The only public way to create this message.
        state = tf.compat.v1.train.generate_checkpoint_state_proto(".", STATE_FILE)
        state.Clear()
        text_format.Parse(text, state)
    except (text_format.ParseError, ValueError, RecursionError) as error:
        raise _make_damage_error(path, str(error).splitlines()[0]) from error
    latest, listed = state.model_checkpoint_path, state.all_model_checkpoint_paths
    if os.path.basename(latest) in ("", ".", ".."):
        raise _make_damage_error(path, f"model_checkpoint_path is {latest!r}")
    strict_json.check_text(latest, f"{path}: model_checkpoint_path")
    if listed and listed[-1] != latest:
        raise _make_damage_error(
            path,
            f"model_checkpoint_path is {latest!r}, but the last of "
            f"all_model_checkpoint_paths {listed[-1]!r}",
        )
    return state


def _make_damage_error(path: str, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged ({reason}); delete it to use the checkpoint of the highest "
        "step, or give the prefix of a checkpoint"
    )


# Cached to warn only once: programs resolve a folder repeatedly.
@functools.cache
def _warn_once(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _list_prefixes(folder: str) -> list[str]:
    """Returns the names of the checkpoints in a folder, sorted by step."""
    names = [
        name.removesuffix(".index")
        for name in tf.io.gfile.listdir(folder)
        if name.endswith(".index") and not name.startswith(".")
    ]

    def step(name: str) -> tuple[int, bool, str]:
        original = name.removesuffix(REPLACED)
        digits = original.rpartition("-")[2]
        # The replacement of a checkpoint is newer than its backup.
        return (int(digits) if digits.isdigit() else -1, name == original, name)

    return sorted(names, key=step)


def read_variables(prefix: str) -> dict[str, np.ndarray]:
    """Returns `{official name: array}` of a checkpoint or an exported graph.

    After training with `ema_decay`, these are the moving averages of the weights.

    Raises:
        UserError: if the files are missing, damaged or truncated.
    """
    if is_exported_graph(prefix):
        return read_exported_graph(prefix).arrays
    try:
        # `tf.train.load_checkpoint` mistakes a ram:// prefix for a folder.
        reader = tf.compat.v1.train.NewCheckpointReader(prefix)
        keys = reader.get_variable_to_shape_map()
        is_ours = reader.has_tensor(GRAPH_KEY)
        names = weight_keys(keys) if is_ours else {key: key for key in keys}
        return {name: reader.get_tensor(key) for name, key in names.items()}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{prefix} cannot be read as a checkpoint: {first}") from error


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        prefix: Prefix of its files.
        arrays: `{official name: array}`; see `read_variables`.
        stored: The model config that a `.keras` file stores, or that PyTorch weights
            need; None for other files.
        graph: The TFLite file or frozen graph, if it is one.
        is_classifier: Whether only the backbone is pretrained.
    """

    prefix: str
    arrays: dict[str, np.ndarray]
    stored: ModelConfig | None = None
    graph: ExportedGraph | None = None
    is_classifier: bool = False

    @functools.cached_property
    def config(self) -> ModelConfig | None:
        """The model config, if the file stores it or has a graph that shows it."""
        if self.graph is None:
            return self.stored
        try:
            return self.graph.config
        except UserError:
            # The weights have names, so flags can describe the model.
            return None


def read_checkpoint(path: str) -> Checkpoint:
    """Reads the variables of a checkpoint, safely even during training.

    If the files change while they are being read, reading starts over with the newest
    checkpoint, so all variables belong to one checkpoint.

    Args:
        path: A prefix, a folder, an exported graph, a `.keras` file or PyTorch weights;
            see `resolve`.

    Raises:
        UserError: if there is no checkpoint, or it is damaged or has been removed.
    """
    if is_keras_file(path):
        model = load_keras_file(path)
        return Checkpoint(path, tf1_variables(model), model.model_config)
    if is_torch_file(path):
        return _read_torch_checkpoint(path)
    return _read_unchanged(path)


def _read_unchanged(path: str) -> Checkpoint:
    """Reads a checkpoint whose files may change; see `read_checkpoint`."""
    was_found, failure = False, None
    for _ in range(_TRIES):
        try:
            prefix = find_checkpoint(path)
        except UserError as error:
            failure = error
            break
        was_found, failure, before = True, None, _read_index(prefix)
        try:
            checkpoint = _read_official_files(prefix)
        except UserError as error:
            failure = error
        is_unchanged = before is not None and before == _read_index(prefix)
        if is_unchanged and failure is None:
            return checkpoint
        if is_unchanged:
            break
        time.sleep(_PAUSE)
    if failure is not None and not (was_found and _read_index(prefix) is None):
        raise failure
    raise UserError(
        f"{path} was removed or replaced while it was read; a training run keeps "
        "only its newest checkpoints: give its folder, or a copy of the checkpoint"
    )


def _read_official_files(prefix: str) -> Checkpoint:
    """Reads a checkpoint or an exported graph by official variable name."""
    if is_exported_graph(prefix):
        graph = read_exported_graph(prefix)
        return Checkpoint(prefix, graph.arrays, graph=graph)
    return Checkpoint(prefix, read_variables(prefix))


def _read_torch_checkpoint(path: str) -> Checkpoint:
    """Reads and converts PyTorch weights; prints which network they belong to."""
    file = read_torch_file(path)
    layout, config, arrays, unused = convert_state_dict(
        file.arrays, file.description, path
    )
    not_used = format_names("variables not used", unused)
    print(
        f"note: {path} is {layout.name}: {config.backbone}, output_stride "
        f"{config.output_stride}{not_used and f'; {not_used}'}"
    )
    return Checkpoint(path, arrays, config, is_classifier=layout.is_backbone)


def find_checkpoint(path: str) -> str:
    """Returns the prefix for a path, as `resolve` does, even during training.

    Waits while a training run replaces the checkpoint.
    """
    for _ in range(_TRIES):
        try:
            return resolve(path)
        except UserError:
            if not _has_data_files(path):
                raise
        time.sleep(_PAUSE)
    return resolve(path)


def _has_data_files(path: str) -> bool:
    """Returns whether a checkpoint without a readable index has data files.

    This is so for a moment while it is being replaced.
    """
    folder, name = (path, "") if tf.io.gfile.isdir(path) else os.path.split(path)
    try:
        names = tf.io.gfile.listdir(folder or ".")
    except tf.errors.OpError:
        return False
    return any(n.startswith(f"{name}.data-" if name else NAME) for n in names)


def _read_index(prefix: str) -> bytes | None:
    """Reads the index file, which has the checksums of all variables.

    Returns None if it is missing, and b"" for an exported graph, which has no index.
    """
    if is_exported_graph(prefix):
        return b""
    try:
        with tf.io.gfile.GFile(f"{prefix}.index", "rb") as file:
            return file.read()
    except tf.errors.OpError:
        return None


@check_arguments(model=BUILT)
def load_tf1_checkpoint(
    model: keras.Model, prefix: str, exclude: tuple[str, ...] = ()
) -> RestoreReport:
    """Loads a checkpoint, official or ours, into a model.

    Args:
        model: A model of `build_model`.
        prefix: Prefix or folder of the checkpoint, a frozen graph, a TFLite file, a
            `.keras` file or PyTorch weights (see `from_pretrained`).
        exclude: Scopes (prefixes of names) to skip.

    Returns:
        Names that were restored, skipped, missing and unexpected.

    Raises:
        UserError: if the checkpoint does not exist or its architecture differs.
    """
    checkpoint = read_checkpoint(prefix)
    return load_tf1_variables(
        model, checkpoint.arrays, exclude, source=checkpoint.prefix
    )


@check_arguments(model=BUILT)
def save_tf1_checkpoint(model: keras.Model, prefix: str) -> None:
    """Writes the weights as a checkpoint that the official code reads.

    Args:
        model: A model of `build_model`.
        prefix: Path of the files without extensions; its folder is created.
    """
    # The official eval.py and vis.py fail without a step.
    arrays = tf1_variables(model) | {"global_step": np.int64(0)}
    tf.io.gfile.makedirs(os.path.dirname(prefix) or ".")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=[tf.constant(array) for array in arrays.values()],
    )
