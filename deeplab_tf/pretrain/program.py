r"""Pre-trains a backbone as a classifier; started again, it goes on where it was.

    python -m deeplab_tf.pretrain --dataset=tfds:imagenet2012 \
        --model_variant=xception_65 --train_logdir=imagenet \
        --training_number_of_steps=2000000
    python train.py --tf_initial_checkpoint=imagenet ...

The defaults are those of DeepLabv3+ (arXiv:1802.02611): Nesterov momentum 0.9, learning
rate 0.05 that decays by 0.94 every two epochs, weight decay 4e-5, crops of 299. The
paper does not tell the number of steps. At output stride 32, any Xception or ResNet.
"""

import contextlib
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
from deeplab_tf.errors import UserError
from deeplab_tf.files.locks import training_lock
from deeplab_tf.models.precision import use_precision
from deeplab_tf.models.variables import official_variables
from deeplab_tf.pretrain.classifier import build_classifier, require_classifier
from deeplab_tf.pretrain.data import (
    CENTRAL_SHARE,
    describe_samples,
    load_classes,
    open_classes,
)
from deeplab_tf.pretrain.scoring import ClassValidation
from deeplab_tf.training import distribution, resume
from deeplab_tf.training.batch_norm import resolve_batch_norm
from deeplab_tf.training.trainer import Trainer

