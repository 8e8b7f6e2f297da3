"""Training state on disk: `<train_logdir>/model.ckpt-<step>`, by official name."""

import os

import tensorflow as tf

from deeplab_tf.checkpoints.tf1 import MODEL_KEY, NAME
from deeplab_tf.config import Experiment
from deeplab_tf.errors import UserError

FORMAT_VERSION = 1
_KEPT = 5
_EXPERIMENT = "experiment.json"


class TrainingState:
    """Saves and restores what a training needs to go on.

    Args:
        folder: The `train_logdir`.
        weights: Official name to `keras.Variable`, moving statistics included.
        optimizer: Slot name to `keras.Variable`.
        step: The optimiser's `iterations`.
        samples: `tf.Variable` with the number of training samples consumed.
        seeds: Layer name to `keras.Variable`, which its next dropouts follow from.
    """

    def __init__(self, folder: str, weights, optimizer, step, samples, seeds=()):
        self.folder = folder
        self._step = step
        self._format_version = tf.Variable(FORMAT_VERSION)
        checkpoint = tf.train.Checkpoint(
            **{
                MODEL_KEY: _tensorflow_variables(weights),
                "optimizer": _tensorflow_variables(optimizer),
                "step": step.value,
                "samples": samples,
                "seeds": _tensorflow_variables(dict(seeds)),
                "format_version": self._format_version,
            }
        )
        self._checkpoint = checkpoint
        self._manager = tf.train.CheckpointManager(
            checkpoint, folder, max_to_keep=_KEPT, checkpoint_name=NAME
        )

    def restore_latest(self) -> str | None:
        """Restores the latest checkpoint of the folder and returns its prefix.

        Raises:
            UserError: if it does not belong to this model and optimiser.
        """
        latest = self._manager.latest_checkpoint
        if latest is None:
            return None
        # Made now and `expect_partial`: otherwise a refusal drags along a line of
        # TensorFlow's log for every value that was not restored.
        _ = self._checkpoint.save_counter
        try:
            # Both ways: nothing of the model is missing, nothing of the file left.
            self._checkpoint.restore(latest).expect_partial().assert_consumed()
        except (AssertionError, ValueError, IndexError, tf.errors.OpError) as error:
            raise UserError(
                f"{latest} cannot be resumed by this model and optimiser; give "
                f"another --train_logdir: {str(error).splitlines()[0]}"
            ) from error
        if self._format_version.numpy() != FORMAT_VERSION:
            raise UserError(
                f"{latest} has format version {self._format_version.numpy()}; this "
                f"deeplab_tf resumes {FORMAT_VERSION}"
            )
        return latest

    def save(self) -> str:
        """Writes a checkpoint of the present step and returns its prefix."""
        return self._manager.save(checkpoint_number=int(self._step.numpy()))


def _tensorflow_variables(variables) -> dict[str, tf.Variable]:
    return {name: variable.value for name, variable in variables.items()}


def write_experiment(experiment: Experiment, folder: str) -> None:
    """Writes `experiment.json` beside the checkpoints."""
    tf.io.gfile.makedirs(folder)
    with tf.io.gfile.GFile(os.path.join(folder, _EXPERIMENT), "w") as file:
        file.write(experiment.to_json())


def read_experiment(folder: str) -> Experiment | None:
    """Returns the `experiment.json` of a folder, None where there is none."""
    path = os.path.join(folder, _EXPERIMENT)
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path) as file:
        return Experiment.from_json(file.read(), source=path)
