"""Saves and restores the state of a training run.

Checkpoints store variables under their official names, so refactoring the code does not
invalidate old checkpoints.
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
from deeplab_tf.checkpoints.restore import is_model_variable
from deeplab_tf.checkpoints.tf1 import NAME
from deeplab_tf.errors import UserError
from deeplab_tf.files.locks import training_lock, verify_training_lock
from deeplab_tf.training import checkpoint_files
from deeplab_tf.training.checkpoint_files import BEST
from deeplab_tf.training.divergence import find_nonfinite

FORMAT_VERSION = 1
_KEPT = 5
# The flag that determines whether a group of variables exists.
_FLAGS = {
    "optimizer": "optimizer",
    AVERAGE_KEY: "ema_decay",
    "loss_scale": "precision",
}
# `save_counter` is from tf.train.CheckpointManager, which wrote our first checkpoints.
_IGNORED_KEYS = {GRAPH_KEY, to_key("save_counter")}


class TrainingState:
    """Saves and restores everything a training run needs to resume.

    Args:
        folder: The `train_logdir`.
        groups: Maps group names to variables by name; `MODEL_KEY` has the weights and
            moving statistics by official name. The names are part of the file format;
            empty groups are not saved.
        step: `iterations` of the optimiser.
        samples: Number of training samples consumed.
        is_chief: Whether this worker keeps its checkpoints. Other workers write to a
            scratch folder, because reading a variable may need every worker.
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
        """Restores the latest intact checkpoint; returns its prefix, or None.

        Skips damaged checkpoints with a warning on stderr.

        Raises:
            UserError: if the checkpoint does not match this model and optimiser, or all
                checkpoints are damaged.
        """
        damaged = []
        for prefix in reversed(checkpoint_files.list_prefixes(self.folder)):
            # Check the entire file first: a damaged one must not restore some values.
            reason = checkpoint_files.find_damage(prefix)
            if reason is None:
                for error in damaged:
                    warning = f"warning: {error}; resuming from the previous checkpoint"
                    print(warning, file=sys.stderr)
                self._require_match(prefix)
                self._checkpoint.read(prefix).expect_partial()
                return prefix
            damaged.append(f"{prefix} is damaged ({reason})")
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} is intact ({damaged[0]}); give "
                "a different --train_logdir"
            )
        return None

    def save(self) -> str:
        """Saves a checkpoint of the current step and keeps the newest five.

        If the process is killed, all earlier checkpoints stay intact, including one of
        the same step. Locks the folder unless this process already holds the lock.

        Returns:
            The prefix of the checkpoint, `<folder>/model.ckpt-<step>`.

        Raises:
            UserError: if it cannot be written, the weights are not finite, or the
                folder was removed or taken over by another training run.
        """
        return self._save(self.folder, _KEPT)

    def save_best(self) -> str:
        """Saves a checkpoint to `<folder>/best`, replacing the previous one there."""
        return self._save(os.path.join(self.folder, BEST), 1)

    def _save(self, folder: str, kept: int) -> str:
        """Saves a checkpoint to a folder, under its lock; returns the prefix."""
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
        """Writes a checkpoint; only the chief publishes it."""
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
        """Raises `UserError` for a checkpoint with a different model or optimiser."""
        reader = checkpoint_files.open_checkpoint(prefix)
        _require_format(reader, prefix)
        dtypes = reader.get_variable_to_dtype_map()
        saved = {
            key: f"{dtypes[key].name} of shape {list(shape)}"
            for key, shape in reader.get_variable_to_shape_map().items()
            if key not in _IGNORED_KEYS
        }
        current = {
            key: f"{variable.dtype.name} of shape {variable.shape.as_list()}"
            for key, variable in self._variables.items()
        }
        # The model's keys first: with a different model, slots and averages differ too.
        keys = sorted(
            current.keys() | saved.keys(), key=lambda k: (_group_of(k) != MODEL_KEY, k)
        )
        for key in keys:
            old, new = saved.get(key), current.get(key)
            if old != new:
                raise UserError(_describe_mismatch(prefix, key, old, new))


def _require_format(reader, prefix: str) -> None:
    """Raises `UserError` for a TF1 checkpoint, or a different format version."""
    if not reader.has_tensor(GRAPH_KEY):
        raise UserError(
            f"{prefix} is a TF1 checkpoint, whose training cannot be resumed; give it "
            "as --tf_initial_checkpoint, with a different --train_logdir"
        )
    key = to_key("format_version")
    version = int(reader.get_tensor(key)) if reader.has_tensor(key) else FORMAT_VERSION
    if version != FORMAT_VERSION:
        raise UserError(
            f"{prefix} has format version {version}, but this version of deeplab_tf "
            f"can only resume version {FORMAT_VERSION}; give a different --train_logdir"
        )


def _describe_mismatch(
    prefix: str, key: str, saved: str | None, current: str | None
) -> str:
    """Returns the error for a variable that differs from the checkpoint's."""
    name = "/".join(from_key(key)) or key
    remedy = "a different --train_logdir"
    is_range = not is_model_variable(name)
    flag = "quantize_delay_step" if is_range else _FLAGS.get(_group_of(key))
    if flag and None in (saved, current):
        remedy += f", or the same --{flag} as before"
    return (
        f"{prefix} does not match this model and optimiser; use {remedy}: {name} is "
        f"{saved or 'missing'} in the checkpoint, but {current or 'not in use'} here"
    )


def _group_of(key: str) -> str:
    return key.partition("/")[0]


def _tensorflow_variable(variable) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable
