"""Loads the model that eval.py or vis.py runs, and finds its dataset."""

import itertools
import os
from collections.abc import Collection, Iterator
from typing import NamedTuple

import keras
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.following import follow_checkpoints
from deeplab_tf.config import DataConfig, Experiment
from deeplab_tf.data import sources
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.programs.checkpoint import (
    require_channels,
    require_classes,
    require_no_model_flags,
    restore_model,
)
from deeplab_tf.serving.artefact import Artefact
from deeplab_tf.serving.formats import load_artefact
from deeplab_tf.training.resume import read_experiment

_OFFICIAL_INTERVAL = 300  # seconds between two searches for a checkpoint


class Records(NamedTuple):
    """The folder of the records, and the description of their dataset."""

    folder: str
    info: DatasetInfo


def _find_records(
    values: absl_flags.FlagValues, trained_on: DataConfig | None, fallback: str | None
) -> Records:
    """Finds the dataset: without flags, the one that the model was `trained_on`.

    `fallback` names the dataset where neither flags nor records do.
    """
    dataset, dataset_dir = values.dataset, values.dataset_dir
    if dataset is None and dataset_dir is None and trained_on:
        dataset, dataset_dir = trained_on.dataset, trained_on.dataset_dir
    flags.require_dataset_dir(dataset, dataset_dir)
    preset = flags.read_preset(values)
    fallback = fallback or flags.default_dataset(preset)
    info = sources.resolve_info(dataset, dataset_dir or "", fallback)
    return Records(dataset_dir or "", info)


def load_exported_model(
    values: absl_flags.FlagValues, path: str, others: Collection[str]
) -> tuple[Artefact, Records]:
    """Loads an exported model and finds its dataset.

    Raises:
        UserError: for flags of a model or of `others`, which do not affect an export,
            or if classes or channels differ.
    """
    require_no_model_flags(values, path, others)
    artefact = load_artefact(path)
    records = _find_records(values, None, artefact.info and artefact.info.name)
    if artefact.num_classes is None:
        artefact.num_classes = records.info.num_classes
    channels = artefact.channels or records.info.channels
    require_classes(records.info, artefact.num_classes, channels, path)
    return artefact, records


def find_records(
    values: absl_flags.FlagValues, checkpoint: tf1.Checkpoint
) -> tuple[Records, Experiment | None]:
    """Returns the records to run on, and the checkpoint's experiment, if known."""
    # A `.keras` file describes its model itself.
    folder = os.path.dirname(checkpoint.prefix)
    experiment = None if checkpoint.config else read_experiment(folder)
    trained_on = experiment and experiment.data
    fallback = trained_on and trained_on.dataset
    return _find_records(values, trained_on, fallback), experiment


def load_model(
    values: absl_flags.FlagValues, checkpoint: tf1.Checkpoint, info: DatasetInfo
) -> keras.Model:
    """Loads the model of a checkpoint.

    Raises:
        UserError: if it does not fit the checkpoint or the dataset.
    """
    model = restore_model(values, checkpoint, info.num_classes)
    require_channels(model, info.channels, f"the records of {info.name}")
    return model


def list_checkpoints(
    values: absl_flags.FlagValues, limit: int
) -> Iterator[tf1.Checkpoint]:
    """Yields the checkpoint of --checkpoint_dir, or each new one as it appears.

    Checkpoints are in memory, because a training run may delete their files.
    `limit` is the number of checkpoints to wait for; 0 never stops.
    """
    path, seconds = values.checkpoint_dir, values.eval_interval_secs
    if seconds is None and limit > 1:
        seconds = _OFFICIAL_INTERVAL
    if seconds is None or limit == 1:
        yield tf1.read_checkpoint(path)
    else:
        yield from itertools.islice(follow_checkpoints(path, seconds), limit or None)
