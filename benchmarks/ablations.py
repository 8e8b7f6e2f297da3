r"""Repeats the papers' ablations on CamVid at a small scale.

    python -m benchmarks.ablations --dataset_dir=tfrecord/camvid \
      --tf_initial_checkpoint=deeplabv3_mnv2_pascal_trainval/model.ckpt \
      --output_dir=ablations

A row (`benchmarks/ablation_rows.py`) trains a MobileNetV2 on `train` for 300 steps of
small crops, or evaluates the model of another row differently; scores are on `val`.
--rows=dense,bilinear runs only these and, if missing, the training that they share.
`decoder` and `bilinear` are trained with several seeds, to estimate the noise of a
score; all other rows with one.

Results go to <output_dir>/<row>.json and are reused until the settings change. Killed
runs resume from <output_dir>/<row>/seed<n>. <output_dir>/ablations.md compares
all finished rows with the papers.

On one CPU core, a step of the base takes about a second; all 18 training runs and
the evaluations take two and a half hours. Checkpoints take 1.1 GB.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import dataclasses
import functools
import gc
import json
import os
import time
import zlib

import keras
import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from benchmarks import ablation_report, measuring
from benchmarks.ablation_report import result_path
from benchmarks.ablation_rows import BASE, BASE_EVALUATION, ROWS, Row
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
from deeplab_tf.programs import run_program
from deeplab_tf.training import distribution, resume
from deeplab_tf.training.trainer import Trainer
from deeplab_tf.visualize import encode_png

_TRAIN, _VAL = "train", "val"
_REPORT, _CURVES = "ablations.md", "trimap.png"
_VERSIONS = ("python", "tensorflow", "keras", "numpy")


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = measuring.make_flags(
        tf_initial_checkpoint=(..., "Official MobileNetV2 of PASCAL VOC."),
        output_dir=(..., "Folder of results and checkpoints."),
        rows=([], f"Rows to run: {', '.join(ROWS)}; default: all."),
        steps=(300, "Training steps.", 1),
        seeds=(3, "Seeds of decoder and bilinear.", 1),
    )
    flags.define_dataset_location(values)
    return values


@dataclasses.dataclass(frozen=True)
class Bench:
    """Settings that all rows share."""

    experiment: Experiment  # the base, from the official checkpoint
    checksum: str  # of the checkpoint's weights
    output_dir: str
    seeds: int  # for rows that have several


def make_bench(values: absl_flags.FlagValues) -> Bench:
    """Returns the shared settings from the flags."""
    flags.require_dataset_dir(values.dataset, values.dataset_dir)
    folder = values.dataset_dir or ""
    info = sources.resolve_info(values.dataset, folder)
    source = sources.open_split(info.name, folder, _TRAIN)
    sources.open_split(info.name, folder, _VAL)
    checkpoint = tf1.resolve(values.tf_initial_checkpoint)
    # Square roots, because full weights for rare classes cost the frequent ones more.
    weights = np.sqrt(statistics.class_weights(source, _TRAIN))
    train = dataclasses.replace(
        BASE.train,
        training_number_of_steps=values.steps,
        label_weights=tuple(weights.round(4).tolist()),
        ignore_label=info.ignore_label,
        tf_initial_checkpoint=checkpoint,
    )
    experiment = make_base(folder, info, train)
    return Bench(experiment, _checksum(checkpoint), values.output_dir, values.seeds)


def make_base(dataset_dir: str, info: DatasetInfo, train: TrainConfig) -> Experiment:
    """Returns the base experiment on the records of a folder."""
    model = dataclasses.replace(
        BASE.model, num_classes=info.num_classes, channels=info.channels
    )
    data = dataclasses.replace(BASE.data, dataset_dir=dataset_dir, dataset=info.name)
    return dataclasses.replace(
        BASE, model=model, data=data, train=train, split=_TRAIN, info=info
    )


def _checksum(checkpoint: str) -> str:
    arrays = sorted(tf1.read_variables(checkpoint).items())
    parts = (np.ascontiguousarray(array) for _, array in arrays)
    return f"{functools.reduce(lambda crc, a: zlib.crc32(a, crc), parts, 0):08x}"


def select_rows(names: list[str]) -> list[Row]:
    """Returns the named rows in table order, or all of them for an empty list."""
    for name in names:
        if name not in ROWS:
            choices = ", ".join(ROWS)
            raise UserError(f"--rows={name} is not an ablation; choose from {choices}")
    return [row for row in ROWS.values() if not names or row.name in names]


def _trained_row(row: Row) -> Row:
    return ROWS[row.trained_by] if row.trained_by else row


def make_experiment(row: Row, seed: int, bench: Bench) -> Experiment:
    """Returns the base experiment with the changes and the seed of a row."""
    row, base = _trained_row(row), bench.experiment
    checkpoint = base.train.tf_initial_checkpoint
    model = base.model.with_official_flags(row.model)
    data = dataclasses.replace(base.data, mean_pixel=model.mean_pixel, seed=seed)
    train = dataclasses.replace(
        base.train,
        tf_initial_checkpoint=checkpoint if row.from_checkpoint else None,
        train_logdir=os.path.join(bench.output_dir, row.name, f"seed{seed}"),
        **row.train,
    )
    return dataclasses.replace(base, model=model, data=data, train=train)


def make_evaluation(row: Row, bench: Bench) -> EvalConfig:
    """Returns the evaluation settings of a row."""
    ignore_label = bench.experiment.info.ignore_label
    return dataclasses.replace(
        BASE_EVALUATION, ignore_label=ignore_label, **row.evaluation
    )


def make_settings(row: Row, bench: Bench) -> dict:
    """Returns everything except the seed that determines a score, for JSON.

    Records and weights are identified by their hashes, not by their paths.
    """
    experiment = make_experiment(row, 0, bench)
    trained, settings = _trained_row(row), dataclasses.asdict(experiment)
    for name in ("dataset_dir", "seed"):
        del settings["data"][name]
    for name in ("tf_initial_checkpoint", "train_logdir"):
        del settings["train"][name]
    info = experiment.info
    settings |= {
        "info": {"name": info.name, "content_hashes": info.content_hashes},
        "checkpoint": bench.checksum if trained.from_checkpoint else None,
        "replicas": trained.replicas,
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
    trainer.train(load_dataset(data, _TRAIN, True, trainer.samples))
    return first_step


def _prefix(experiment: Experiment) -> str:
    """Returns the prefix of the final checkpoint."""
    config = experiment.train
    name = f"{tf1.NAME}-{config.training_number_of_steps}"
    return os.path.join(config.train_logdir, name)


def score(row: Row, experiment: Experiment, bench: Bench) -> dict:
    """Returns the metrics of a trained row on `val`, including trimaps."""
    info, config = experiment.info, experiment.model
    stride = row.eval_output_stride or config.output_stride
    model, prefix = build_model(config.at_output_stride(stride)), _prefix(experiment)
    require_complete(tf1.load_tf1_checkpoint(model, prefix), prefix, model)
    # Unlike VOC, CamVid has no void pixels around objects.
    trimap = TrimapCurve(info.num_classes, info.ignore_label, around="classes")
    data = dataclasses.replace(experiment.data, batch_size=1)
    images = load_dataset(data, _VAL, training=False)
    evaluator = Evaluator(model, make_evaluation(row, bench))
    metrics = evaluator.evaluate(images, measures=[trimap])
    kept = {name: metrics[name] for name in ("images", "miou", "iou_per_class")}
    return kept | {"trimap": trimap.metrics()}


def run(row: Row, seed: int, bench: Bench, strategy: tf.distribute.Strategy) -> dict:
    """Trains and scores a row; returns metrics and provenance."""
    _free_graphs()
    experiment = make_experiment(row, seed, bench)
    start = time.monotonic()
    first_step = train(experiment, strategy)
    trained = time.monotonic()
    _free_graphs()
    metrics = score(row, experiment, bench)
    origin = measuring.provenance()
    return metrics | {
        "seed": seed,
        "steps": experiment.train.training_number_of_steps,
        "first_step": first_step,
        "train_seconds": round(trained - start, 1),
        "evaluate_seconds": round(time.monotonic() - trained, 1),
        "code": origin["code"],
        "versions": {n: x for n, x in origin["versions"].items() if n in _VERSIONS},
        "hardware": origin["hardware"],
    }


def _free_graphs() -> None:
    keras.backend.clear_session()
    gc.collect()


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


def make_strategies(rows: list[Row]) -> dict[int, tf.distribute.Strategy]:
    """Returns strategies by number of replicas; call it before any device is used."""
    return {
        count: distribution.make_strategy(
            "one_device" if count == 1 else "mirrored", count, clone_on_cpu=True
        )
        for count in {_trained_row(row).replicas for row in rows}
    }


def main(values: absl_flags.FlagValues) -> None:
    """Runs missing rows, then compares all finished rows with the papers."""
    rows = select_rows(values.rows)
    strategies = make_strategies(rows)
    bench = make_bench(values)
    tf.io.gfile.makedirs(bench.output_dir)
    # Copied results may be extended.
    names = [_REPORT, _CURVES, *(f"{row.name}.json" for row in rows)]
    outputs.claim(bench.output_dir, names, overwrite=True)
    for row in rows:
        finish(row, bench, strategies[_trained_row(row).replicas])
    results = {name: finished_runs(row, bench) for name, row in ROWS.items()}
    text = ablation_report.markdown(results)
    outputs.write_text(text, os.path.join(bench.output_dir, _REPORT))
    if ablation_report.has_trimaps(results):
        plot = encode_png(ablation_report.plot_trimaps(results))
        outputs.write_bytes(plot, os.path.join(bench.output_dir, _CURVES))
    print(text, end="")


if __name__ == "__main__":
    run_program(__name__)
