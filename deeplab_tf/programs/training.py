"""Trains a model with the flags of train.py."""

import dataclasses
import sys
from collections.abc import Sequence

import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.handles import is_handle
from deeplab_tf.checkpoints.pretrained import find_weights
from deeplab_tf.checkpoints.pytorch.weights import is_torch_file
from deeplab_tf.config import EvalConfig, Experiment, ModelConfig, TrainConfig
from deeplab_tf.data import service, sources, statistics, validation
from deeplab_tf.data.pipeline import describe_samples, load_dataset
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.evaluation.unpredicted import (
    describe_unpredicted,
    explain_unpredicted,
    find_unpredicted,
    gather_evidence,
)
from deeplab_tf.presets import Preset, describe_run, is_preset_followed
from deeplab_tf.presets.preset import list_deviations
from deeplab_tf.programs.machine import (
    claim_logdir,
    describe_machine,
    make_strategy,
)
from deeplab_tf.programs.run_summary import describe_plan, suggest_use
from deeplab_tf.training import distribution, resume, sanity
from deeplab_tf.training.preparation import find_start, prepare_trainer
from deeplab_tf.training.reporter import Validation
from deeplab_tf.training.trainer import Trainer


def _read_experiment(
    values: absl_flags.FlagValues, preset: Preset | None, source: Source
) -> Experiment:
    """Returns the experiment of the flags; prints deviations from the preset."""
    split = flags.read_split(values, "train_split", preset)
    info = source.info
    base, name = _find_base_model(values, preset)
    model = flags.read_model_config(values, base, name, info.num_classes)
    model = dataclasses.replace(model, channels=info.channels)
    data = flags.read_data_config(
        values, model, preset and preset.data, dataset=info.name
    )
    statistics.find_class_ids(data.bootstrap_classes, info)
    train = flags.read_options(
        values, TrainConfig, preset and preset.train, ignore_label=info.ignore_label
    )
    experiment = Experiment(model, data, train, split, info)
    if preset:
        parts, others = _pair_with_preset(preset, experiment)
        print(describe_run(preset, parts, **others))
    return experiment


def _find_base_model(
    values: absl_flags.FlagValues, preset: Preset | None
) -> tuple[ModelConfig | None, str]:
    """Returns the model that flags override, and the weights that describe it, else "".

    PyTorch weights set the conventions of a preset's model or, without a preset, the
    entire model. A resumed run takes both from its log folder.
    """
    base, start = preset and preset.model, values.tf_initial_checkpoint
    if not start or not (is_handle(start) or is_torch_file(start)):
        return base, ""
    previous = resume.read_experiment(values.train_logdir)
    if previous is not None:
        model = previous.model
    else:
        path = find_weights(start)
        if not is_torch_file(path):
            return base, ""
        model = tf1.read_checkpoint(path).config
    if base is None:
        return model, start
    return dataclasses.replace(base, conventions=model.conventions), ""


def _open_records(values, preset: Preset | None) -> Source:
    folder = values.dataset_dir or ""
    fallback = flags.default_dataset(preset)
    info = sources.resolve_info(values.dataset, folder, fallback)
    split = flags.read_split(values, "train_split", preset)
    return sources.open_split(info.name, folder, split)


def _check_records(values, experiment: Experiment, source: Source) -> Experiment:
    """Warns of unlikely records; returns the experiment with its label weights."""
    for problem in validation.check_quickly(source, experiment.split):
        if problem.kind == "unlikely":
            meaning = validation.WARNINGS[problem.kind]
            print(f"warning: {meaning}: {problem.text}", file=sys.stderr)
    if values.class_weighting == "none":
        return experiment
    weights = statistics.compute_class_weights(source, experiment.split)
    print(f"label_weights: {', '.join(f'{w:.4g}' for w in weights)}")
    train = dataclasses.replace(experiment.train, label_weights=weights)
    return dataclasses.replace(experiment, train=train)


def _pair_with_preset(preset: Preset, experiment: Experiment) -> tuple[list, dict]:
    """Returns the arguments that compare the experiment with its preset.

    They are pairs and keyword arguments of `describe_run` and
    `is_preset_followed`.
    """
    parts = [
        (preset.model, experiment.model),
        (preset.data, experiment.data),
        (preset.train, experiment.train),
    ]
    checkpoint = experiment.train.tf_initial_checkpoint
    has_start = checkpoint or preset.start == "scratch"
    start = preset.start if has_start else "scratch (no tf_initial_checkpoint)"
    return parts, {"train_split": experiment.split, "start": start}


