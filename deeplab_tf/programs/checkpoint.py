"""Builds a model from flags, a checkpoint and its `experiment.json`."""

import os
from collections.abc import Iterable

import keras
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.keras_file import is_keras_file
from deeplab_tf.checkpoints.pytorch.weights import is_torch_file
from deeplab_tf.checkpoints.restore import (
    class_count,
    has_quantization_ranges,
    load_tf1_variables,
    quantize_with_ranges,
    require_complete,
)
from deeplab_tf.config import Experiment, ModelConfig
from deeplab_tf.data.info import DatasetInfo, dataset_info, generic_info
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.precision import use_precision
from deeplab_tf.training.resume import read_experiment


def find_experiment(checkpoint: str) -> Experiment | None:
    """Returns the `experiment.json` of a checkpoint; None for an official one.

    Neither has a `.keras` file, which describes its model itself, nor have weights of
    PyTorch, whose names do.
    """
    if is_keras_file(checkpoint) or is_torch_file(checkpoint):
        return None
    return read_experiment(os.path.dirname(tf1.find_checkpoint(checkpoint)))


def resolve_class_info(
    dataset: str | None, stored: DatasetInfo | None, num_classes: int
) -> DatasetInfo:
    """Returns names and colours for the classes of a model.

    They come from `dataset` (the flag) if given, else from `stored` (saved with the
    model), else from PASCAL VOC if it has as many classes; otherwise, they are generic.

    Raises:
        UserError: if the dataset has a different number of classes.
    """
    if dataset is None:
        voc = dataset_info("pascal_voc_seg")
        fallback = voc if voc.num_classes == num_classes else generic_info(num_classes)
        return stored or fallback
    info = dataset_info(dataset)
    if info.num_classes != num_classes:
        raise UserError(
            f"--dataset={dataset} has {info.num_classes} classes, but the model has "
            f"{num_classes}"
        )
    return info


def _find_base_config(
    values: absl_flags.FlagValues, checkpoint: tf1.Checkpoint
) -> tuple[ModelConfig | None, str]:
    """Returns the model config that flags override, and its name for notes.

    A preset has no name here: the programs report deviations from it themselves.
    """
    preset = flags.read_preset(values)
    if preset:
        return preset.eval_model, ""
    if checkpoint.config:
        return checkpoint.config, checkpoint.prefix
    experiment = find_experiment(checkpoint.prefix)
    return experiment and experiment.model, "experiment.json"


def require_no_model_flags(
    values: absl_flags.FlagValues, path: str, others: Iterable[str] = ()
) -> None:
    """Raises UserError for model flags and `others`, which do not affect an export."""
    for name in (*flags.MODEL_FLAGS, "preset", "precision", *others):
        if name in values and values[name].present:
            raise UserError(f"--{name} has no effect on {path}, an exported model")


def require_classes(
    info: DatasetInfo, num_classes: int, channels: int, model: str
) -> None:
    """Raises UserError if the classes or channels of model and dataset differ.

    `model` names the model in the error.
    """
    if (num_classes, channels) != (info.num_classes, info.channels):
        raise UserError(
            f"{model} has {num_classes} classes and {channels} channels, but "
            f"{info.name} has {info.num_classes} and {info.channels}"
        )


def require_channels(model: keras.Model, channels: int, images: str) -> None:
    """Raises UserError if the model takes a different number of channels.

    `images` names the images in the error, in the plural.
    """
    expected = model.model_config.channels
    if expected != channels:
        raise UserError(
            f"the model takes images with {expected} channels, but {images} have "
            f"{channels}"
        )


def restore_model(
    values: absl_flags.FlagValues,
    checkpoint: str | tf1.Checkpoint,
    num_classes: int | None = None,
    may_quantize: bool = True,
) -> keras.Model:
    """Returns the model of a checkpoint, with every variable restored.

    Args:
        values: Parsed flags of a program.
        checkpoint: Prefix or folder, official or ours, or a `.keras` file; or a
            checkpoint already read.
        num_classes: Number of classes; None uses that of the checkpoint.
        may_quantize: Whether the model of a quantisation-aware checkpoint is quantised
            if no flag decides.

    Raises:
        UserError: if the checkpoint does not exist or has a different model.
    """
    if isinstance(checkpoint, str):
        checkpoint = tf1.read_checkpoint(checkpoint)
    prefix, arrays = checkpoint.prefix, checkpoint.arrays
    base, source = _find_base_config(values, checkpoint)
    if num_classes is None:
        num_classes = class_count(arrays)
    config = flags.read_model_config(values, base, source, num_classes)
    use_precision(values.precision)
    model = build_model(config)
    report = load_tf1_variables(model, arrays, source=prefix)
    require_complete(report, prefix, model)
    delay = values.quantize_delay_step
    if delay is None:
        delay = 0 if may_quantize and has_quantization_ranges(arrays) else -1
    if delay < 0:
        return model
    if values.precision != "float32":
        raise UserError(
            f"{prefix} is quantised, which needs --precision=float32 (received "
            f"{values.precision}) or --quantize_delay_step=-1"
        )
    return quantize_with_ranges(model, arrays, prefix)
