"""The devices of a training, and the folder that one of its workers writes."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.files.locks import training_lock
from deeplab_tf.training import distribution, resume
from deeplab_tf.training.trainer import Trainer

_FLAGS = {
    "distribution_strategy": (
        *(flags.one_of(*distribution.STRATEGIES), "auto"),
        "Ours: auto is the workers of TF_CONFIG, else all GPUs, else the CPU.",
    ),
    "num_clones": (
        *(flags.INTEGER, None),
        "Devices that train; default: all GPUs. On CPU as many logical devices.",
    ),
    "clone_on_cpu": (flags.BOOLEAN, False, "Leave GPUs alone."),
    "tpu": (flags.STRING, None, "Ours: name or address of a TPU."),
    "deterministic": (
        *(flags.BOOLEAN, False),
        "Ours: the same weights, to the last bit, every time.",
    ),
}


def define_machine(values: absl_flags.FlagValues) -> None:
    """Defines the flags of the devices that train."""
    flags.define_flags(values, _FLAGS)


def make_strategy(values: absl_flags.FlagValues) -> tf.distribute.Strategy:
    """Returns the strategy of the flags, before TensorFlow uses any device."""
    if values.deterministic:
        tf.config.experimental.enable_op_determinism()
    return distribution.make_strategy(
        values.distribution_strategy, values.num_clones, values.clone_on_cpu, values.tpu
    )


def describe_machine(values: absl_flags.FlagValues, trainer: Trainer) -> str:
    """Returns strategy, replicas, worker, precision and jit of a training."""
    strategy, worker = trainer.strategy, trainer.worker
    return (
        f"strategy: {type(strategy).__name__}, "
        f"replicas: {strategy.num_replicas_in_sync}, worker {worker.index + 1} of "
        f"{worker.count}; precision: {values.precision}; "
        f"jit: {'on' if trainer.compiles else 'off'}"
    )


@contextlib.contextmanager
def claimed_logdir(folder: str, overwrite: bool, writes: bool) -> Iterator[None]:
    """Locks and claims a `train_logdir`, before anything is read from it.

    Args:
        folder: The folder.
        overwrite: Whether to replace files that we did not write.
        writes: Whether this process writes to it; others do nothing.
    """
    with training_lock(folder) if writes else contextlib.nullcontext():
        if writes:
            resume.claim_folder(folder, overwrite)
        yield
