"""Training state on disk: `<train_logdir>/model.ckpt-<step>`, by official name.

A checkpoint is written beside the others and then moved among them, its index file
last: what has an index file is whole, whenever the process was killed.
"""

import dataclasses
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress

import keras
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from deeplab_tf.checkpoints.keys import (
    AVERAGE_KEY,
    GRAPH_KEY,
    MODEL_KEY,
    from_key,
    to_key,
)
from deeplab_tf.checkpoints.tf1 import NAME, REPLACED, STATE_FILE
from deeplab_tf.config import EXPERIMENT_FILE, Experiment
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import METRICS_FILE
from deeplab_tf.files import outputs, text_files
from deeplab_tf.files.locks import training_lock, verify_training_lock
from deeplab_tf.files.outputs import write_text
from deeplab_tf.training.divergence import first_not_finite
from deeplab_tf.training.history import CURVES_FILE, HISTORY_FILE

FORMAT_VERSION = 1
_KEPT = 5
BEST = "best"
_STATE_KEYS = (
    *("model_checkpoint_path", "all_model_checkpoint_paths"),
    *("all_model_checkpoint_timestamps", "last_preserved_timestamp"),
)
# Of the process with this id. The random end keeps apart processes of several machines.
_SCRATCH = re.compile(r"\.writing-\d+-[0-9a-f]{8}")
# Which flag a group of variables is there for.
_FLAGS = {
    "optimizer": "optimizer",
    AVERAGE_KEY: "ema_decay",
    "loss_scale": "precision",
}
_FILE = re.compile(
    rf"({re.escape(NAME)}-(\d+)(?:{REPLACED})?)\.(index|data-\d+-of-\d+)"
)
# Counts the saves of tf.train.CheckpointManager, which wrote our first checkpoints.
_NOT_OURS = {GRAPH_KEY, to_key("save_counter")}
# `tf.errors` has no common name for what reading a damaged file raises.
_UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, IndexError)
_UNWRITABLE = (tf.errors.OpError, OSError)