_OUTPUT_STRIDE = 32
_NO_LABEL = -1  # every image has its class: none is ignored
# Fields of `TrainConfig` and `DataConfig` that are no fixed part of the recipe.
_TRAINING = (
    *("train_logdir", "training_number_of_steps", "base_learning_rate"),
    *("learning_rate_decay_factor", "momentum", "weight_decay", "log_steps"),
    *("save_interval_secs", "save_interval_steps", "eval_interval_steps"),
    *("accumulate_steps", "ema_decay", "recompute", "jit", "steps_per_call"),
)
_SAMPLES = ("dataset_dir", "crop_size", "batch_size", "seed")
_MODEL = ("backbone", "multi_grid", "depthwise_activation", "batch_norm_momentum")
_RECIPE = {
    "model_variant": "xception_65",
    "base_learning_rate": 0.05,
    "learning_rate_decay_factor": 0.94,
    "train_crop_size": "299,299",
    "train_batch_size": 32,
    # The paper tells none.
    "training_number_of_steps": None,
}
_REQUIRED = ["dataset", "train_logdir", "training_number_of_steps"]
_ENUMS = {
    "precision": (
        ["float32", "bfloat16", "float16"],
        "Of convolutions; weights, logits and losses are float32.",
    ),
    "batch_norm": (
        ["auto", "train", "sync"],
        "Normalise by the batch of a replica (train) or of all (sync).",
    ),
    "distribution_strategy": (
        list(distribution.STRATEGIES),
        "auto is the workers of TF_CONFIG, else all GPUs, else the CPU.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    string, boolean = absl_flags.DEFINE_string, absl_flags.DEFINE_boolean
    string(
        "dataset",
        None,
        "tfds:NAME[:image_key:label_key], such as tfds:imagenet2012.",
        flag_values=values,
    )
    string("tpu", None, "Name or address of a TPU.", flag_values=values)
    string("train_split", "train", "Split to train on.", flag_values=values)
    string("eval_split", "validation", "Split to score.", flag_values=values)
    absl_flags.DEFINE_float(
        "learning_rate_decay_epochs",
        2.0,
        "Epochs between two decays of the learning rate.",
        flag_values=values,
    )
    flags.define_options(values, TrainConfig, _TRAINING)
    flags.define_options(values, DataConfig, _SAMPLES)
    flags.define_options(values, ModelConfig, _MODEL)
    for name, (choices, text) in _ENUMS.items():
        absl_flags.DEFINE_enum(name, choices[0], choices, text, flag_values=values)
    absl_flags.DEFINE_integer(
        "num_clones", None, "Devices that train; default: all GPUs.", flag_values=values
    )
    boolean("clone_on_cpu", False, "Leave GPUs alone.", flag_values=values)
    boolean("deterministic", False, "The same weights every time.", flag_values=values)
    for name, value in _RECIPE.items():
        values.set_default(name, value)
    flags.define_overwrite(values)
    absl_flags.mark_flags_as_required(_REQUIRED, flag_values=values)
    return values


def _model_config(values: absl_flags.FlagValues, source: Source) -> ModelConfig:
    config = flags.read_options(
        values,
        ModelConfig,
        num_classes=source.info.num_classes,
        output_stride=_OUTPUT_STRIDE,
        channels=source.info.channels,
        # As far as a segmentation can be a classification.
        context=ContextConfig(rates=(), aspp=False),
        decoder=DecoderConfig(output_strides=()),
    )
    require_classifier(config)
    return config


def _train_config(values: absl_flags.FlagValues, data: DataConfig, images: int):
    """Returns how the flags train on that many images."""
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
        learning_rate_decay_step=max(1, round(epochs * images / data.batch_size)),
        ignore_label=_NO_LABEL,
    )
    # The last step is always scored, if any is.
    every = config.eval_interval_steps or config.training_number_of_steps
    return dataclasses.replace(config, eval_interval_steps=every)


def _experiment(values: absl_flags.FlagValues, source: Source) -> Experiment:
    """Returns everything that the flags say, checked as far as values go."""
    model = _model_config(values, source)
    data = flags.data_config(values, model, None)
    train = _train_config(values, data, len(source.index))
    return Experiment(model, data, train, values.train_split)


def _trainer(
    experiment: Experiment, values, strategy: tf.distribute.Strategy
) -> tuple[Trainer, Experiment]:
    """Returns the trainer, at its latest checkpoint, and the experiment as it is."""
    train, replicas = experiment.train, strategy.num_replicas_in_sync
    images = distribution.require_divisible(
        experiment.data.batch_size, replicas, train.accumulate_steps
    )
    resume.experiment_before(experiment)  # refuses another model
    tf.keras.utils.set_random_seed(experiment.data.seed)
    use_precision(values.precision)
    with strategy.scope():
        model = build_classifier(experiment.model)
    # None of them comes from a checkpoint.
    fresh = tuple(n for n in official_variables(model) if n.endswith("moving_mean"))
    resolved = resolve_batch_norm(values.batch_norm, images, replicas, fresh)
    print(f"batch normalisation: {resolved.policy} ({resolved.reason})")
    train = dataclasses.replace(train, batch_norm=resolved.policy)
    trainer = Trainer(model, train)
    latest = trainer.restore_latest()
    if latest:
        print(f"going on from {latest}")
    return trainer, dataclasses.replace(experiment, train=train)


def _validation(values, data: DataConfig) -> ClassValidation:
    """Returns what the model is scored on while it is trained."""
    split = values.eval_split
    open_classes(data.dataset, data.dataset_dir, split)

    def dataset(worker: int, num_workers: int) -> tf.data.Dataset:
        return load_classes(data, split, False, 0, worker, num_workers)

    protocol = {"split": split, "crop_size": data.crop_size}
    return ClassValidation(dataset, protocol | {"central_share": CENTRAL_SHARE})


def main(values: absl_flags.FlagValues) -> None:
    """Checks everything, then trains."""
    if values.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = distribution.make_strategy(
        values.distribution_strategy,
        values.num_clones,
        values.clone_on_cpu,
        values.tpu,
    )
    with distribution.lost_workers(distribution.worker_of(strategy)):
        _train(values, strategy)


def _train(values, strategy: tf.distribute.Strategy) -> None:
    source = open_classes(values.dataset, values.dataset_dir or "", values.train_split)
    experiment = _experiment(values, source)
    validation = _validation(values, experiment.data)
    is_chief = distribution.worker_of(strategy).is_chief
    folder = experiment.train.train_logdir
    # Before anything is read from the folder, or built.
    with training_lock(folder) if is_chief else contextlib.nullcontext():
        if is_chief:
            resume.claim_folder(folder, values.overwrite)
        trainer, experiment = _trainer(experiment, values, strategy)
        _run(values, trainer, experiment, validation, source)


def _run(
    values,
    trainer: Trainer,
    experiment: Experiment,
    validation: ClassValidation,
    source: Source,
) -> None:
    """Prints what trains, and trains."""
    strategy, data, split = trainer.strategy, experiment.data, experiment.split
    folder, worker = experiment.train.train_logdir, trainer.worker
    print(
        f"strategy: {type(strategy).__name__}, "
        f"replicas: {strategy.num_replicas_in_sync}, worker {worker.index + 1} of "
        f"{worker.count}; precision: {values.precision}; "
        f"jit: {'on' if trainer.compiles else 'off'}; {len(source.index)} images of "
        f"{source.info.num_classes} classes"
    )
    if worker.is_chief:
        resume.write_experiment(experiment, folder)

    def dataset(worker: int, num_workers: int) -> tf.data.Dataset:
        return load_classes(data, split, True, trainer.samples, worker, num_workers)

    def name_samples(start: int, count: int) -> str:
        return describe_samples(data, split, start, count)

    trainer.train(dataset, validation, source.info, name_samples)
    print(f"{folder}: {trainer.step} steps, model.ckpt-{trainer.step}")
