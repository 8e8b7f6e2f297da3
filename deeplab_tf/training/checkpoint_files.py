"""Finds, checks, publishes and removes checkpoint files, `model.ckpt-<step>`.

A checkpoint is written to a scratch folder and then moved to its folder, the index file
last. So any checkpoint with an index file is intact, even if the process was killed.
"""

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from deeplab_tf.checkpoints.keys import GRAPH_KEY, from_key
from deeplab_tf.checkpoints.tf1 import NAME, REPLACED, STATE_FILE
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs, text_files
from deeplab_tf.files.locks import verify_training_lock

BEST = "best"
_STATE_KEYS = (
    *("model_checkpoint_path", "all_model_checkpoint_paths"),
    *("all_model_checkpoint_timestamps", "last_preserved_timestamp"),
)
# The process id, and a random suffix in case several machines share the folder.
_SCRATCH = re.compile(r"\.writing-\d+-[0-9a-f]{8}")
_FILE = re.compile(
    rf"({re.escape(NAME)}-(\d+)(?:{REPLACED})?)\.(index|data-\d+-of-\d+)"
)
# Raised by reading a damaged file.
_UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, IndexError)
UNWRITABLE = (tf.errors.OpError, OSError)


def list_prefixes(folder: str) -> list[str]:
    """Returns the checkpoints of a folder, sorted by step, including damaged ones.

    Lists the files instead of reading the state file, which may be missing or
    truncated.
    """
    if not tf.io.gfile.isdir(folder):
        return []
    steps = {m[1]: int(m[2]) for m in _match_files(folder) if m[3] == "index"}
    # The longer name, with REPLACED, is the older one.
    names = sorted(steps, key=lambda name: (steps[name], -len(name)))
    return [os.path.join(folder, name) for name in names]


def _match_files(folder: str) -> list[re.Match]:
    """Returns the match of `_FILE` for each checkpoint file in a folder."""
    return list(filter(None, map(_FILE.fullmatch, tf.io.gfile.listdir(folder))))


def find_foreign_prefixes(folder: str) -> list[str]:
    """Returns the checkpoints of a folder that this package did not write."""
    if not tf.io.gfile.isdir(folder):
        return []
    prefixes = [os.path.join(folder, match[1]) for match in _match_files(folder)]
    return [prefix for prefix in prefixes if not _is_ours(prefix)]


def find_foreign_state_file(folder: str) -> list[str]:
    """Returns `[STATE_FILE]` if that of a folder is not ours, else []."""
    path = os.path.join(folder, STATE_FILE)
    if not tf.io.gfile.exists(path):
        return []
    lines = text_files.read_content(path).decode(errors="replace").split("\n")
    keys = [line.partition(":")[0].strip() for line in lines]
    # Prefixes, because ours may have been truncated.
    is_ours = all(any(known.startswith(k) for known in _STATE_KEYS) for k in keys)
    return [] if is_ours else [STATE_FILE]


def _is_ours(prefix: str) -> bool:
    """Returns whether this package wrote a checkpoint or its REPLACED copy."""
    return outputs.is_recorded(f"{prefix.removesuffix(REPLACED)}.index")


def open_checkpoint(prefix: str):
    """Returns a reader for the tensors of a checkpoint."""
    # `tf.train.load_checkpoint` mistakes a ram:// prefix for a folder.
    return tf.compat.v1.train.NewCheckpointReader(prefix)


def find_damage(prefix: str) -> str | None:
    """Returns a description of a checkpoint's damage, or None if it is intact.

    Reads every tensor, which verifies the checksums.
    """
    try:
        reader = open_checkpoint(prefix)
        keys = set(reader.get_variable_to_shape_map())
        for key in keys:
            reader.get_tensor(key)
        missing = _expected_keys(reader, keys) - keys
    except _UNREADABLE as error:
        return _shorten(error)
    return f"its index lacks {min(missing)}" if missing else None


def _expected_keys(reader, keys: set[str]) -> set[str]:
    """Returns the keys that the object graph of a checkpoint lists.

    If an index file has several blocks (more than about 2000 variables), the reader
    silently skips damaged ones.
    """
    if GRAPH_KEY not in keys:
        # Official checkpoints have no graph; one of ours has lost that block.
        is_ours = any(map(from_key, keys))
        return {GRAPH_KEY} if is_ours else set()
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(GRAPH_KEY))
    return {a.checkpoint_key for node in graph.nodes for a in node.attributes}


def describe_latest_intact(folder: str) -> str:
    """Describes the latest intact checkpoint in a folder, for error messages."""
    for prefix in reversed(list_prefixes(folder)):
        if find_damage(prefix) is None:
            return f"the previous checkpoint, {prefix}, is intact"
    return "no earlier checkpoint is intact"