class TrainingState:
    """Saves and restores what a training needs to go on.

    Args:
        folder: The `train_logdir`.
        groups: Name of a group (`MODEL_KEY`: the weights by official name, moving
            statistics included) to its variables by name, each a `keras.Variable`
            or `tf.Variable`. The names are the format on disk; an empty group
            leaves nothing there.
        step: The optimiser's `iterations`.
        samples: `tf.Variable` with the number of training samples consumed.
        is_chief: False in all but one of several workers. These write as well, for
            reading a variable may need every worker, but keep nothing.
    """

    def __init__(
        self,
        folder: str,
        groups: Mapping[str, Mapping[str, keras.Variable | tf.Variable]],
        step: keras.Variable,
        samples: tf.Variable,
        is_chief: bool = True,
    ):
        self.folder = folder
        self._is_chief = is_chief
        self._step = step
        tree = {
            group: {n: _tensorflow_variable(v) for n, v in variables.items()}
            for group, variables in groups.items()
            if variables
        }
        single = {
            "step": _tensorflow_variable(step),
            "samples": samples,
            "format_version": tf.Variable(FORMAT_VERSION),
        }
        self._weights = tree.get(MODEL_KEY, {})
        self._variables = {to_key(name): v for name, v in single.items()} | {
            to_key(group, name): v
            for group, variables in tree.items()
            for name, v in variables.items()
        }
        self._checkpoint = tf.train.Checkpoint(**tree, **single)

    def restore_latest(self) -> str | None:
        """Restores the latest whole checkpoint of the folder.

        One that is damaged is passed over with a line on stderr.

        Returns:
            The prefix of the checkpoint; None if there is no checkpoint.

        Raises:
            UserError: if it does not belong to this model and optimiser, or if
                every checkpoint is damaged.
        """
        damaged = []
        for prefix in reversed(_prefixes(self.folder)):
            # All of it is read before anything is restored, so that nothing of a
            # damaged file is left among the values of the one before.
            reason = _damage(prefix)
            if reason is None:
                for other in damaged:
                    warning = f"warning: {other}; going on from the one before"
                    print(warning, file=sys.stderr)
                self._require_match(prefix)
                self._checkpoint.read(prefix).expect_partial()
                return prefix
            damaged.append(f"{prefix} is damaged ({reason})")
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} is whole; give another "
                f"--train_logdir: {damaged[0]}"
            )
        return None

    def save(self) -> str:
        """Writes a checkpoint of the present step and removes old ones.

        The newest five stay. Killed at any moment, it leaves the ones before it as
        they were; one of the same step stays or is replaced, and is never lost. The
        folder is locked while this runs, unless this process has locked it already.

        Returns:
            The prefix of the checkpoint, `<folder>/model.ckpt-<step>`.

        Raises:
            UserError: if it cannot be written, if the weights are not finite, or if
                the folder was removed or taken over by another training.
        """
        return self._save(self.folder, _KEPT)

    def save_best(self) -> str:
        """Writes a checkpoint as `save` does, to `<folder>/best`, where one stays."""
        return self._save(os.path.join(self.folder, BEST), 1)

    def _save(self, folder: str, kept: int) -> str:
        step = int(self._step.numpy())
        name = f"{NAME}-{step}"
        self._require_finite(step)
        with training_lock(self.folder) if self._is_chief else nullcontext():
            try:
                self._publish(name, folder, kept)
            except _UNWRITABLE as error:
                verify_training_lock(self.folder)
                raise UserError(
                    f"could not save {name} in {folder}: {_cause(error)}; "
                    f"{_latest_whole(self.folder)}"
                ) from error
        return os.path.join(folder, name)

    def _publish(self, name: str, folder: str, kept: int) -> None:
        """Writes a checkpoint, moves it to its place and removes old ones."""
        if not self._is_chief:
            with tempfile.TemporaryDirectory() as scratch:
                self._checkpoint.write(os.path.join(scratch, name))
            return
        found = map(os.path.basename, _prefixes(folder))
        others = [n for n in found if n not in (name, name + REPLACED)]
        # The new one counts as the newest: where a training began anew it is not.
        names = [*others, name][-kept:]
        with _scratch_folder(self.folder) as scratch:
            self._checkpoint.write(os.path.join(scratch, name))
            _write_state_file(scratch, names)
            # Writing takes long; the lock may have been lost meanwhile.
            verify_training_lock(self.folder)
            _set_aside(scratch, name, folder)
            _move(scratch, name, folder)
        _remove_all_but(names, folder)

    def _require_finite(self, step: int) -> None:
        name = first_not_finite(self._weights)
        if name is not None:
            raise UserError(
                f"the weights are no longer finite at step {step} (first: {name}); "
                "nothing was saved"
            )

    def _require_match(self, prefix: str) -> None:
        """Refuses a whole checkpoint of another format, model or optimiser."""
        reader = _reader(prefix)
        if not reader.has_tensor(GRAPH_KEY):
            raise UserError(
                f"{prefix} is a checkpoint of TF1, whose training does not go on here; "
                "give it as --tf_initial_checkpoint, with another --train_logdir"
            )
        version_key = to_key("format_version")
        if reader.has_tensor(version_key):
            version = int(reader.get_tensor(version_key))
            if version != FORMAT_VERSION:
                raise UserError(
                    f"{prefix} has format version {version}; this deeplab_tf resumes "
                    f"{FORMAT_VERSION}"
                )
        dtypes = reader.get_variable_to_dtype_map()
        there = {
            key: f"{dtypes[key].name} of shape {list(shape)}"
            for key, shape in reader.get_variable_to_shape_map().items()
            if key not in _NOT_OURS
        }
        here = {
            key: f"{variable.dtype.name} of shape {variable.shape.as_list()}"
            for key, variable in self._variables.items()
        }
        # Both ways: nothing of the model is missing, nothing of the file left. The
        # model first: another one has other slots and averages, too.
        keys = sorted(
            here.keys() | there.keys(), key=lambda k: (_group(k) != MODEL_KEY, k)
        )
        for key in keys:
            if here.get(key) != there.get(key):
                raise UserError(_mismatch(prefix, key, there.get(key), here.get(key)))


def _mismatch(prefix: str, key: str, there: str | None, here: str | None) -> str:
    """Tells in which value a checkpoint is of another training."""
    name = "/".join(from_key(key)) or key
    remedy = "another --train_logdir"
    if _group(key) in _FLAGS and None in (there, here):
        remedy += f", or --{_FLAGS[_group(key)]} as it was"
    return (
        f"{prefix} cannot be resumed by this model and optimiser; give {remedy}: "
        f"{name} is {there or 'not there'}, but {here or 'not in use'} here"
    )


def _group(key: str) -> str:
    return key.partition("/")[0]


def _tensorflow_variable(variable) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _prefixes(folder: str) -> list[str]:
    """Returns the checkpoints of a folder, damaged ones included, by step.

    They are looked for, because the state file may be gone or cut short.
    """
    if not tf.io.gfile.isdir(folder):
        return []
    found = filter(None, map(_FILE.fullmatch, tf.io.gfile.listdir(folder)))
    steps = {m[1]: int(m[2]) for m in found if m[3] == "index"}
    # The longer name first: what replaces a checkpoint is newer.
    names = sorted(steps, key=lambda name: (steps[name], -len(name)))
    return [os.path.join(folder, name) for name in names]


