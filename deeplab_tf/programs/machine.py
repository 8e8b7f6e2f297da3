"""Defines the flags for training devices, and claims the training folder."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf.data import sources
from deeplab_tf.files.locks import training_lock
from deeplab_tf.training import distribution, resume
from deeplab_tf.training.trainer import Trainer

# Flags that may differ between the workers of a training run.
_OWN_FLAGS = {"dataset_dir", "train_logdir", "tf_initial_checkpoint"}


def make_strategy(values: absl_flags.FlagValues, split: str) -> tf.distribute.Strategy:
    """Makes the strategy that the flags select; call this before any TensorFlow op.

    Several workers must have equal flags, and equal records of `split`.
    """
    if values.deterministic:
        tf.config.experimental.enable_op_determinism()

    def settings() -> dict[str, str]:
        folder = values.dataset_dir or ""
        records = sources.fingerprint_split(values.dataset, folder, split)
        shared = {f"--{n}": str(values[n].value) for n in values if n not in _OWN_FLAGS}
        return {"records": records} | shared

    return distribution.make_strategy(
        values.distribution_strategy,
        values.num_clones,
        values.clone_on_cpu,
        values.tpu,
        settings,
    )


def describe_machine(values: absl_flags.FlagValues, trainer: Trainer) -> str:
    """Returns a one-line summary of devices, precision and jit."""
    strategy, worker = trainer.strategy, trainer.worker
    return (
        f"strategy: {type(strategy).__name__.removeprefix('_')}, "
        f"replicas: {strategy.num_replicas_in_sync}, worker {worker.index + 1} of "
        f"{worker.count}; precision: {values.precision}; "
        f"jit: {'on' if trainer.compiles else 'off'}"
    )


@contextlib.contextmanager
def claim_logdir(folder: str, overwrite: bool, writes: bool) -> Iterator[None]:
    """Locks and claims a `train_logdir` before anything is read from it.

    Does nothing unless this process `writes` to the folder. `overwrite` permits
    replacing files that are not ours.
    """
    with training_lock(folder) if writes else contextlib.nullcontext():
        if writes:
            resume.claim_folder(folder, overwrite)
        yield
