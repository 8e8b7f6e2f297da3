"""The state of a training, as checkpoints save and restore it.

Variables have their official names there, so that no refactoring orphans a checkpoint.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext

import keras
import tensorflow as tf

from deeplab_tf.checkpoints.keys import (
    AVERAGE_KEY,
    GRAPH_KEY,
    MODEL_KEY,
    from_key,
    to_key,
)
from deeplab_tf.checkpoints.tf1 import NAME
from deeplab_tf.errors import UserError
from deeplab_tf.files.locks import training_lock, verify_training_lock
from deeplab_tf.training import checkpoint_files
from deeplab_tf.training.checkpoint_files import BEST
from deeplab_tf.training.divergence import find_nonfinite

FORMAT_VERSION = 1
_KEPT = 5
# The flag that decides whether a group of variables exists.
_FLAGS = {
    "optimizer": "optimizer",
    AVERAGE_KEY: "ema_decay",
    "loss_scale": "precision",
}
# Counts the saves of tf.train.CheckpointManager, which wrote our first checkpoints.
_NOT_OURS = {GRAPH_KEY, to_key("save_counter")}


class TrainingState:
    """Saves and restores what a training needs to resume.

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
        """Restores the latest intact checkpoint of the folder.

        Damaged ones are skipped with a warning on stderr.

        Returns:
            The prefix of the checkpoint; None if there is no checkpoint.

        Raises:
            UserError: if it does not belong to this model and optimiser, or if
                every checkpoint is damaged.
        """
        damaged = []
        for prefix in reversed(checkpoint_files.list_prefixes(self.folder)):
            # All of it is read before anything is restored, so that nothing of a
            # damaged file is left among the values of the one before.
            reason = checkpoint_files.find_damage(prefix)
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
                self._write(name, folder, kept)
            except checkpoint_files.UNWRITABLE as error:
                verify_training_lock(self.folder)
                reason = checkpoint_files.describe_write_error(error)
                intact = checkpoint_files.describe_latest_intact(self.folder)
                raise UserError(
                    f"could not save {name} in {folder}: {reason}; {intact}"
                ) from error
        return os.path.join(folder, name)

    def _write(self, name: str, folder: str, kept: int) -> None:
        """Writes a checkpoint; only that of the chief is kept."""
        if self._is_chief:
            write = self._checkpoint.write
            checkpoint_files.publish(write, name, folder, self.folder, kept)
            return
        with tempfile.TemporaryDirectory() as scratch:
            self._checkpoint.write(os.path.join(scratch, name))

    def _require_finite(self, step: int) -> None:
        name = find_nonfinite(self._weights)
        if name is not None:
            raise UserError(
                f"the weights are no longer finite at step {step} (first: {name}); "
                "nothing was saved"
            )

    def _require_match(self, prefix: str) -> None:
        """Refuses an intact checkpoint of another format, model or optimiser."""
        reader = checkpoint_files.open_checkpoint(prefix)
        _require_format(reader, prefix)
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


def _require_format(reader, prefix: str) -> None:
    """Refuses a checkpoint of TF1, or of another version of this format."""
    if not reader.has_tensor(GRAPH_KEY):
        raise UserError(
            f"{prefix} is a checkpoint of TF1, whose training does not go on here; "
            "give it as --tf_initial_checkpoint, with another --train_logdir"
        )
    key = to_key("format_version")
    version = int(reader.get_tensor(key)) if reader.has_tensor(key) else FORMAT_VERSION
    if version != FORMAT_VERSION:
        raise UserError(
            f"{prefix} has format version {version}; this deeplab_tf resumes "
            f"{FORMAT_VERSION}"
        )


def _mismatch(prefix: str, key: str, there: str | None, here: str | None) -> str:
    """Names the value in which a checkpoint differs from this training."""
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