def _reader(prefix: str):
    # Not `tf.train.load_checkpoint`, which takes a ram:// prefix for a folder.
    return tf.compat.v1.train.NewCheckpointReader(prefix)


def _damage(prefix: str) -> str | None:
    """Returns what is wrong with the files of a checkpoint, None if nothing is.

    Every tensor is read, which is what compares its checksum.
    """
    try:
        reader = _reader(prefix)
        keys = set(reader.get_variable_to_shape_map())
        for key in keys:
            reader.get_tensor(key)
        missing = _own_keys(reader, keys) - keys
    except _UNREADABLE as error:
        return _reason(error)
    return f"its index lacks {min(missing)}" if missing else None


def _own_keys(reader, keys: set[str]) -> set[str]:
    """Returns the keys that a checkpoint should have by its own account.

    The reader silently leaves out a damaged block of an index file that has several
    (more than about 2000 variables).
    """
    if GRAPH_KEY not in keys:
        # An official checkpoint has none, ours without it has lost the block.
        return {GRAPH_KEY} if any(map(from_key, keys)) else set()
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(GRAPH_KEY))
    return {a.checkpoint_key for node in graph.nodes for a in node.attributes}


def _latest_whole(folder: str) -> str:
    """Tells which checkpoint of a folder is there to go on from."""
    for prefix in reversed(_prefixes(folder)):
        if _damage(prefix) is None:
            return f"the checkpoint before it, {prefix}, is whole"
    return "there is no whole checkpoint before it"


