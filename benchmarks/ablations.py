r"""The papers' ablations in small: what each choice of DeepLabv3+ brings, on CamVid.

    python -m benchmarks.ablations --dataset_dir=tfrecord/camvid \
      --tf_initial_checkpoint=deeplabv3_mnv2_pascal_trainval/model.ckpt \
      --output_dir=ablations

A row (`benchmarks/ablation_rows.py`) is a MobileNetV2 that is trained on `train` for
300 steps of small crops, or one of these looked at in another way; it is scored on
`val`. --rows=dense,bilinear runs these alone, and before them the training whose model
a row of evaluation shares, if it is not there. Decoder and naive up-sampling are
trained with several seeds, which tells how far chance moves a score; all other rows
with one.

What is finished stays in <output_dir>/<row>.json and is not run again unless its
settings change; what was killed goes on from its latest checkpoint in
<output_dir>/<row>/seed<n>. At the end all finished rows are compared with the papers,
on the terminal and in <output_dir>/ablations.md.

It runs on the CPU. A step of the base, of 193x257 and batch 8, takes about a second of
one core; bilinear takes least, output stride 8 and dense most. All 18 trainings and the
evaluations are two and a half hours of one core. Checkpoints take 1.1 GB.
"""

import dataclasses
import functools
import gc
import json
import os
import platform
import time
import zlib

import benchmarks.quiet_tensorflow  # noqa: F401

# isort: split
import keras
import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from benchmarks import measuring
from benchmarks.ablation_report import markdown, result_path, trimap_picture
from benchmarks.ablation_rows import BASE, BASE_EVALUATION, BASE_ROW, ROWS, Row
from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.restore import require_complete
from deeplab_tf.config import EvalConfig, Experiment
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
from deeplab_tf.visualize import png_bytes