def _read_batch_norm_policy(values, preset: Preset | None) -> str:
    """Returns the batch normalisation policy of the flags, by default "auto"."""
    policy, fine_tune = values.batch_norm, values["fine_tune_batch_norm"]
    if fine_tune.present and policy == "auto":
        return "train" if fine_tune.value else "freeze"
    is_frozen = preset is not None and not preset.train.fine_tune_batch_norm
    is_frozen |= values.quantize_delay_step >= 0
    return "freeze" if policy == "auto" and is_frozen else policy


def _make_validation(values, experiment: Experiment, preset) -> Validation | None:
    """Returns how to score the model during training, None if it is off.

    The mIoU of the preset is expected only if its settings are followed.
    """
    if not experiment.train.eval_interval_steps:
        return None
    data, info = experiment.data, experiment.info
    split = flags.read_split(values, "eval_split", preset)
    sources.open_split(data.dataset, data.dataset_dir, split)

    def dataset(worker: int, num_workers: int) -> tf.data.Dataset:
        one_each = dataclasses.replace(data, batch_size=num_workers)
        options = {"worker": worker, "num_workers": num_workers}
        return load_dataset(one_each, split, training=False, **options)

    config, expected_miou = EvalConfig(ignore_label=info.ignore_label), {}
    if preset and split == preset.eval_split:
        parts, others = _pair_with_preset(preset, experiment)
        if is_preset_followed(preset, parts, **others):
            expected_miou = dict(preset.expected_miou)
    return Validation(dataset, config, expected_miou)


def main(values: absl_flags.FlagValues) -> None:
    """Trains, or resumes training."""
    flags.check_flags(values, "train")
    preset = flags.read_preset(values)
    strategy = make_strategy(values, flags.read_split(values, "train_split", preset))
    with distribution.report_lost_workers(distribution.current_worker(strategy)):
        _train(values, preset, strategy)


def _train(values, preset: Preset | None, strategy: tf.distribute.Strategy) -> None:
    """Prepares the run under the lock of its folder, then trains."""
    source = _open_records(values, preset)
    experiment = _read_experiment(values, preset, source)
    if experiment.data.data_service:
        service.require_service(experiment.data.data_service)
    validation = _make_validation(values, experiment, preset)
    worker = distribution.current_worker(strategy)
    writes = worker.is_chief and not values.sanity_overfit
    folder = experiment.train.train_logdir
    with claim_logdir(folder, values.overwrite, writes):
        policy = _read_batch_norm_policy(values, preset)
        replicas = strategy.num_replicas_in_sync
        start = find_start(experiment, policy, replicas, worker.count)
        experiment = _check_records(values, experiment, source)
        trainer, experiment, latest = prepare_trainer(
            experiment, start, strategy, values.precision
        )
        if latest:
            print(f"resuming from {latest}; tf_initial_checkpoint is not read")
        if start.previous:
            _print_changes(start.previous, experiment)
        plan = describe_plan(experiment, trainer, len(source.index), latest)
        _run(values, trainer, experiment, validation, plan)


def _print_changes(previous: Experiment, experiment: Experiment) -> None:
    """Prints how a resumed run differs from the earlier one."""
    pairs = (previous.data, experiment.data), (previous.train, experiment.train)
    changes = [change for pair in pairs for change in list_deviations(*pair)]
    if changes:
        print(
            f"note: resuming with different settings: {'; '.join(changes)}; for a new "
            "run, give a different --train_logdir"
        )


def _run(
    values,
    trainer: Trainer,
    experiment: Experiment,
    validation: Validation | None,
    plan: Sequence[str],
) -> None:
    """Prints the plan and trains, or only runs the check of --sanity_overfit."""
    config, data, split = experiment.train, experiment.data, experiment.split
    devices = ", ".join(d.name for d in tf.config.list_logical_devices())
    if trainer.worker.is_chief:
        print("\n".join(plan))
    print(f"devices: {devices}; {describe_machine(values, trainer)}")

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

    def describe(start: int, count: int) -> str:
        return describe_samples(data, split, start, count)

    trainer.train(dataset, validation, experiment.info, describe)
    _report_end(trainer, experiment)


def _report_end(trainer: Trainer, experiment: Experiment) -> None:
    """Prints the last checkpoint, classes that are never predicted, and next steps."""
    folder, checkpoint = experiment.train.train_logdir, f"model.ckpt-{trainer.step}"
    print(f"{folder}: {pluralize(trainer.step, 'step(s)')}, {checkpoint}")
    if not trainer.worker.is_chief:
        return
    metrics, info = trainer.last_evaluation, experiment.info
    if find_unpredicted(metrics):
        evidence = gather_evidence(experiment, checkpoint)
        reasons = explain_unpredicted(metrics, info, evidence)
        for line in describe_unpredicted(reasons, info.num_classes):
            print(line)
    suggest_use(experiment)