def _shorten(error: Exception) -> str:
    """Returns the first line of an error without the names of TensorFlow's ops."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]", "", line)


def describe_write_error(error: Exception) -> str:
    """Returns the reason for a failed write, without the name of the scratch file."""
    return _shorten(error).rpartition("; ")[2]


def publish(
    write: Callable[[str], object], name: str, folder: str, root: str, kept: int
) -> None:
    """Writes a checkpoint, moves it to its folder and removes old ones.

    `write` writes the files of a prefix. `folder` is `root`, a locked `train_logdir`,
    or a folder within it. `kept` is the number of checkpoints to keep, including this.
    """
    found = map(os.path.basename, list_prefixes(folder))
    earlier = [n for n in found if n not in (name, name + REPLACED)]
    # Always kept, even if a run that started over is at an earlier step.
    names = [*earlier, name][-kept:]
    with _make_scratch_folder(root) as scratch:
        write(os.path.join(scratch, name))
        _write_state_file(scratch, names)
        # Writing is slow; the lock may have been lost meanwhile.
        verify_training_lock(root)
        _back_up(scratch, name, folder)
        _move(scratch, name, folder)
    _remove_all_but(names, folder)


@contextmanager
def _make_scratch_folder(folder: str) -> Iterator[str]:
    """Yields a new folder inside a locked one, on the same disk, and removes it."""
    _remove_scratch_folders(folder)
    name = f".writing-{os.getpid()}-{secrets.token_hex(4)}"
    scratch = os.path.join(folder, name)
    # Not makedirs: a removed train_logdir must not be created again.
    tf.io.gfile.mkdir(scratch)
    try:
        yield scratch
    finally:
        # The next save removes leftovers; do not hide why writing failed.
        with suppress(*UNWRITABLE):
            tf.io.gfile.rmtree(scratch)


def _remove_scratch_folders(folder: str) -> None:
    """Removes the scratch folders of killed processes from a locked folder."""
    for name in tf.io.gfile.listdir(folder):
        path = os.path.join(folder, name.rstrip("/"))  # gs:// lists folders with "/"
        if _SCRATCH.fullmatch(name.rstrip("/")) and not os.path.islink(path):
            tf.io.gfile.rmtree(path)


def _write_state_file(folder: str, names: list[str]) -> None:
    """Writes the `checkpoint` state file, which marks the last name as the latest.

    Paths in the file are relative, so the folder can be moved.
    """
    lines = [f'model_checkpoint_path: "{names[-1]}"']
    lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
    with tf.io.gfile.GFile(os.path.join(folder, STATE_FILE), "w") as file:
        file.write("\n".join([*lines, ""]))


def _back_up(scratch: str, name: str, folder: str) -> None:
    """Copies the checkpoint that is about to be replaced, if it is intact.

    Index and data cannot be replaced together; until both are, the copy is valid.
    """
    prefix = os.path.join(folder, name)
    if not tf.io.gfile.exists(f"{prefix}.index") or find_damage(prefix) is not None:
        return
    parts = sorted(m[3] for m in _match_files(folder) if m[1] == name)  # index last
    copies = {p: os.path.join(scratch, f"{name}{REPLACED}.{p}") for p in parts}
    for part, copy in copies.items():
        tf.io.gfile.copy(f"{prefix}.{part}", copy)
    for part, copy in copies.items():
        tf.io.gfile.rename(copy, f"{prefix}{REPLACED}.{part}", overwrite=True)


def _move(scratch: str, name: str, folder: str) -> None:
    """Publishes the files of a checkpoint; the index and the state file come last."""
    if not tf.io.gfile.isdir(folder):
        tf.io.gfile.mkdir(folder)
    # Removed first, so that it never stands next to the data of a different checkpoint.
    index = f"{name}.index"
    path = os.path.join(folder, index)
    if tf.io.gfile.exists(path):
        if not outputs.is_recorded(path) and find_damage(os.path.join(folder, name)):
            raise UserError(f"{path} was not written by deeplab_tf; move it elsewhere")
        tf.io.gfile.remove(path)
    parts = {match[0] for match in _match_files(scratch)} - {index}
    moves = [
        (os.path.join(scratch, part), os.path.join(folder, part))
        for part in (*sorted(parts), index, STATE_FILE)
    ]
    for move in moves[-2:]:  # the entry of the index covers the data
        outputs.record_before_move(*move)
    for source, path in moves:
        tf.io.gfile.rename(source, path, overwrite=True)


def _remove_all_but(names: list[str], folder: str) -> None:
    """Removes our other checkpoints, and our data files without an index."""
    old = [
        match
        for match in _match_files(folder)
        if match[1] not in names and _is_ours(os.path.join(folder, match[1]))
    ]
    # Index first: without its data it would look damaged.
    for match in sorted(old, key=lambda match: match[3] != "index"):
        tf.io.gfile.remove(os.path.join(folder, match[0]))
