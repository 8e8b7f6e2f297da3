"""Short training runs on CamVid, one per row of a table and seed; each can resume.

`benchmarks.ablations` and `benchmarks.tricks` define rows; a row trains a MobileNetV2
for a few hundred steps, or evaluates the model of another row differently. Results go
to <output_dir>/<row>.json and are reused until the settings change. Killed runs resume
from <output_dir>/<row>/seed<n>.
"""

import dataclasses
import functools
import gc
import json
import os
import time
import zlib
from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from benchmarks import measuring
from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.restore import require_complete
from deeplab_tf.config import EvalConfig, Experiment, TrainConfig
from deeplab_tf.data import sources, statistics
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.boundary import TrimapCurve
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.files import outputs
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.training import distribution, resume
from deeplab_tf.training.trainer import Trainer

_VERSIONS = ("python", "tensorflow", "keras", "numpy")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: differences from the base in training or evaluation.

    `model` holds official model flags; `data`, `train` and `evaluation` hold fields of
    `DataConfig`, `TrainConfig` and `EvalConfig`.
    """

    name: str
    model: Mapping[str, object] = dataclasses.field(default_factory=dict)
    train: Mapping[str, object] = dataclasses.field(default_factory=dict)
    data: Mapping[str, object] = dataclasses.field(default_factory=dict)
    from_checkpoint: bool = True
    replicas: int = 1  # logical CPU devices that share a batch
    trained_by: str = ""  # row whose trained model it evaluates
    evaluation: Mapping[str, object] = dataclasses.field(default_factory=dict)
    eval_output_stride: int | None = None  # that of training
    teacher: str = ""  # row whose final checkpoint of the same seed supplies labels
    has_several_seeds: bool = False


@dataclasses.dataclass(frozen=True)
class Suite:
    """The rows of a table, and what they have in common."""

    rows: Mapping[str, Row]
    base: Experiment
    evaluation: EvalConfig
    train_split: str = "train"
    # Rows are compared on the first split.
    eval_splits: tuple[str, ...] = ("val",)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A suite on the records and the checkpoint of a user."""

    suite: Suite
    experiment: Experiment  # the base, from the official checkpoint
    checksum: str  # of the checkpoint's weights
    output_dir: str
    seeds: int  # for rows that have several


def define_flags(suite: Suite, seeds: str) -> absl_flags.FlagValues:
    """Returns the flags of a program; `seeds` is the help of --seeds."""
    values = measuring.make_flags(
        tf_initial_checkpoint=(..., "Official MobileNetV2 of PASCAL VOC."),
        output_dir=(..., "Folder of results and checkpoints."),
        rows=([], f"Rows to run: {', '.join(suite.rows)}; default: all."),
        steps=(300, "Training steps.", 1),
        seeds=(3, seeds, 1),
    )
    flags.define_dataset_location(values)
    return values


def make_bench(suite: Suite, values: absl_flags.FlagValues) -> Bench:
    """Returns the settings that the runs of a suite share, from the flags."""
    flags.require_dataset_dir(values.dataset, values.dataset_dir)
    folder = values.dataset_dir or ""
    info = sources.resolve_info(values.dataset, folder)
    source = sources.open_split(info.name, folder, suite.train_split)
    for split in suite.eval_splits:
        sources.open_split(info.name, folder, split)
    checkpoint = tf1.resolve(values.tf_initial_checkpoint)
    # Square roots, because full weights for rare classes cost the frequent ones more.
    weights = np.sqrt(statistics.compute_class_weights(source, suite.train_split))
    train = dataclasses.replace(
        suite.base.train,
        training_number_of_steps=values.steps,
        label_weights=tuple(weights.round(4).tolist()),
        ignore_label=info.ignore_label,
        tf_initial_checkpoint=checkpoint,
    )
    experiment = make_base(suite, folder, info, train)
    return Bench(
        suite, experiment, _checksum(checkpoint), values.output_dir, values.seeds
    )


def make_base(
    suite: Suite, dataset_dir: str, info: DatasetInfo, train: TrainConfig
) -> Experiment:
    """Returns the base experiment of a suite on the records of a folder."""
    base = suite.base
    model = dataclasses.replace(
        base.model, num_classes=info.num_classes, channels=info.channels
    )
    data = dataclasses.replace(base.data, dataset_dir=dataset_dir, dataset=info.name)
    return dataclasses.replace(
        base, model=model, data=data, train=train, split=suite.train_split, info=info
    )


def _checksum(checkpoint: str) -> str:
    arrays = sorted(tf1.read_variables(checkpoint).items())
    parts = (np.ascontiguousarray(array) for _, array in arrays)
    return f"{functools.reduce(lambda crc, a: zlib.crc32(a, crc), parts, 0):08x}"


