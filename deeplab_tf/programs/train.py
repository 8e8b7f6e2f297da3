r"""Trains a model on TFRecords; started again, it goes on where it was.

    python train.py --dataset_dir=tfrecord --train_logdir=logs \
        --model_variant=mobilenet_v2 --decoder_output_stride=4
"""

import contextlib
import dataclasses
import sys
from typing import NamedTuple

import keras
import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.pretrained import find_weights
from deeplab_tf.checkpoints.restore import last_layer_scopes
from deeplab_tf.config import DataConfig, EvalConfig, Experiment, TrainConfig
from deeplab_tf.data import sources, statistics, validation
from deeplab_tf.data.pipeline import describe_samples, load_dataset
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError
from deeplab_tf.files.locks import training_lock
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.precision import use_precision
from deeplab_tf.models.variables import official_variables
from deeplab_tf.presets import Preset, is_followed, report
from deeplab_tf.training import distribution, resume, sanity
from deeplab_tf.training.batch_norm import Resolved, resolve_batch_norm
from deeplab_tf.training.reporter import Validation
from deeplab_tf.training.trainer import Trainer

# Fields of `DataConfig` that only a training has.
_SAMPLES = (
    *("crop_size", "batch_size", "min_scale_factor", "max_scale_factor"),
    *("scale_factor_step_size", "photometric_jitter", "bootstrap_classes", "seed"),
)


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    flags.define_model_flags(values, "train")
    flags.define_dataset_flags(values, "train_split", "train")
    flags.define_options(values, TrainConfig)
    flags.define_options(values, DataConfig, _SAMPLES)
    absl_flags.DEFINE_enum(
        "class_weighting",
        "none",
        ["none", "median_frequency"],
        "Ours: label_weights from the pixel counts of the training split.",
        flag_values=values,
    )
    _define_machine(values)
    flags.define_overwrite(values)
    absl_flags.mark_flag_as_required("train_logdir", flag_values=values)
    return values


def _define_machine(values: absl_flags.FlagValues) -> None:
    boolean, string = absl_flags.DEFINE_boolean, absl_flags.DEFINE_string
    string("eval_split", "val", "Ours: split of evaluations.", flag_values=values)
    absl_flags.DEFINE_enum(
        "distribution_strategy",
        "auto",
        list(distribution.STRATEGIES),
        "Ours: auto is the workers of TF_CONFIG, else all GPUs, else the CPU.",
        flag_values=values,
    )
    absl_flags.DEFINE_integer(
        "num_clones",
        None,
        "Devices that train; default: all GPUs. On CPU as many logical devices.",
        flag_values=values,
    )
    boolean("clone_on_cpu", False, "Leave GPUs alone.", flag_values=values)
    string("tpu", None, "Ours: name or address of a TPU.", flag_values=values)
    boolean(
        "deterministic",
        False,
        "Ours: the same weights, to the last bit, every time.",
        flag_values=values,
    )
    boolean(
        "sanity_overfit",
        False,
        "Ours: overfit one batch, say whether model, labels and loss fit, and end.",
        flag_values=values,
    )


