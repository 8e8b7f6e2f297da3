"""Trains a classifier with the flags of deeplab-pretrain."""

import dataclasses
import math

import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import (
    ContextConfig,
    DataConfig,
    DecoderConfig,
    Experiment,
    ModelConfig,
    TrainConfig,
)
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.pretrain.classifier import build_classifier, require_classifier
from deeplab_tf.pretrain.data import (
    CENTRAL_SHARE,
    describe_samples,
    load_classified_images,
    open_classified_images,
)
from deeplab_tf.pretrain.scoring import ClassValidation
from deeplab_tf.programs import suggest_commands
from deeplab_tf.programs.machine import (
    claim_logdir,
    describe_machine,
    make_strategy,
)
from deeplab_tf.training import distribution, resume
from deeplab_tf.training.preparation import find_start, prepare_trainer
from deeplab_tf.training.trainer import Trainer

_OUTPUT_STRIDE = 32
_NO_LABEL = -1  # every image has its class: none is ignored


def _read_model_config(values: absl_flags.FlagValues, source: Source) -> ModelConfig:
    """Returns the config of a classifier for the classes of the dataset."""
    config = flags.read_options(
        values,
        ModelConfig,
        num_classes=source.info.num_classes,
        output_stride=_OUTPUT_STRIDE,
        channels=source.info.channels,
        # Classification needs neither context nor decoder.
        context=ContextConfig(rates=(), aspp=False),
        decoder=DecoderConfig(output_strides=()),
    )
    require_classifier(config)
    return config


def _read_train_config(
    values: absl_flags.FlagValues, data: DataConfig, num_images: int
):
    """Returns the config of training, with epochs of the schedule as steps."""
    epochs = values.learning_rate_decay_epochs
    if not 0 < epochs < math.inf:
        raise UserError(
            "learning_rate_decay_epochs must be a finite number above 0; received "
            f"{epochs}"
        )
    config = flags.read_options(
        values,
        TrainConfig,
        optimizer="nesterov",
        learning_policy="step",
        learning_rate_decay_step=max(1, round(epochs * num_images / data.batch_size)),
        ignore_label=_NO_LABEL,
    )
    # The last step is always scored.
    every = config.eval_interval_steps or config.training_number_of_steps
    return dataclasses.replace(config, eval_interval_steps=every)


def _read_experiment(values: absl_flags.FlagValues, source: Source) -> Experiment:
    model = _read_model_config(values, source)
    data = flags.read_data_config(values, model, None)
    train = _read_train_config(values, data, len(source.index))
    return Experiment(model, data, train, values.train_split)


def _make_validation(values, data: DataConfig) -> ClassValidation:
    """Returns the settings for scoring on `--eval_split`, after opening it."""
    split = values.eval_split
    open_classified_images(data.dataset, data.dataset_dir, split)

    def dataset(worker: int, num_workers: int) -> tf.data.Dataset:
        return load_classified_images(data, split, False, 0, worker, num_workers)

    protocol = {"split": split, "crop_size": data.crop_size}
    return ClassValidation(dataset, protocol | {"central_share": CENTRAL_SHARE})


def main(values: absl_flags.FlagValues) -> None:
    """Checks all flags and data, then trains."""
    strategy = make_strategy(values, values.train_split)
    with distribution.report_lost_workers(distribution.current_worker(strategy)):
        _train(values, strategy)


def _train(values, strategy: tf.distribute.Strategy) -> None:
    """Claims `--train_logdir`, creates or resumes a trainer, and trains."""
    source = open_classified_images(
        values.dataset, values.dataset_dir or "", values.train_split
    )
    experiment = _read_experiment(values, source)
    validation = _make_validation(values, experiment.data)
    worker = distribution.current_worker(strategy)
    folder = experiment.train.train_logdir
    with claim_logdir(folder, values.overwrite, worker.is_chief):
        replicas = strategy.num_replicas_in_sync
        start = find_start(experiment, values.batch_norm, replicas, worker.count)
        trainer, experiment, latest = prepare_trainer(
            experiment, start, strategy, values.precision, build_classifier
        )
        if latest:
            print(f"resuming from {latest}")
        _run_training(values, trainer, experiment, validation, source)


def _run_training(
    values,
    trainer: Trainer,
    experiment: Experiment,
    validation: ClassValidation,
    source: Source,
) -> None:
    """Saves the settings, trains, and prints the result and the next command."""
    data, split = experiment.data, experiment.split
    folder, worker = experiment.train.train_logdir, trainer.worker
    print(
        f"{describe_machine(values, trainer)}; {len(source.index)} images of "
        f"{source.info.num_classes} classes"
    )
    if worker.is_chief:
        resume.write_experiment(experiment, folder)

    def dataset(worker: int, num_workers: int) -> tf.data.Dataset:
        return load_classified_images(
            data, split, True, trainer.samples, worker, num_workers
        )

    def describe(start: int, count: int) -> str:
        return describe_samples(data, split, start, count)

    trainer.train(dataset, validation, source.info, describe)
    print(f"{folder}: {pluralize(trainer.step, 'step(s)')}, model.ckpt-{trainer.step}")
    if worker.is_chief:
        start = f"--tf_initial_checkpoint={folder}"
        suggest_commands(
            [("train", start, "--dataset_dir=DIR", "--train_logdir=LOGDIR")]
        )