_TRAIN, _VAL = "train", "val"
_REPORT, _CURVES = "ablations.md", "trimap.png"


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    flags.define_dataset_location(values)
    string, integer = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    string(
        "tf_initial_checkpoint",
        None,
        "Official MobileNetV2 of PASCAL VOC.",
        flag_values=values,
        required=True,
    )
    string(
        "output_dir",
        None,
        "Folder of results and checkpoints.",
        flag_values=values,
        required=True,
    )
    absl_flags.DEFINE_list(
        "rows", [], f"Of {', '.join(ROWS)}; default: all.", flag_values=values
    )
    integer("steps", 300, "Steps of a training.", lower_bound=1, flag_values=values)
    integer(
        "seeds",
        3,
        "Trainings of decoder and bilinear.",
        lower_bound=1,
        flag_values=values,
    )
    return values


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all rows are run with.

    Attributes:
        dataset_dir: Folder of the records.
        info: What they mean.
        label_weights: One weight per class.
        checkpoint: Prefix of the official checkpoint.
        checksum: Of its weights: the same ones elsewhere are no other setting.
        output_dir: Folder of results and checkpoints.
        steps: Steps of a training.
        seeds: Trainings of the rows that have several.
    """

    dataset_dir: str
    info: DatasetInfo
    label_weights: tuple[float, ...]
    checkpoint: str
    checksum: str
    output_dir: str
    steps: int
    seeds: int


def make_bench(values: absl_flags.FlagValues) -> Bench:
    """Returns what the flags say."""
    flags.require_dataset_dir(values.dataset, values.dataset_dir)
    folder = values.dataset_dir or ""
    info = sources.resolve_info(values.dataset, folder)
    source = sources.open_split(info.name, folder, _TRAIN)
    sources.open_split(info.name, folder, _VAL)
    checkpoint = tf1.resolve(values.tf_initial_checkpoint)
    # Square roots: the weights of rare classes themselves cost the others more.
    weights = np.sqrt(statistics.class_weights(source, _TRAIN))
    return Bench(
        dataset_dir=folder,
        info=info,
        label_weights=tuple(weights.round(4).tolist()),
        checkpoint=checkpoint,
        checksum=_checksum(checkpoint),
        output_dir=values.output_dir,
        steps=values.steps,
        seeds=values.seeds,
    )


def _checksum(checkpoint: str) -> str:
    arrays = sorted(tf1.read_variables(checkpoint).items())
    parts = (np.ascontiguousarray(array) for _, array in arrays)
    return f"{functools.reduce(lambda crc, a: zlib.crc32(a, crc), parts, 0):08x}"


def chosen(names: list[str]) -> list[Row]:
    """Returns the rows of some names, in the order of the table; all for none.

    Raises:
        UserError: for a name that is none.
    """
    for name in names:
        if name not in ROWS:
            raise UserError(f"--rows={name} is no ablation; they are {', '.join(ROWS)}")
    return [row for row in ROWS.values() if not names or row.name in names]


def _trained_row(row: Row) -> Row:
    return ROWS[row.trained_by] if row.trained_by else row


def make_experiment(row: Row, seed: int, bench: Bench) -> Experiment:
    """Returns how the model of a row is trained: the base, and where it is left.

    Args:
        row: The row.
        seed: Of weights, order and augmentation.
        bench: What all rows are run with.
    """
    row, info = _trained_row(row), bench.info
    model = dataclasses.replace(
        BASE.model, num_classes=info.num_classes, channels=info.channels
    ).with_official_flags(row.model)
    data = dataclasses.replace(
        BASE.data,
        dataset_dir=bench.dataset_dir,
        dataset=info.name,
        mean_pixel=model.mean_pixel,
        seed=seed,
    )
    train = dataclasses.replace(
        BASE.train,
        training_number_of_steps=bench.steps,
        label_weights=bench.label_weights,
        ignore_label=info.ignore_label,
        tf_initial_checkpoint=bench.checkpoint if row.from_checkpoint else None,
        train_logdir=os.path.join(bench.output_dir, row.name, f"seed{seed}"),
        **row.train,
    )
    return dataclasses.replace(
        BASE, model=model, data=data, train=train, split=_TRAIN, info=info
    )


def make_evaluation(row: Row, bench: Bench) -> EvalConfig:
    """Returns how the model of a row looks at images."""
    ignore_label = bench.info.ignore_label
    return dataclasses.replace(
        BASE_EVALUATION, ignore_label=ignore_label, **row.evaluation
    )


def make_settings(row: Row, bench: Bench) -> dict:
    """Returns all that decides over a score but the seed, as JSON has it.

    Places are left out, for what lies there is told: records by their hashes, weights
    by their checksum.
    """
    experiment = make_experiment(row, 0, bench)
    settings = dataclasses.asdict(experiment)
    for part, names in (
        ("data", ("dataset_dir", "seed")),
        ("train", ("tf_initial_checkpoint", "train_logdir")),
    ):
        for name in names:
            del settings[part][name]
    trained = _trained_row(row)
    settings["info"] = {
        "name": bench.info.name,
        "content_hashes": bench.info.content_hashes,
    }
    settings |= {
        "checkpoint": bench.checksum if trained.from_checkpoint else None,
        "replicas": trained.replicas,
        "evaluation": dataclasses.asdict(make_evaluation(row, bench)),
        "eval_output_stride": row.eval_output_stride or experiment.model.output_stride,
    }
    return json.loads(json.dumps(settings))


def train(experiment: Experiment, strategy: tf.distribute.Strategy) -> int:
    """Trains a model, or what a killed program left of its training.

    Args:
        experiment: How.
        strategy: Which devices share a batch.

    Returns:
        The step it began at.
    """
    config, data = experiment.train, experiment.data
    folder = config.train_logdir
    if tf.io.gfile.isdir(folder) and resume.read_experiment(folder) != experiment:
        tf.io.gfile.rmtree(folder)
    if tf.io.gfile.exists(f"{_last_checkpoint(experiment)}.index"):
        return config.training_number_of_steps
    resume.write_experiment(experiment, folder)
    keras.utils.set_random_seed(data.seed)
    with strategy.scope():
        model = build_model(experiment.model)
    if config.tf_initial_checkpoint:
        report = tf1.load_tf1_checkpoint(model, config.tf_initial_checkpoint)
        print(f"{config.tf_initial_checkpoint}: {report}")
    trainer = Trainer(model, config)
    latest = trainer.restore_latest()
    if latest:
        print(f"going on from {latest}")
    first_step = trainer.step
    trainer.train(load_dataset(data, _TRAIN, True, trainer.samples))
    return first_step


def _last_checkpoint(experiment: Experiment) -> str:
    config = experiment.train
    name = f"{tf1.NAME}-{config.training_number_of_steps}"
    return os.path.join(config.train_logdir, name)


def trained_model(
    experiment: Experiment, output_stride: int | None = None
) -> keras.Model:
    """Returns what `train` made, at another output stride if one is given."""
    stride = output_stride or experiment.model.output_stride
    model = build_model(experiment.model.at_output_stride(stride))
    prefix = _last_checkpoint(experiment)
    require_complete(tf1.load_tf1_checkpoint(model, prefix), prefix, model)
    return model


def score(row: Row, experiment: Experiment, bench: Bench) -> dict:
    """Returns the metrics on the validation split, those of trimaps among them."""
    model = trained_model(experiment, row.eval_output_stride)
    # Nobody drew rims of void around objects, as they did for VOC.
    trimap = TrimapCurve(
        bench.info.num_classes, bench.info.ignore_label, around="classes"
    )
    data = dataclasses.replace(experiment.data, batch_size=1)
    images = load_dataset(data, _VAL, training=False)
    evaluator = Evaluator(model, make_evaluation(row, bench))
    metrics = evaluator.evaluate(images, measures=[trimap])
    kept = {name: metrics[name] for name in ("images", "miou", "iou_per_class")}
    return kept | {"trimap": trimap.metrics()}


def run(row: Row, seed: int, bench: Bench, strategy: tf.distribute.Strategy) -> dict:
    """Returns what came out with a seed, and how it was made."""
    _forget_graphs()
    experiment = make_experiment(row, seed, bench)
    began = time.monotonic()
    first_step = train(experiment, strategy)
    trained = time.monotonic()
    _forget_graphs()
    metrics = score(row, experiment, bench)
    return metrics | {
        "seed": seed,
        "steps": bench.steps,
        "first_step": first_step,
        "train_seconds": round(trained - began, 1),
        "evaluate_seconds": round(time.monotonic() - trained, 1),
        "code": measuring.commit(),
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
        "hardware": measuring.hardware(),
    }


def _forget_graphs() -> None:
    """Gives back the memory of models that nobody uses any more."""
    keras.backend.clear_session()
    gc.collect()


def finished(row: Row, bench: Bench) -> list[dict]:
    """Returns the runs of a row that were made with its present settings, by seed."""
    path = result_path(bench.output_dir, row.name)
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path) as file:
        result = json.load(file)
    is_present = result["settings"] == make_settings(row, bench)
    return result["runs"] if is_present else []


def finish(row: Row, bench: Bench, strategy: tf.distribute.Strategy) -> None:
    """Runs what is missing of a row, and keeps every run as soon as it is done."""
    runs = finished(row, bench)
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
        print(f"{row.name}, seed {seed}: mIoU {100 * runs[-1]['miou']:.2f} %")


def make_strategies(rows: list[Row]) -> dict[int, tf.distribute.Strategy]:
    """Returns strategies by their number of replicas, before any device is used."""
    several = {_trained_row(row).replicas for row in rows}
    return {
        count: distribution.make_strategy(
            "one_device" if count == 1 else "mirrored", count, clone_on_cpu=True
        )
        for count in several
    }


def main(values: absl_flags.FlagValues) -> None:
    """Runs what is missing, then compares what there is with the papers."""
    rows = chosen(values.rows)
    strategies = make_strategies(rows)
    bench = make_bench(values)
    tf.io.gfile.makedirs(bench.output_dir)
    # Results that were copied here are continued.
    names = [_REPORT, _CURVES, *(f"{row.name}.json" for row in rows)]
    outputs.claim(bench.output_dir, names, overwrite=True)
    for row in rows:
        finish(row, bench, strategies[_trained_row(row).replicas])
    results = {name: finished(row, bench) for name, row in ROWS.items()}
    text = markdown(results)
    outputs.write_text(text, os.path.join(bench.output_dir, _REPORT))
    if results[BASE_ROW] and results["bilinear"]:
        path = os.path.join(bench.output_dir, _CURVES)
        outputs.write_bytes(png_bytes(trimap_picture(results)), path)
    print(text, end="")


if __name__ == "__main__":
    run_program(__name__)