def select_rows(suite: Suite, names: list[str]) -> list[Row]:
    """Returns the named rows in table order, or all of them for an empty list."""
    for name in names:
        if name not in suite.rows:
            choices = ", ".join(suite.rows)
            raise UserError(f"--rows={name} is not a row; choose from {choices}")
    return [row for row in suite.rows.values() if not names or row.name in names]


def _trained_row(row: Row, suite: Suite) -> Row:
    return suite.rows[row.trained_by] if row.trained_by else row


def make_experiment(row: Row, seed: int, bench: Bench) -> Experiment:
    """Returns the base experiment with the changes and the seed of a row."""
    row, base = _trained_row(row, bench.suite), bench.experiment
    checkpoint = base.train.tf_initial_checkpoint
    model = base.model.with_official_flags(row.model)
    changes = {"mean_pixel": model.mean_pixel, "seed": seed, **row.data}
    train = dataclasses.replace(
        base.train,
        tf_initial_checkpoint=checkpoint if row.from_checkpoint else None,
        train_logdir=os.path.join(bench.output_dir, row.name, f"seed{seed}"),
        **row.train,
    )
    if row.teacher:
        teacher = make_experiment(bench.suite.rows[row.teacher], seed, bench)
        train = dataclasses.replace(train, teacher=_prefix(teacher))
    data = dataclasses.replace(base.data, **changes)
    return dataclasses.replace(base, model=model, data=data, train=train)


def make_evaluation(row: Row, bench: Bench) -> EvalConfig:
    """Returns the evaluation settings of a row."""
    ignore_label = bench.experiment.info.ignore_label
    return dataclasses.replace(
        bench.suite.evaluation, ignore_label=ignore_label, **row.evaluation
    )


def make_settings(row: Row, bench: Bench) -> dict:
    """Returns everything except the seed that determines a score, for JSON.

    Records and weights are identified by their hashes, not by their paths.
    """
    experiment = make_experiment(row, 0, bench)
    trained = _trained_row(row, bench.suite)
    settings = dataclasses.asdict(experiment)
    for name in ("dataset_dir", "seed"):
        del settings["data"][name]
    for name in ("tf_initial_checkpoint", "train_logdir", "teacher"):
        del settings["train"][name]
    info = experiment.info
    settings |= {
        "info": {"name": info.name, "content_hashes": info.content_hashes},
        "checkpoint": bench.checksum if trained.from_checkpoint else None,
        "replicas": trained.replicas,
        "teacher": trained.teacher,
        "evaluation": dataclasses.asdict(make_evaluation(row, bench)),
        "eval_output_stride": row.eval_output_stride or experiment.model.output_stride,
    }
    return json.loads(json.dumps(settings))


def train(experiment: Experiment, strategy: tf.distribute.Strategy) -> int:
    """Trains a model or resumes a killed run; returns the first step."""
    config, data = experiment.train, experiment.data
    folder = config.train_logdir
    if tf.io.gfile.isdir(folder) and resume.read_experiment(folder) != experiment:
        tf.io.gfile.rmtree(folder)
    if tf.io.gfile.exists(f"{_prefix(experiment)}.index"):
        return config.training_number_of_steps
    resume.write_experiment(experiment, folder)
    keras.utils.set_random_seed(data.seed)
    with strategy.scope():
        model = build_model(experiment.model)
    if config.tf_initial_checkpoint:
        report = tf1.load_tf1_checkpoint(model, config.tf_initial_checkpoint)
        print(f"{config.tf_initial_checkpoint}: {report}")
    trainer = Trainer(model, config)
    if latest := trainer.restore_latest():
        print(f"resuming from {latest}")
    first_step = trainer.step
    trainer.train(load_dataset(data, experiment.split, True, trainer.samples))
    return first_step


def _prefix(experiment: Experiment) -> str:
    """Returns the prefix of the final checkpoint."""
    config = experiment.train
    name = f"{tf1.NAME}-{config.training_number_of_steps}"
    return os.path.join(config.train_logdir, name)


