"""Scores a checkpoint or an exported model (SavedModel, TFLite, ONNX) on a split.

    python eval.py --checkpoint_dir=logs --dataset_dir=tfrecord --eval_logdir=logs/eval

writes `metrics.json`, and `report.html` for people, which is one file.
"""

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.config import DataConfig, EvalConfig
from deeplab_tf.data import sources
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation import corruptions
from deeplab_tf.evaluation.boundary import BoundaryIoU, TrimapCurve
from deeplab_tf.evaluation.calibration import Calibration
from deeplab_tf.evaluation.evaluator import (
    METRICS_FILE,
    Evaluator,
    class_table,
    write_metrics,
)
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.evaluation.report import write_report
from deeplab_tf.files import outputs
from deeplab_tf.presets import report
from deeplab_tf.programs.restored import (
    require_channels,
    require_classes,
    require_no_model_flags,
    restored_model,
)
from deeplab_tf.serving.formats import is_artefact, load_artefact
from deeplab_tf.training.distribution import make_local_strategy
from deeplab_tf.training.resume import read_experiment

# Besides those of the model.
_OF_CHECKPOINTS = ("num_clones", "clone_on_cpu", "eval_interval_secs")
_OFFICIAL_INTERVAL = 300  # seconds between two evaluations
_REPORT = "report.html"
_SHOWN = 12  # worst and best images in the report


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    flags.define_model_flags(values, "eval")
    flags.define_overwrite(values)
    flags.define_dataset_flags(values, "eval_split", "val")
    flags.define_options(values, EvalConfig)
    string, integer = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    boolean = absl_flags.DEFINE_boolean
    string(
        "checkpoint_dir",
        None,
        "Folder or prefix of a checkpoint, official or ours; or an exported model: a "
        "SavedModel, a TFLite or an ONNX file.",
        required=True,
        flag_values=values,
    )
    string(
        "eval_logdir",
        None,
        "Folder of metrics.json and report.html.",
        flag_values=values,
    )
    integer(
        "eval_interval_secs",
        None,
        "Given: follow a training, scoring each new checkpoint.",
        lower_bound=0,
        flag_values=values,
    )
    integer(
        "max_number_of_evaluations",
        0,
        "Evaluations before the end when following; 0 is no end.",
        lower_bound=0,
        flag_values=values,
    )
    integer(
        "num_clones",
        None,
        "Ours: devices that evaluate; default: all GPUs. On CPU as many logical ones.",
        flag_values=values,
    )
    boolean("clone_on_cpu", False, "Ours: leave GPUs alone.", flag_values=values)
    boolean("report", True, "Ours: write report.html.", flag_values=values)
    absl_flags.DEFINE_enum(
        "trimap",
        "none",
        ["none", "void", "classes"],
        "Ours: mIoU within bands around void pixels (PASCAL VOC) or class boundaries.",
        flag_values=values,
    )
    boolean("boundary_iou", False, "Ours: Boundary IoU.", flag_values=values)
    boolean(
        "calibration", False, "Ours: expected calibration error.", flag_values=values
    )
    absl_flags.DEFINE_list(
        "corruptions",
        [],
        "Ours: corruptions to score the model under; all are the 15 common ones.",
        flag_values=values,
    )
    absl_flags.DEFINE_list(
        "severities", [1, 2, 3, 4, 5], "Ours: of the corruptions.", flag_values=values
    )
    return values


@dataclasses.dataclass(frozen=True)
class _Split:
    """What is evaluated on.

    Attributes:
        data: Where the records are.
        name: Official name of the split.
        info: What its images and labels mean.
    """

    data: DataConfig
    name: str
    info: DatasetInfo

    def load(self) -> tf.data.Dataset:
        return load_dataset(self.data, self.name, False, named=True)


def _located(
    values: absl_flags.FlagValues, trained_on: DataConfig | None, fallback: str | None
) -> tuple:
    """Returns where the data are, and their description.

    Args:
        values: The parsed flags.
        trained_on: The data that the model was trained on, if that is known.
        fallback: Name of the dataset where neither flags nor records tell it.
    """
    dataset, dataset_dir = values.dataset, values.dataset_dir
    if dataset is None and dataset_dir is None and trained_on:
        dataset, dataset_dir = trained_on.dataset, trained_on.dataset_dir
    flags.require_dataset_dir(dataset, dataset_dir)
    preset = flags.chosen_preset(values)
    fallback = fallback or flags.dataset_fallback(preset)
    return dataset_dir or "", sources.resolve_info(dataset, dataset_dir or "", fallback)


def _eval_config(values: absl_flags.FlagValues, info: DatasetInfo) -> EvalConfig:
    preset = flags.chosen_preset(values)
    base = preset and preset.evaluation
    return flags.read_options(values, EvalConfig, base, ignore_label=info.ignore_label)


