r"""Trains a model on TFRecords; started again, it goes on where it was.

    python train.py --dataset_dir=tfrecord --train_logdir=logs \
        --model_variant=mobilenet_v2 --decoder_output_stride=4
"""

import dataclasses
import sys

import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.restore import last_layer_scopes
from deeplab_tf.config import DataConfig, Experiment, ModelConfig, TrainConfig
from deeplab_tf.data import doctor, sources, statistics
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.presets import Preset, report
from deeplab_tf.programs import run_program
from deeplab_tf.training import resume
from deeplab_tf.training.trainer import Trainer

FLAGS = absl_flags.FlagValues()
_TRAINING = {
    "train_logdir": "Folder of the checkpoints.",
    "training_number_of_steps": "Optimiser steps in all.",
    "optimizer": "momentum or adam.",
    "learning_policy": "poly or step.",
    "base_learning_rate": "Learning rate at step 0; 0.007 for VOC at batch 16.",
    "end_learning_rate": "Learning rate at the end of poly.",
    "learning_power": "Exponent of poly.",
    "decay_steps": "Length of poly; 0 is all steps.",
    "learning_rate_decay_factor": "Factor of the step policy.",
    "learning_rate_decay_step": "Steps between its decays.",
    "slow_start_step": "Steps at slow_start_learning_rate first.",
    "slow_start_learning_rate": "Learning rate of the slow start.",
    "momentum": "Momentum.",
    "adam_learning_rate": "Learning rate of Adam.",
    "adam_epsilon": "Epsilon of Adam.",
    "weight_decay": "L2 on convolution kernels; 1e-4 for ResNets.",
    "last_layer_gradient_multiplier": "Factor on gradients of the last layers.",
    "last_layers_contain_logits_only": "Whether these are the logits alone.",
    "fine_tune_batch_norm": "Batch statistics normalise; false for batches under 12.",
    "upsample_logits": "Loss at label resolution; false shrinks the labels.",
    "hard_example_mining_step": "Steps over which hard-pixel mining sets in.",
    "top_k_percent_pixels": "Share of the hardest pixels in the loss.",
    "label_weights": "One weight per class.",
    "tf_initial_checkpoint": "Checkpoint to start from, official or ours.",
    "initialize_last_layer": "Whether the last layers are taken from it.",
    "log_steps": "Steps between two reports.",
    "save_interval_secs": "Seconds between two checkpoints.",
    "save_interval_steps": "Steps between two checkpoints; 0 is by time only.",
}
_BATCH = {"crop_size": "Size of a training crop.", "batch_size": "Images per step."}
_AUGMENTATION = {
    "min_scale_factor": "Smallest random scale.",
    "max_scale_factor": "Largest random scale.",
    "scale_factor_step_size": "Distance of the random scales; 0 is continuous.",
    "photometric_jitter": "Ours: largest relative change of brightness, contrast and "
    "saturation.",
    "seed": "Seed of weights, order and augmentation.",
}


def _define() -> None:
    flags.define_model_flags(FLAGS, "train")
    flags.define_dataset_flags(FLAGS, "train_split", "train")
    flags.define_fields(FLAGS, TrainConfig, _TRAINING)
    flags.define_fields(FLAGS, DataConfig, _AUGMENTATION)
    flags.define_fields(FLAGS, DataConfig, _BATCH, prefix="train_")
    absl_flags.DEFINE_list(
        "bootstrap_classes",
        None,
        "Ours: images with one of these classes come twice an epoch; the paper's for "
        "VOC are bicycle,chair,diningtable,pottedplant,sofa.",
        flag_values=FLAGS,
    )
    absl_flags.DEFINE_enum(
        "class_weighting",
        "none",
        ["none", "median_frequency"],
        "Ours: label_weights from the pixel counts of the training split.",
        flag_values=FLAGS,
    )
    absl_flags.mark_flag_as_required("train_logdir", flag_values=FLAGS)


_define()


def _experiment(
    values: absl_flags.FlagValues, preset: Preset | None, source: sources.Source
) -> Experiment:
    """Returns everything that the flags say, checked as far as values go."""
    split = flags.split_value(values, "train_split", preset)
    info = source.info
    model = flags.model_config(
        values,
        preset and preset.model,
        num_classes=info.num_classes,
    )
    model = dataclasses.replace(model, channels=info.channels)
    base = preset and preset.data
    data = flags.data_config(
        values,
        model,
        base,
        dataset=info.name,
        **flags.field_values(values, _BATCH, base, prefix="train_"),
        **flags.field_values(values, _AUGMENTATION, base),
        bootstrap_classes=tuple(values.bootstrap_classes or ()),
    )
    statistics.class_ids(data.bootstrap_classes, info)
    train = TrainConfig(
        **flags.field_values(values, _TRAINING, preset and preset.train),
        ignore_label=info.ignore_label,
    )
    if train.fine_tune_batch_norm and data.batch_size == 1 and _pools_images(model):
        raise UserError(
            "train_batch_size=1 leaves the batch normalisation of image-level features "
            "a single value; use a larger batch or --fine_tune_batch_norm=false"
        )
    if values.class_weighting != "none" and train.label_weights:
        raise UserError(
            f"--class_weighting={values.class_weighting} and --label_weights exclude "
            "each other"
        )
    experiment = Experiment(model, data, train, split, info)
    if preset:
        print(_report(preset, experiment))
    return experiment