def score(row: Row, experiment: Experiment, bench: Bench) -> dict:
    """Returns the metrics of a trained row by split, including trimaps."""
    info, config = experiment.info, experiment.model
    stride = row.eval_output_stride or config.output_stride
    model, prefix = build_model(config.at_output_stride(stride)), _prefix(experiment)
    require_complete(tf1.load_tf1_checkpoint(model, prefix), prefix, model)
    data = dataclasses.replace(experiment.data, batch_size=1)
    evaluator = Evaluator(model, make_evaluation(row, bench))
    scores = {}
    for split in bench.suite.eval_splits:
        # Unlike VOC, CamVid has no void pixels around objects.
        trimap = TrimapCurve(info.num_classes, info.ignore_label, around="classes")
        images = load_dataset(data, split, training=False)
        metrics = evaluator.evaluate(images, measures=[trimap])
        kept = {name: metrics[name] for name in ("images", "miou", "iou_per_class")}
        scores[split] = kept | {"trimap": trimap.metrics()}
    return scores


def run(row: Row, seed: int, bench: Bench, strategy: tf.distribute.Strategy) -> dict:
    """Trains and scores a row; returns metrics and provenance."""
    _free_graphs()
    experiment = make_experiment(row, seed, bench)
    start, cpu_start = time.monotonic(), time.process_time()
    first_step = train(experiment, strategy)
    trained, cpu_seconds = time.monotonic(), time.process_time() - cpu_start
    _free_graphs()
    scores = score(row, experiment, bench)
    origin = measuring.provenance()
    first, *others = bench.suite.eval_splits
    return scores[first] | {
        "other_splits": {split: scores[split] for split in others},
        "seed": seed,
        "steps": experiment.train.training_number_of_steps,
        "first_step": first_step,
        "train_seconds": round(trained - start, 1),
        "train_cpu_seconds": round(cpu_seconds, 1),
        "evaluate_seconds": round(time.monotonic() - trained, 1),
        "code": origin["code"],
        "versions": {n: x for n, x in origin["versions"].items() if n in _VERSIONS},
        "hardware": origin["hardware"],
    }


def _free_graphs() -> None:
    keras.backend.clear_session()
    gc.collect()


def result_path(folder: str, row: str) -> str:
    """Returns the path of a row's results."""
    return os.path.join(folder, f"{row}.json")


def read_results(folder: str, rows: Iterable[str]) -> dict[str, list[dict]]:
    """Returns the runs in a folder by row; rows without a file have none."""
    results: dict[str, list[dict]] = {}
    for name in rows:
        path, results[name] = result_path(folder, name), []
        if os.path.exists(path):
            with open(path) as file:
                results[name] = json.load(file)["runs"]
    return results


def finished_runs(row: Row, bench: Bench) -> list[dict]:
    """Returns the stored runs of a row that have its current settings, by seed."""
    path = result_path(bench.output_dir, row.name)
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path) as file:
        result = json.load(file)
    is_current = result["settings"] == make_settings(row, bench)
    return result["runs"] if is_current else []


def finish(row: Row, bench: Bench, strategy: tf.distribute.Strategy) -> None:
    """Runs the missing seeds of a row and saves each run."""
    runs = finished_runs(row, bench)
    for seed in range(bench.seeds if row.has_several_seeds else 1):
        if seed in (done["seed"] for done in runs):
            print(f"{row.name}, seed {seed}: kept")
            continue
        print(f"{row.name}, seed {seed}:", flush=True)
        runs.append(run(row, seed, bench, strategy))
        result = {
            "row": row.name,
            "settings": make_settings(row, bench),
            "runs": sorted(runs, key=lambda done: done["seed"]),
        }
        text = json.dumps(result, indent=2) + "\n"
        outputs.write_text(text, result_path(bench.output_dir, row.name))
        print(f"{row.name}, seed {seed}: mIoU {100 * runs[-1]['miou']:.2f}%")


def make_strategies(rows: list[Row], suite: Suite) -> dict[int, tf.distribute.Strategy]:
    """Returns strategies by number of replicas; call it before any device is used."""
    return {
        count: distribution.make_strategy(
            "one_device" if count == 1 else "mirrored", count, clone_on_cpu=True
        )
        for count in {_trained_row(row, suite).replicas for row in rows}
    }


def run_suite(
    suite: Suite, values: absl_flags.FlagValues, reports: list[str]
) -> dict[str, list[dict]]:
    """Runs the missing seeds of the selected rows; returns all finished runs by row.

    `reports` names the files that the caller writes into `output_dir`.
    """
    rows = select_rows(suite, values.rows)
    strategies = make_strategies(rows, suite)
    bench = make_bench(suite, values)
    tf.io.gfile.makedirs(bench.output_dir)
    # Copied results may be extended.
    names = [*reports, *(f"{row.name}.json" for row in rows)]
    outputs.claim(bench.output_dir, names, overwrite=True)
    for row in rows:
        finish(row, bench, strategies[_trained_row(row, suite).replicas])
    return {name: finished_runs(row, bench) for name, row in suite.rows.items()}