def _experiment(
    values: absl_flags.FlagValues, preset: Preset | None, source: Source
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
    data = flags.data_config(values, model, preset and preset.data, dataset=info.name)
    statistics.class_ids(data.bootstrap_classes, info)
    train = flags.read_options(
        values, TrainConfig, preset and preset.train, ignore_label=info.ignore_label
    )
    if values.class_weighting != "none" and train.label_weights:
        raise UserError(
            f"--class_weighting={values.class_weighting} and --label_weights exclude "
            "each other"
        )
    experiment = Experiment(model, data, train, split, info)
    if preset:
        parts, others = _beside(preset, experiment)
        print(report(preset, parts, **others))
    return experiment


def _source(values, preset: Preset | None) -> Source:
    """Returns the training records, and what their labels mean."""
    flags.require_dataset_dir(values.dataset, values.dataset_dir)
    folder = values.dataset_dir or ""
    fallback = flags.dataset_fallback(preset)
    info = sources.resolve_info(values.dataset, folder, fallback)
    split = flags.split_value(values, "train_split", preset)
    return sources.open_split(info.name, folder, split)


def _examined(values, experiment: Experiment, source: Source) -> Experiment:
    """Returns the experiment with the label weights that `--class_weighting` means.

    Reads records, so that it comes behind what costs nothing to check.
    """
    for problem in validation.check_quickly(source, experiment.split):
        if problem.kind == "unlikely":
            what = validation.WARNINGS[problem.kind]
            print(f"warning: {what}: {problem.text}", file=sys.stderr)
    if values.class_weighting == "none":
        return experiment
    weights = statistics.class_weights(source, experiment.split)
    print(f"label_weights: {', '.join(f'{w:.4g}' for w in weights)}")
    train = dataclasses.replace(experiment.train, label_weights=weights)
    return dataclasses.replace(experiment, train=train)


def _beside(preset: Preset, experiment: Experiment) -> tuple[list, dict]:
    """Returns what to compare of a preset and of this training, as `report` does."""
    parts = [
        (preset.model, experiment.model),
        (preset.data, experiment.data),
        (preset.train, experiment.train),
    ]
    checkpoint = experiment.train.tf_initial_checkpoint
    needless = checkpoint or preset.start == "scratch"
    start = preset.start if needless else "scratch (no tf_initial_checkpoint)"
    return parts, {"train_split": experiment.split, "start": start}


def _initialize(
    model: keras.Model, config: TrainConfig, weights: str | None
) -> tuple[str, ...]:
    """Takes weights from the initial checkpoint.

    Args:
        model: The model.
        config: How it is trained.
        weights: Prefix of the checkpoint that `tf_initial_checkpoint` means, if any.

    Returns:
        The moving statistics that have never been trained.
    """
    statistics = [n for n in official_variables(model) if n.endswith("moving_mean")]
    if not weights:
        return tuple(statistics)
    excluded = ()
    if not config.initialize_last_layer:
        excluded = last_layer_scopes(config.last_layers_contain_logits_only)
    report = tf1.load_tf1_checkpoint(model, weights, excluded)
    print(f"{config.tf_initial_checkpoint}: {report}")
    return tuple(n for n in statistics if n not in report.restored)


def _asked_batch_norm(values, preset: Preset | None) -> str:
    """Returns the policy of the flags; "auto" where they leave it open."""
    policy, fine_tune = values.batch_norm, values["fine_tune_batch_norm"]
    if fine_tune.present and policy != "auto":
        if fine_tune.value == (policy == "freeze"):
            raise UserError(
                f"--batch_norm={policy} and --fine_tune_batch_norm="
                f"{str(fine_tune.value).lower()} exclude each other"
            )
        return policy
    if fine_tune.present:
        return "train" if fine_tune.value else "freeze"
    is_frozen = preset is not None and not preset.train.fine_tune_batch_norm
    return "freeze" if policy == "auto" and is_frozen else policy


def _with_batch_norm(
    experiment: Experiment, resolved: Resolved, fresh: tuple[str, ...]
) -> Experiment:
    """Returns the experiment with the policy that the flags come to.

    Args:
        experiment: What the flags say.
        resolved: The policy, and why.
        fresh: Moving statistics that have never been trained.
    """
    print(f"batch normalisation: {resolved.policy} ({resolved.reason})")
    is_frozen = resolved.policy == "freeze"
    if is_frozen and fresh:
        print(
            f"warning: {len(fresh)} frozen batch normalisations ({fresh[0]}, ...) were "
            "never trained, which starves what is behind them; "
            "--batch_norm=train learns them",
            file=sys.stderr,
        )
    train = dataclasses.replace(
        experiment.train,
        batch_norm=resolved.policy,
        fine_tune_batch_norm=not is_frozen,
    )
    return dataclasses.replace(experiment, train=train)


def _validation(values, experiment: Experiment, preset) -> Validation | None:
    """Returns what the model is scored on while it is trained."""
    if not experiment.train.eval_interval_steps:
        return None
    data, info = experiment.data, experiment.info
    split = flags.split_value(values, "eval_split", preset)
    sources.open_split(data.dataset, data.dataset_dir, split)

    def dataset(worker: int, num_workers: int) -> tf.data.Dataset:
        one_each = dataclasses.replace(data, batch_size=num_workers)
        options = {"worker": worker, "num_workers": num_workers}
        return load_dataset(one_each, split, training=False, **options)

    config, canaries = EvalConfig(ignore_label=info.ignore_label), {}
    if preset and split == preset.eval_split:
        parts, others = _beside(preset, experiment)
        if is_followed(preset, parts, **others):
            canaries = dict(preset.canaries)
    return Validation(dataset, config, canaries)


def _strategy(values) -> tf.distribute.Strategy:
    """Returns the strategy of the flags, before TensorFlow uses any device."""
    if values.deterministic:
        tf.config.experimental.enable_op_determinism()
    return distribution.make_strategy(
        values.distribution_strategy,
        values.num_clones,
        values.clone_on_cpu,
        values.tpu,
    )


def _print_machine(values, trainer: Trainer) -> None:
    strategy, worker = trainer.strategy, trainer.worker
    devices = ", ".join(d.name for d in tf.config.list_logical_devices())
    print(
        f"devices: {devices}; strategy: {type(strategy).__name__}, "
        f"replicas: {strategy.num_replicas_in_sync}, worker {worker.index + 1} of "
        f"{worker.count}; precision: {values.precision}; "
        f"jit: {'on' if trainer.compiles else 'off'}"
    )


class _Start(NamedTuple):
    """What a training begins with.

    Attributes:
        images: Images that a replica sees at once.
        batch_norm: The policy that is asked for; "auto" where that is left open.
        before: The experiment that it goes on with; None begins anew.
        weights: Prefix of the checkpoint to begin with, if there is one.
    """

    images: int
    batch_norm: str
    before: Experiment | None
    weights: str | None


def _start(values, preset: Preset | None, experiment: Experiment, strategy) -> _Start:
    """Returns what the training begins with; what has to be fetched comes last."""
    train = experiment.train
    images = distribution.require_divisible(
        experiment.data.batch_size,
        strategy.num_replicas_in_sync,
        train.accumulate_steps,
    )
    asked = _asked_batch_norm(values, preset)
    before = resume.experiment_before(experiment)
    is_wanted = train.tf_initial_checkpoint and before is None
    weights = find_weights(train.tf_initial_checkpoint) if is_wanted else None
    return _Start(images, asked, before, weights)


def _trainer(experiment: Experiment, values, strategy, start: _Start) -> tuple:
    """Returns the trainer with its weights, and the experiment with what it found."""
    train, before, asked = experiment.train, start.before, start.batch_norm
    tf.keras.utils.set_random_seed(experiment.data.seed)
    use_precision(values.precision)
    with strategy.scope():
        model = build_model(experiment.model)
    fresh = _initialize(model, train, start.weights) if before is None else ()
    is_kept = before is not None and asked == "auto"
    policy = before.train.normalization if is_kept else asked
    replicas = strategy.num_replicas_in_sync
    resolved = resolve_batch_norm(policy, start.images, replicas, fresh)
    if is_kept:
        reason = f"as {train.train_logdir} was trained"
        resolved = dataclasses.replace(resolved, reason=reason)
    experiment = _with_batch_norm(experiment, resolved, fresh)
    trainer = Trainer(model, experiment.train)
    latest = trainer.restore_latest()
    if latest:
        print(f"going on from {latest}; tf_initial_checkpoint is not read")
    return trainer, experiment


def main(values: absl_flags.FlagValues) -> None:
    """Checks everything, then trains."""
    flags.check_flags(values, "train")
    preset = flags.chosen_preset(values)
    strategy = _strategy(values)
    with distribution.lost_workers(distribution.worker_of(strategy)):
        _train(values, preset, strategy)


def _train(values, preset: Preset | None, strategy: tf.distribute.Strategy) -> None:
    source = _source(values, preset)
    experiment = _experiment(values, preset, source)
    validation = _validation(values, experiment, preset)
    is_chief = distribution.worker_of(strategy).is_chief
    writes = is_chief and not values.sanity_overfit
    # Before anything is read from the folder, or built.
    folder = experiment.train.train_logdir
    with training_lock(folder) if writes else contextlib.nullcontext():
        if writes:
            resume.claim_folder(folder, values.overwrite)
        start = _start(values, preset, experiment, strategy)
        experiment = _examined(values, experiment, source)
        trainer, experiment = _trainer(experiment, values, strategy, start)
        _run(values, trainer, experiment, validation)


def _run(
    values, trainer: Trainer, experiment: Experiment, validation: Validation | None
) -> None:
    """Trains, or tries to overfit one batch."""
    config, data, split = experiment.train, experiment.data, experiment.split
    _print_machine(values, trainer)

    def dataset(worker: int, num_workers: int) -> tf.data.Dataset:
        return load_dataset(data, split, True, trainer.samples, worker, num_workers)

    if values.sanity_overfit:
        verdict = sanity.check(trainer.model, config, dataset(0, 1))
        if not verdict.fits:
            raise UserError(str(verdict))
        print(verdict)
        return
    if trainer.worker.is_chief:
        resume.write_experiment(experiment, config.train_logdir)

    def name_samples(start: int, count: int) -> str:
        return describe_samples(data, split, start, count)

    trainer.train(dataset, validation, experiment.info, name_samples)
    print(f"{config.train_logdir}: {trainer.step} steps, model.ckpt-{trainer.step}")
