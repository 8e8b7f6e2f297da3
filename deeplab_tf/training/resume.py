"""Claims a `train_logdir`, and reads and writes its `experiment.json`."""

import os
from operator import attrgetter

import tensorflow as tf

from deeplab_tf.config import EXPERIMENT_FILE, MODEL_FLAGS, Experiment, ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.results import METRICS_FILE
from deeplab_tf.files import outputs, text_files
from deeplab_tf.files.outputs import write_text
from deeplab_tf.training import checkpoint_files
from deeplab_tf.training.checkpoint_files import BEST
from deeplab_tf.training.curves import CURVES_FILE
from deeplab_tf.training.history import HISTORY_FILE
from deeplab_tf.training.trackers import TRACKER_FILE


def claim_folder(folder: str, overwrite: bool = False) -> None:
    """Checks that training would not replace files that it did not write.

    Raises:
        UserError: if it would, unless `overwrite` is set; names the first such file.
    """
    best = os.path.join(folder, BEST)
    names = (EXPERIMENT_FILE, METRICS_FILE, HISTORY_FILE, CURVES_FILE, TRACKER_FILE)
    for place in (folder, best) if tf.io.gfile.isdir(best) else (folder,):
        outputs.claim(place, names, overwrite)
        foreign = checkpoint_files.find_foreign_state_file(place)
        outputs.claim(place, foreign, overwrite)
    for prefix in () if overwrite else checkpoint_files.find_foreign_prefixes(best):
        raise UserError(
            f"{prefix} was not written by deeplab_tf, and the best checkpoint would "
            "replace it; give a different --train_logdir"
        )


def write_experiment(experiment: Experiment, folder: str) -> None:
    """Atomically writes `experiment.json`, which resuming needs intact."""
    tf.io.gfile.makedirs(folder)
    write_text(experiment.to_json(), os.path.join(folder, EXPERIMENT_FILE))


def read_previous_experiment(experiment: Experiment) -> Experiment | None:
    """Returns the experiment that the `train_logdir` was trained with, if any.

    Returns `experiment` itself if there are checkpoints but no `experiment.json`.

    Raises:
        UserError: if the model differs; names the differences.
    """
    folder = experiment.train.train_logdir
    if not checkpoint_files.list_prefixes(folder):
        return None
    previous = read_experiment(folder) or experiment
    if previous.model != experiment.model:
        changed = _list_changes(previous.model, experiment.model)
        raise UserError(
            f"--train_logdir={folder} has a different model: {'; '.join(changed)}; "
            "give the same model flags or a different --train_logdir"
        )
    return previous


def _list_changes(old: ModelConfig, new: ModelConfig) -> list[str]:
    """Describes the differences between two models by flag, if there is one."""
    paths = {f"--{name}": flag.path for name, flag in MODEL_FLAGS.items()}
    # They come from the dataset.
    paths |= {"num_classes": paths.pop("--num_classes"), "channels": "channels"}
    paths |= {"conventions": "conventions"}
    values = {n: [attrgetter(p)(m) for m in (old, new)] for n, p in paths.items()}
    return [f"{n} was {a} and is {b}" for n, (a, b) in values.items() if a != b]


def read_experiment(folder: str) -> Experiment | None:
    """Returns the `experiment.json` of a folder, or None."""
    path = os.path.join(folder, EXPERIMENT_FILE)
    if not tf.io.gfile.exists(path):
        return None
    return Experiment.from_json(text_files.read_content(path), source=path)
