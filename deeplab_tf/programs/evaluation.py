"""Evaluates a model with the flags of eval.py."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.config import DataConfig, EvalConfig, Experiment
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation import corruptions
from deeplab_tf.evaluation.comparison import read_metrics
from deeplab_tf.evaluation.evaluator import Counts, Evaluator
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.evaluation.measures import describe_measures, make_measures
from deeplab_tf.evaluation.results import (
    Split,
    add_details,
    format_class_table,
    list_result_files,
    make_gallery,
    write_results,
)
from deeplab_tf.evaluation.robustness import measure_robustness
from deeplab_tf.evaluation.unpredicted import NEVER_PREDICTED, describe_unpredicted
from deeplab_tf.files import outputs
from deeplab_tf.presets import describe_run
from deeplab_tf.programs import (
    read_command_line,
    runners,
    start_tensorflow,
)
from deeplab_tf.programs.loading import (
    find_records,
    list_checkpoints,
    load_exported_model,
    load_model,
)
from deeplab_tf.serving.formats import is_artefact
from deeplab_tf.training.distribution import make_local_strategy

# Flags that only apply to checkpoints, in addition to the model flags.
_CHECKPOINT_FLAGS = ("num_clones", "clone_on_cpu", "eval_interval_secs")


def _read_eval_config(values: absl_flags.FlagValues, info: DatasetInfo) -> EvalConfig:
    preset = flags.read_preset(values)
    base = preset and preset.evaluation
    return flags.read_options(values, EvalConfig, base, ignore_label=info.ignore_label)


class _Evaluation(NamedTuple):
    """A model and the split to evaluate it on.

    Attributes:
        evaluator: The evaluator of the model.
        split: The split to evaluate on.
        source: Path of the model: an exported one, or the prefix of a checkpoint.
        experiment: Settings of the training run; None if unknown.
    """

    evaluator: Evaluator
    split: Split
    source: str
    experiment: Experiment | None = None

    def make_measures(self, values: absl_flags.FlagValues) -> dict:
        """Returns the additional measures of the flags, by name."""
        chosen = values.trimap, values.boundary_iou, values.calibration
        return make_measures(self.split.info, *chosen)


def _open_artefact(
    values: absl_flags.FlagValues, path: str, shows_progress: bool = True
) -> _Evaluation:
    """Loads an exported model."""
    others = (*flags.INFERENCE, *_CHECKPOINT_FLAGS)
    artefact, (folder, info) = load_exported_model(values, path, others)
    if values.calibration:
        channels = artefact.channels or info.channels
        artefact.probabilities(np.zeros((1, 33, 33, channels), np.uint8))
    config = _read_eval_config(values, info)
    data = flags.read_options(
        values,
        DataConfig,
        dataset_dir=folder,
        dataset=info.name,
        batch_size=config.eval_batch_size,
    )
    evaluator = Evaluator(artefact, config, shows_progress)
    return _Evaluation(evaluator, Split(data, values.eval_split, info), path)


def _open_checkpoint(
    values: absl_flags.FlagValues,
    checkpoint: tf1.Checkpoint,
    strategy: tf.distribute.Strategy,
    is_first: bool = True,
    shows_progress: bool = True,
) -> _Evaluation:
    """Restores the model of a checkpoint.

    For the first one, prints deviations from the preset.
    """
    (folder, info), experiment = find_records(values, checkpoint)
    config, preset = _read_eval_config(values, info), flags.read_preset(values)
    with strategy.scope():
        model = load_model(values, checkpoint, info)
    data = flags.read_data_config(
        values,
        model.model_config,
        preset and preset.data,
        dataset=info.name,
        dataset_dir=folder,
        batch_size=config.eval_batch_size,
    )
    split = Split(data, flags.read_split(values, "eval_split", preset), info)
    if preset and is_first:
        # Evaluation uses only the dataset and the resizing of the data config.
        names = ("dataset", *flags.RESIZING)
        used = {name: getattr(data, name) for name in names}
        parts = [
            (preset.eval_model, model.model_config),
            (preset.evaluation, config),
            (preset.data, dataclasses.replace(preset.data, **used)),
        ]
        print(describe_run(preset, parts, eval_split=split.name))
    evaluator = Evaluator(model, config, shows_progress)
    return _Evaluation(evaluator, split, checkpoint.prefix, experiment)


def _score_and_report(values: absl_flags.FlagValues, evaluation: _Evaluation) -> None:
    """Evaluates a model on a split; writes and prints the results."""
    evaluator, split, source, experiment = evaluation
    info = split.info
    if _read_corruptions(values) and info.channels != 3:
        raise UserError(
            f"--corruptions needs RGB images; {info.name} has {info.channels} channels"
        )
    compared = values.compare and read_metrics(values.compare, info.class_names)
    dataset = split.load()
    if values.eval_logdir:
        tf.io.gfile.makedirs(values.eval_logdir)  # fails before the evaluation
    writes_report = values.report and values.eval_logdir and not values.runner
    gallery = make_gallery(info) if writes_report else None
    measures = evaluation.make_measures(values)
    if values.runner:
        counts = _count_on_runner(values, source, split, measures)
        metrics = evaluator.compute_metrics(counts)
    else:
        metrics = evaluator.evaluate(dataset, None, measures.values(), gallery)
    add_details(metrics, split, source, measures, gallery, experiment)
    print(format_class_table(metrics, info))
    written = metrics, info, gallery, compared
    paths = _write_results(values, *written)
    if _read_corruptions(values):
        # Written before as well: this is slow and may fail.
        metrics["robustness"] = measure_robustness(
            evaluator,
            split.load,
            _read_corruptions(values),
            _read_severities(values),
            clean=metrics["miou"],
        )
        paths = _write_results(values, *written)
    for line in (*describe_measures(metrics), *(f"written: {path}" for path in paths)):
        print(line)
    reasons = metrics.get(NEVER_PREDICTED, {})
    for line in describe_unpredicted(reasons, info.num_classes):
        print(line)


def _count_on_runner(
    values: absl_flags.FlagValues, source: str, split: Split, measures: dict
) -> Counts:
    """Counts a split on the workers of --runner; fills the measures."""
    # Name the checkpoint: training may add newer ones to the folder meanwhile.
    given = [*runners.list_given(values), f"--checkpoint_dir={source}"]
    work = start_tensorflow, functools.partial(_load_worker, given), _count_part
    tasks = split.list_parts()
    results = runners.run_tasks(values, work, tasks, values.eval_logdir)
    counts, measured = zip(*results, strict=True)
    for measure, found in zip(
        measures.values(), zip(*measured, strict=True), strict=True
    ):
        measure.counts = sum(found)
    return Counts(*(sum(part) for part in zip(*counts, strict=True)))


def _load_worker(given: Sequence[str]) -> tuple[absl_flags.FlagValues, _Evaluation]:
    """Returns flags, model and split in a worker; `given` are the given flags."""
    values = runners.parse_given("deeplab_tf.programs.eval", given)
    path = values.checkpoint_dir
    if is_artefact(path):
        evaluation = _open_artefact(values, path, shows_progress=False)
    else:
        strategy = make_local_strategy(values.num_clones, values.clone_on_cpu)
        [checkpoint] = list_checkpoints(values, 1)
        options = {"is_first": False, "shows_progress": False}
        evaluation = _open_checkpoint(values, checkpoint, strategy, **options)
    return values, evaluation


def _count_part(
    worker: tuple[absl_flags.FlagValues, _Evaluation], part: tuple[int, int]
) -> tuple[Counts, list[np.ndarray]]:
    """Returns the counts of a part of the split, and those of the measures."""
    values, evaluation = worker
    # Threads of a worker process share the model, but not what they count.
    measures = list(evaluation.make_measures(values).values())
    counts = evaluation.evaluator.count(evaluation.split.load(*part), measures)
    return counts, [measure.counts for measure in measures]


def _write_results(
    values: absl_flags.FlagValues,
    metrics: dict,
    info: DatasetInfo,
    gallery: Gallery | None,
    compared: dict | None,
) -> list[str]:
    if not values.eval_logdir:
        return []
    command = read_command_line()
    folder = values.eval_logdir
    return write_results(folder, metrics, info, gallery, command, compared)


def _read_corruptions(values: absl_flags.FlagValues) -> list[str]:
    given = values.corruptions
    every = list(corruptions.CORRUPTIONS)
    return every if given == ["all"] else list(dict.fromkeys(given))


def _read_severities(values: absl_flags.FlagValues) -> list[int]:
    given = flags.read_integers(values, "severities")
    if not given:
        raise UserError("--severities needs at least one severity, from 1 to 5")
    return list(dict.fromkeys(given))


def _check_corruptions(values: absl_flags.FlagValues) -> None:
    if values["severities"].present and not values.corruptions:
        raise UserError("--severities has no effect without --corruptions")
    for name in _read_corruptions(values):
        for severity in _read_severities(values):
            corruptions.corrupt_dataset((), name, severity)


def main(values: absl_flags.FlagValues) -> None:
    """Evaluates once, or every new checkpoint of a training run."""
    flags.check_flags(values, "eval")
    _check_corruptions(values)
    if values.eval_logdir:
        names = list_result_files(values.report)
        outputs.claim(values.eval_logdir, names, values.overwrite)
    path = values.checkpoint_dir
    if is_artefact(path):
        _score_and_report(values, _open_artefact(values, path))
        return
    strategy = make_local_strategy(values.num_clones, values.clone_on_cpu)
    checkpoints = list_checkpoints(values, values.max_number_of_evaluations)
    for i, checkpoint in enumerate(checkpoints):
        evaluation = _open_checkpoint(values, checkpoint, strategy, is_first=i == 0)
        _score_and_report(values, evaluation)
