"""The model that flags, checkpoint and `experiment.json` describe together."""

import os
from collections.abc import Iterable

import keras
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.restore import (
    class_count,
    load_tf1_variables,
    require_complete,
)
from deeplab_tf.config import Experiment
from deeplab_tf.data.info import DatasetInfo, dataset_info, generic_info
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.precision import use_precision
from deeplab_tf.training.resume import read_experiment


def experiment_of(checkpoint: str) -> Experiment | None:
    """Returns the `experiment.json` next to a checkpoint, if it is one of ours."""
    return read_experiment(os.path.dirname(tf1.find_checkpoint(checkpoint)))


def named_classes(
    dataset: str | None, known: DatasetInfo | None, num_classes: int
) -> DatasetInfo:
    """Returns names and colours for the classes of a model.

    Args:
        dataset: Value of `--dataset`; None where it was not given.
        known: The classes stored with the model, if any.
        num_classes: Number of classes of the model.

    Raises:
        UserError: if the dataset has another number of classes.
    """
    if dataset is None:
        voc = dataset_info("pascal_voc_seg")
        fallback = voc if voc.num_classes == num_classes else generic_info(num_classes)
        return known or fallback
    info = dataset_info(dataset)
    if info.num_classes != num_classes:
        raise UserError(
            f"--dataset={dataset} has {info.num_classes} classes, but the model has "
            f"{num_classes}"
        )
    return info


def _described(values: absl_flags.FlagValues, prefix: str):
    """Returns the model of the preset or the `experiment.json`, and the source's name.

    A preset has no name here: the programs report the deviations from it.
    """
    preset = flags.chosen_preset(values)
    if preset:
        return preset.eval_model, ""
    experiment = experiment_of(prefix)
    return experiment and experiment.model, "experiment.json"


def require_no_model_flags(
    values: absl_flags.FlagValues, path: str, others: Iterable[str] = ()
) -> None:
    """Refuses flags of the model, which have no effect on an exported one.

    Args:
        values: Parsed flags of a program.
        path: Path of the artefact.
        others: Names of more flags to refuse.

    Raises:
        UserError: naming the first of them that was given.
    """
    for name in (*flags.MODEL_FLAGS, "preset", "precision", *others):
        if name in values and values[name].present:
            raise UserError(f"--{name} has no effect on {path}, which is exported")


def require_classes(
    info: DatasetInfo, num_classes: int, channels: int, model: str
) -> None:
    """Refuses a model whose classes or channels are not the dataset's.

    Args:
        info: The dataset.
        num_classes: Number of classes of the model.
        channels: Channels of its images.
        model: Name of the model, for the error.

    Raises:
        UserError: naming both.
    """
    if (num_classes, channels) != (info.num_classes, info.channels):
        raise UserError(
            f"{model} is of {num_classes} classes and {channels} channels, but "
            f"{info.name} has {info.num_classes} and {info.channels}"
        )


def require_channels(model: keras.Model, channels: int, images: str) -> None:
    """Refuses a model whose images have other channels.

    Args:
        model: The model.
        channels: Channels of the images.
        images: Name of the images, for the error.

    Raises:
        UserError: naming both.
    """
    wanted = model.model_config.channels
    if wanted != channels:
        raise UserError(
            f"the model takes images of {wanted} channels, but {images} have {channels}"
        )


def restore_model(
    values: absl_flags.FlagValues,
    checkpoint: str | tf1.Checkpoint,
    num_classes: int | None = None,
) -> keras.Model:
    """Returns the model of a checkpoint, with every variable restored.

    Args:
        values: Parsed flags of a program.
        checkpoint: Prefix or folder, official or ours; or its content.
        num_classes: Number of classes of the data; None takes the checkpoint's.

    Raises:
        UserError: if there is no such checkpoint or it holds another model.
    """
    if isinstance(checkpoint, str):
        checkpoint = tf1.read_checkpoint(checkpoint)
    prefix, arrays = checkpoint.prefix, checkpoint.arrays
    base, source = _described(values, prefix)
    if num_classes is None:
        num_classes = class_count(arrays)
    config = flags.model_config(values, base, source, num_classes)
    use_precision(values.precision)
    model = build_model(config)
    report = load_tf1_variables(model, arrays, source=prefix)
    require_complete(report, prefix, model)
    return model