def _reason(error: Exception) -> str:
    """Returns the first line of an error without the names of TensorFlow's ops."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]", "", line)


def _cause(error: Exception) -> str:
    """Returns the reason without the file, which is a scratch file."""
    return _reason(error).rpartition("; ")[2]


@contextmanager
def _scratch_folder(folder: str) -> Iterator[str]:
    """Makes a folder within a locked one, on the same disk, and removes it."""
    _remove_scratch(folder)
    name = f".writing-{os.getpid()}-{secrets.token_hex(4)}"
    scratch = os.path.join(folder, name)
    # Not makedirs: a train_logdir that vanished is not made again.
    tf.io.gfile.mkdir(scratch)
    try:
        yield scratch
    finally:
        # What cannot be removed now is removed by the next save; the reason why the
        # writing failed says more.
        with suppress(*_UNWRITABLE):
            tf.io.gfile.rmtree(scratch)


def _write_state_file(folder: str, names: list[str]) -> None:
    """Writes the file by which TensorFlow finds the latest checkpoint, the last.

    With relative paths, so that it holds in a folder that was moved.
    """
    lines = [f'model_checkpoint_path: "{names[-1]}"']
    lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
    with tf.io.gfile.GFile(os.path.join(folder, STATE_FILE), "w") as file:
        file.write("\n".join([*lines, ""]))


def _set_aside(scratch: str, name: str, folder: str) -> None:
    """Copies the checkpoint that is about to be replaced, if it is intact.

    Its index and data cannot be replaced at once; until both are, the copy counts.
    """
    prefix = os.path.join(folder, name)
    if not tf.io.gfile.exists(f"{prefix}.index") or _damage(prefix) is not None:
        return
    found = filter(None, map(_FILE.fullmatch, tf.io.gfile.listdir(folder)))
    parts = sorted(m[3] for m in found if m[1] == name)  # the index last
    for part in parts:
        copy = os.path.join(scratch, f"{name}{REPLACED}.{part}")
        tf.io.gfile.copy(f"{prefix}.{part}", copy)
    for part in parts:
        copy = os.path.join(scratch, f"{name}{REPLACED}.{part}")
        tf.io.gfile.rename(copy, f"{prefix}{REPLACED}.{part}", overwrite=True)


def _move(scratch: str, name: str, folder: str) -> None:
    """Moves a checkpoint to where it stays, index and state file last."""
    if not tf.io.gfile.isdir(folder):
        tf.io.gfile.mkdir(folder)
    # Data of one checkpoint never lie beside the index of another.
    index = f"{name}.index"
    path = os.path.join(folder, index)
    if tf.io.gfile.exists(path):
        if not outputs.is_listed(path) and _damage(os.path.join(folder, name)):
            raise UserError(f"{path} exists and is not our checkpoint; move it away")
        tf.io.gfile.remove(path)
    parts = {p for p in tf.io.gfile.listdir(scratch) if _FILE.fullmatch(p)} - {index}
    moves = [
        (os.path.join(scratch, part), os.path.join(folder, part))
        for part in (*sorted(parts), index, STATE_FILE)
    ]
    for move in moves[-2:]:  # the index, which stands for the data as well
        outputs.list_before_move(*move)
    for source, path in moves:
        tf.io.gfile.rename(source, path, overwrite=True)


def _remove_all_but(names: list[str], folder: str) -> None:
    """Removes the other checkpoints, and data that never got their index."""
    found = filter(None, map(_FILE.fullmatch, tf.io.gfile.listdir(folder)))
    old = [
        match
        for match in found
        if match[1] not in names and _is_ours(os.path.join(folder, match[1]))
    ]
    # The index first: one without its data would look damaged.
    for match in sorted(old, key=lambda match: match[3] != "index"):
        tf.io.gfile.remove(os.path.join(folder, match[0]))


def _remove_scratch(folder: str) -> None:
    """Removes the scratch folders that killed processes left in a locked folder."""
    for name in tf.io.gfile.listdir(folder):
        path = os.path.join(folder, name.rstrip("/"))  # as gs:// lists folders
        if _SCRATCH.fullmatch(name.rstrip("/")) and not os.path.islink(path):
            tf.io.gfile.rmtree(path)


def claim_folder(folder: str, overwrite: bool = False) -> None:
    """Refuses a `train_logdir` in which a training would replace files of others.

    Args:
        folder: The `train_logdir`.
        overwrite: Whether such files may be replaced.

    Raises:
        UserError: naming the first of them.
    """
    best = os.path.join(folder, BEST)
    names = (EXPERIMENT_FILE, METRICS_FILE, HISTORY_FILE, CURVES_FILE)
    for place in (folder, best) if tf.io.gfile.isdir(best) else (folder,):
        outputs.claim(place, names, overwrite)
        state = os.path.join(place, STATE_FILE)
        is_foreign = tf.io.gfile.exists(state) and not _is_state_file(state)
        outputs.claim(place, [STATE_FILE] if is_foreign else [], overwrite)
    found = filter(None, map(_FILE.fullmatch, _names(best)))
    for prefix in (os.path.join(best, match[1]) for match in found):
        if not (overwrite or _is_ours(prefix)):
            raise UserError(
                f"{prefix} is not our earlier output, and a better checkpoint would "
                "replace it; give another --train_logdir"
            )


def _is_ours(prefix: str) -> bool:
    """Returns whether we wrote a checkpoint, or a copy of it that was set aside."""
    return outputs.is_listed(f"{prefix.removesuffix(REPLACED)}.index")


def _is_state_file(path: str) -> bool:
    """Returns whether a file names checkpoints; it may have been cut short."""
    lines = text_files.read_content(path).decode(errors="replace").split("\n")
    keys = (line.partition(":")[0].strip() for line in lines)
    return all(any(known.startswith(key) for known in _STATE_KEYS) for key in keys)


def _names(folder: str) -> list[str]:
    return tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []


def write_experiment(experiment: Experiment, folder: str) -> None:
    """Writes `experiment.json` beside the checkpoints, whole or not at all.

    Cut short, it would keep them from being trained further.
    """
    tf.io.gfile.makedirs(folder)
    write_text(experiment.to_json(), os.path.join(folder, EXPERIMENT_FILE))


def experiment_before(experiment: Experiment) -> Experiment | None:
    """Returns what the checkpoints of the `train_logdir` were trained with, if any.

    Args:
        experiment: What is asked for now; it stands for one that nobody wrote down.

    Raises:
        UserError: if they are of another model, naming what differs.
    """
    folder = experiment.train.train_logdir
    if not has_checkpoint(folder):
        return None
    before = read_experiment(folder) or experiment
    if before.model != experiment.model:
        old, new = map(dataclasses.asdict, (before.model, experiment.model))
        changed = [f"{k} was {old[k]} and is {new[k]}" for k in old if old[k] != new[k]]
        raise UserError(
            f"--train_logdir={folder} holds another model: {'; '.join(changed)}"
        )
    return before


def read_experiment(folder: str) -> Experiment | None:
    """Returns the `experiment.json` of a folder, None where there is none."""
    path = os.path.join(folder, EXPERIMENT_FILE)
    if not tf.io.gfile.exists(path):
        return None
    return Experiment.from_json(text_files.read_content(path), source=path)


def has_checkpoint(folder: str) -> bool:
    """Whether a folder holds a checkpoint, whole or not."""
    return bool(_prefixes(folder))