def _evaluate_artefact(values: absl_flags.FlagValues, path: str) -> None:
    """Scores an exported model."""
    require_no_model_flags(values, path, (*flags.INFERENCE, *_OF_CHECKPOINTS))
    artefact = load_artefact(path)
    known = artefact.info and artefact.info.name
    folder, info = _located(values, None, known)
    if artefact.num_classes is None:
        artefact.num_classes = info.num_classes
    channels = artefact.channels or info.channels
    require_classes(info, artefact.num_classes, channels, path)
    if values.calibration:
        artefact.probabilities(np.zeros((1, 33, 33, channels), np.uint8))
    config = _eval_config(values, info)
    data = flags.read_options(
        values,
        DataConfig,
        dataset_dir=folder,
        dataset=info.name,
        batch_size=config.eval_batch_size,
    )
    split = _Split(data, values.eval_split, info)
    _score(values, Evaluator(artefact, config), split, path)


def _evaluate_checkpoint(
    values: absl_flags.FlagValues,
    checkpoint: tf1.Checkpoint,
    strategy,
    announces: bool = True,
) -> None:
    """Scores one checkpoint.

    Args:
        values: The parsed flags.
        checkpoint: The checkpoint; its files may be gone by now.
        strategy: On which devices.
        announces: Whether a preset's recipe is printed.
    """
    experiment = read_experiment(os.path.dirname(checkpoint.prefix))
    trained_on = experiment and experiment.data
    folder, info = _located(values, trained_on, trained_on and trained_on.dataset)
    config, preset = _eval_config(values, info), flags.chosen_preset(values)
    with strategy.scope():
        model = restored_model(values, checkpoint, info.num_classes)
    require_channels(model, info.channels, f"the records of {info.name}")
    data = flags.data_config(
        values,
        model.model_config,
        preset and preset.data,
        dataset=info.name,
        dataset_dir=folder,
        batch_size=config.eval_batch_size,
    )
    split = _Split(data, flags.split_value(values, "eval_split", preset), info)
    if preset and announces:
        # Of the data an evaluation takes the dataset and the resizing alone.
        names = ("dataset", *flags.RESIZING)
        taken = {name: getattr(data, name) for name in names}
        parts = [
            (preset.eval_model, model.model_config),
            (preset.evaluation, config),
            (preset.data, dataclasses.replace(preset.data, **taken)),
        ]
        print(report(preset, parts, eval_split=split.name))
    _score(values, Evaluator(model, config), split, checkpoint.prefix)


def _score(
    values: absl_flags.FlagValues, evaluator: Evaluator, split: _Split, source: str
) -> None:
    """Scores a model, prints the table and writes what was found."""
    info = split.info
    if _corruptions(values) and info.channels != 3:
        raise UserError(f"--corruptions are of RGB; {info.name} has {info.channels}")
    dataset, measures = split.load(), _measures(values, info)
    if values.eval_logdir:
        tf.io.gfile.makedirs(values.eval_logdir)  # or refuses it
    gallery = None
    if values.report and values.eval_logdir:
        gallery = Gallery(info.num_classes, info.ignore_label, extremes=_SHOWN)
    metrics = evaluator.evaluate(dataset, None, measures.values(), gallery)
    metrics |= {name: measure.metrics() for name, measure in measures.items()}
    metrics["protocol"] |= {
        "checkpoint": source,
        "dataset": info.name,
        "split": split.name,
        **{name: getattr(split.data, name) for name in flags.RESIZING},
    }
    metrics["class_names"] = list(info.class_names)
    print(class_table(metrics, info))
    paths = _written(values, metrics, info, gallery)
    if _corruptions(values):
        # Long: what is known already is written already.
        metrics["robustness"] = _robustness(values, evaluator, split, metrics["miou"])
        paths = _written(values, metrics, info, gallery)
    for line in (*_told(metrics), *(f"written: {path}" for path in paths)):
        print(line)


def _measures(values: absl_flags.FlagValues, info: DatasetInfo) -> dict:
    """Returns what else is measured, by its name in `metrics.json`."""
    classes = info.num_classes, info.ignore_label
    measures = {}
    if values.trimap != "none":
        measures["trimap"] = TrimapCurve(*classes, around=values.trimap)
    if values.boundary_iou:
        measures["boundary_iou"] = BoundaryIoU(*classes)
    if values.calibration:
        measures["calibration"] = Calibration(*classes)
    return measures


def _corruptions(values: absl_flags.FlagValues) -> list[str]:
    given = values.corruptions
    every = list(corruptions.CORRUPTIONS)
    return every if given == ["all"] else list(dict.fromkeys(given))


def _severities(values: absl_flags.FlagValues) -> list[int]:
    given = flags.whole_numbers_value(values, "severities")
    if not given:
        raise UserError("--severities needs one at least, of 1 to 5")
    return list(dict.fromkeys(given))


def _check_corruptions(values: absl_flags.FlagValues) -> None:
    """Refuses corruptions that cannot be had."""
    if values["severities"].present and not values.corruptions:
        raise UserError("--severities has no effect without --corruptions")
    for name in _corruptions(values):
        for severity in _severities(values):
            corruptions.corrupted((), name, severity)