def _source(values, preset: Preset | None) -> sources.Source:
    """Returns the training records, and what their labels mean."""
    flags.require_dataset_dir(values.dataset, values.dataset_dir)
    folder = values.dataset_dir or ""
    fallback = flags.dataset_fallback(preset)
    info = sources.resolve_info(values.dataset, folder, fallback)
    split = flags.split_value(values, "train_split", preset)
    return sources.open_split(info.name, folder, split)


def _examined(values, experiment: Experiment, source: sources.Source) -> Experiment:
    """Returns the experiment with the label weights that `--class_weighting` means.

    Reads records, so that it comes behind what costs nothing to check.
    """
    for problem in doctor.check_quickly(source, experiment.split):
        if problem.kind == "unlikely":
            what = doctor.WARNINGS[problem.kind]
            print(f"warning: {what}: {problem.text}", file=sys.stderr)
    if values.class_weighting == "none":
        return experiment
    weights = statistics.class_weights(source, experiment.split)
    print(f"label_weights: {', '.join(f'{w:.4g}' for w in weights)}")
    train = dataclasses.replace(experiment.train, label_weights=weights)
    return dataclasses.replace(experiment, train=train)


def _report(preset: Preset, experiment: Experiment) -> str:
    """Returns the recipe of a preset, and where this training leaves it."""
    parts = [
        (preset.model, experiment.model),
        (preset.data, experiment.data),
        (preset.train, experiment.train),
    ]
    checkpoint = experiment.train.tf_initial_checkpoint
    scratch = "scratch (no tf_initial_checkpoint)"
    needless = checkpoint or preset.start == "scratch"
    start = preset.start if needless else scratch
    return report(preset, parts, train_split=experiment.split, start=start)


def _pools_images(model: ModelConfig) -> bool:
    """Whether a batch normalisation sees one value for each image."""
    context = model.context
    if context.dense_prediction_cell:
        return any(
            branch.op == "pyramid_pooling" and branch.grid_size == (1, 1)
            for branch in context.dense_prediction_cell
        )
    gated = context.squeeze_and_excitation
    return context.aspp and context.image_level and not gated


def _initialize(trainer: Trainer, config: TrainConfig) -> None:
    """Takes weights from the latest checkpoint, else from the initial one."""
    latest = trainer.restore_latest()
    if latest:
        print(f"going on from {latest}; tf_initial_checkpoint is not read")
    elif config.tf_initial_checkpoint:
        excluded = ()
        if not config.initialize_last_layer:
            excluded = last_layer_scopes(config.last_layers_contain_logits_only)
        report = tf1.load_tf1_checkpoint(
            trainer.model, config.tf_initial_checkpoint, excluded
        )
        print(f"{config.tf_initial_checkpoint}: {report}")
        fresh = [n for n in report.missing if n.endswith("moving_mean")]
        if fresh and not config.fine_tune_batch_norm:
            print(
                f"warning: fine_tune_batch_norm=false freezes {len(fresh)} batch "
                f"normalisations that the checkpoint lacks ({fresh[0]}, ...); their "
                "moving statistics were never trained"
            )


def _require_same_model(model: ModelConfig, folder: str) -> None:
    if tf.train.latest_checkpoint(folder) is None:
        return
    before = resume.read_experiment(folder)
    if before is not None and before.model != model:
        old, new = dataclasses.asdict(before.model), dataclasses.asdict(model)
        changed = [f"{k} was {old[k]} and is {new[k]}" for k in old if old[k] != new[k]]
        raise UserError(
            f"--train_logdir={folder} holds another model: {'; '.join(changed)}"
        )


def main(values: absl_flags.FlagValues) -> None:
    """Checks everything, then trains."""
    flags.check_flags(values, "train")
    preset = flags.chosen_preset(values)
    source = _source(values, preset)
    experiment = _experiment(values, preset, source)
    _require_same_model(experiment.model, experiment.train.train_logdir)
    if experiment.train.tf_initial_checkpoint:
        tf1.resolve(experiment.train.tf_initial_checkpoint)
    experiment = _examined(values, experiment, source)
    config = experiment.train
    tf.keras.utils.set_random_seed(experiment.data.seed)
    trainer = Trainer(build_model(experiment.model), config)
    _initialize(trainer, config)
    resume.write_experiment(experiment, config.train_logdir)
    devices = [d.name for d in tf.config.list_logical_devices()]
    print(f"devices: {', '.join(devices)}; precision: float32; jit: off")
    dataset = load_dataset(
        experiment.data, experiment.split, training=True, start=trainer.samples
    )
    trainer.train(dataset)
    print(f"{config.train_logdir}: {trainer.step} steps, model.ckpt-{trainer.step}")


def run() -> None:
    """Console entry."""
    run_program(main, FLAGS)