def _robustness(
    values: absl_flags.FlagValues, evaluator: Evaluator, split: _Split, clean: float
) -> dict:
    """Returns the mIoU under every corruption at every severity."""
    names, severities = _corruptions(values), _severities(values)

    def miou(name: str, severity: int) -> float:
        dataset = split.load()
        corrupted = tf.data.Dataset.from_generator(
            lambda: corruptions.corrupted(dataset, name, severity),
            output_signature=dataset.element_spec,
        )
        print(f"{name}, severity {severity}", file=sys.stderr)
        return evaluator.evaluate(corrupted.prefetch(2))["miou"]

    scores = {name: [miou(name, severity) for severity in severities] for name in names}
    return {"clean": clean, "severities": severities, "miou": scores}


def _told(metrics: dict) -> list[str]:
    """Returns what was measured besides the table, a line each."""
    lines = []
    if "trimap" in metrics:
        trimap = metrics["trimap"]
        pairs = zip(trimap["widths"], trimap["miou"], strict=True)
        curve = ", ".join(f"{w} px {_score_text(miou)}" for w, miou in pairs)
        lines.append(f"mIoU around {trimap['around']}: {curve}")
    if "boundary_iou" in metrics:
        score = metrics["boundary_iou"]["boundary_iou"]
        lines.append(f"Boundary IoU {_score_text(score)}")
    if "calibration" in metrics:
        error = metrics["calibration"]["expected_calibration_error"]
        lines.append(f"expected calibration error {_score_text(error)}")
    robustness = metrics.get("robustness", {"miou": {}})
    for name, scores in robustness["miou"].items():
        pairs = zip(robustness["severities"], scores, strict=True)
        lines.append(f"{name}: " + ", ".join(f"{s}: {x:.4f}" for s, x in pairs))
    return lines


def _score_text(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


def _written(
    values: absl_flags.FlagValues,
    metrics: dict,
    info: DatasetInfo,
    gallery: Gallery | None,
) -> list[str]:
    """Writes `metrics.json` and the report, each whole or not at all; returns them."""
    if not values.eval_logdir:
        return []
    paths = [write_metrics(metrics, values.eval_logdir)]
    if gallery is not None:
        paths.append(os.path.join(values.eval_logdir, _REPORT))
        write_report(paths[1], metrics, info, gallery.worst, gallery.best, _command())
    return paths


def _command() -> list[str]:
    """Returns the command line, to be run again."""
    program, *arguments = sys.argv
    name = os.path.basename(program)
    return [*(["python"] if name.endswith(".py") else []), name, *arguments]


def _checkpoints(folder: str, seconds: float) -> Iterator[tf1.Checkpoint]:
    """Yields the newest checkpoint of a folder, and every newer one that comes.

    Args:
        folder: The `train_logdir`; it may be made later.
        seconds: Time between two looks.
    """
    latest, is_told = None, False
    while True:
        began = time.monotonic()
        newest = _newest(folder)
        if newest not in (None, latest):
            checkpoint = tf1.read_checkpoint(folder)
            latest, is_told = checkpoint.prefix, False
            yield checkpoint
        elif not is_told:
            print(f"waiting for a checkpoint in {folder}", flush=True)
            is_told = True
        time.sleep(max(1.0, began + seconds - time.monotonic()))


def _newest(folder: str) -> str | None:
    if tf.io.gfile.exists(folder) and not tf.io.gfile.isdir(folder):
        raise UserError(f"{folder} is no folder; --eval_interval_secs follows one")
    try:
        return tf1.resolve(folder)
    except tf1.MissingCheckpointError:
        return None


def _follow(
    values: absl_flags.FlagValues, folder: str, seconds: float, strategy
) -> None:
    """Scores every new checkpoint of a folder."""
    checkpoints = _checkpoints(folder, seconds)
    # No end is 0, which `islice` spells None.
    limit = values.max_number_of_evaluations or None
    for i, checkpoint in enumerate(itertools.islice(checkpoints, limit)):
        _evaluate_checkpoint(values, checkpoint, strategy, announces=i == 0)


def main(values: absl_flags.FlagValues) -> None:
    """Scores once, or follows a training."""
    flags.check_flags(values, "eval")
    _check_corruptions(values)
    if values.eval_logdir:
        names = [METRICS_FILE, _REPORT] if values.report else [METRICS_FILE]
        outputs.claim(values.eval_logdir, names, values.overwrite)
    path, seconds = values.checkpoint_dir, values.eval_interval_secs
    if is_artefact(path):
        _evaluate_artefact(values, path)
        return
    strategy = make_local_strategy(values.num_clones, values.clone_on_cpu)
    if seconds is None and values.max_number_of_evaluations > 1:
        seconds = _OFFICIAL_INTERVAL
    if seconds is None or values.max_number_of_evaluations == 1:
        _evaluate_checkpoint(values, tf1.read_checkpoint(path), strategy)
    else:
        _follow(values, path, seconds, strategy)
