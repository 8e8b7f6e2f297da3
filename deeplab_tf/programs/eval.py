"""Scores a checkpoint on a split and writes metrics.json.

python eval.py --checkpoint_dir=logs --dataset_dir=tfrecord --eval_logdir=logs/eval
"""

import dataclasses
import itertools
import json
import os

import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.config import EvalConfig
from deeplab_tf.data import records, sources
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.evaluation.evaluator import class_table, evaluate
from deeplab_tf.presets import report
from deeplab_tf.programs import run_program
from deeplab_tf.programs.restored import (
    experiment_of,
    require_channels,
    restored_model,
)

FLAGS = absl_flags.FlagValues()
_EVALUATION = {
    "eval_scales": "Scales whose probabilities are averaged.",
    "add_flipped_images": "Whether every scale is also seen mirrored.",
    "eval_crop_size": "Size to which images are padded; default: each to its own "
    "next k * output_stride + 1.",
    "eval_batch_size": "Images per forward pass.",
}


def _define() -> None:
    flags.define_model_flags(FLAGS, "eval")
    flags.define_dataset_flags(FLAGS, "eval_split", "val")
    flags.define_fields(FLAGS, EvalConfig, _EVALUATION)
    string, integer = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    string(
        "checkpoint_dir",
        None,
        "Folder or prefix of a checkpoint, official or ours.",
        required=True,
        flag_values=FLAGS,
    )
    string("eval_logdir", None, "Folder of metrics.json.", flag_values=FLAGS)
    integer(
        "eval_interval_secs",
        None,
        "Given: follow a training, scoring each new checkpoint.",
        flag_values=FLAGS,
    )
    integer(
        "max_number_of_evaluations",
        0,
        "Evaluations before the end when following; 0 is no end.",
        flag_values=FLAGS,
    )


_define()


def _evaluate(prefix: str) -> None:
    """Scores one checkpoint, prints the table and writes the metrics."""
    experiment = experiment_of(prefix)
    dataset, dataset_dir = FLAGS.dataset, FLAGS.dataset_dir
    if dataset is None and dataset_dir is None and experiment:
        dataset, dataset_dir = experiment.data.dataset, experiment.data.dataset_dir
    flags.require_dataset_dir(dataset, dataset_dir)
    preset = flags.chosen_preset(FLAGS)
    trained_on = experiment and experiment.data.dataset
    fallback = trained_on or flags.dataset_fallback(preset)
    info = sources.resolve_info(dataset, dataset_dir or "", fallback)
    split = flags.split_value(FLAGS, "eval_split", preset)
    config = EvalConfig(
        **flags.field_values(FLAGS, _EVALUATION, preset and preset.evaluation),
        ignore_label=info.ignore_label,
    )
    model = restored_model(FLAGS, prefix, info.num_classes)
    require_channels(model, info.channels, f"the records of {info.name}")
    data = flags.data_config(
        FLAGS,
        model.model_config,
        preset and preset.data,
        dataset=info.name,
        dataset_dir=dataset_dir or "",
        batch_size=config.eval_batch_size,
    )
    if preset:
        # Of the data an evaluation takes the dataset and the resizing alone.
        names = ("dataset", *flags.RESIZING)
        taken = {name: getattr(data, name) for name in names}
        parts = [
            (preset.eval_model, model.model_config),
            (preset.evaluation, config),
            (preset.data, dataclasses.replace(preset.data, **taken)),
        ]
        print(report(preset, parts, eval_split=split))
    metrics = evaluate(model, load_dataset(data, split, False), config)
    metrics["protocol"] |= {
        "checkpoint": prefix,
        "dataset": info.name,
        "split": split,
        "min_resize_value": data.min_resize_value,
        "max_resize_value": data.max_resize_value,
    }
    metrics["class_names"] = list(info.class_names)
    print(class_table(metrics, info))
    if FLAGS.eval_logdir:
        print(f"written: {_write(metrics, FLAGS.eval_logdir)}")


def _write(metrics: dict, folder: str) -> str:
    """Writes `metrics.json`, whole or not at all, and returns its path."""
    path = os.path.join(folder, "metrics.json")
    tf.io.gfile.makedirs(folder)
    records.write_text(json.dumps(metrics, indent=2) + "\n", path)
    return path


def _follow(folder: str) -> None:
    """Scores every new checkpoint of a folder."""
    checkpoints = tf.train.checkpoints_iterator(folder, FLAGS.eval_interval_secs)
    # No end is 0, which `islice` spells None.
    for prefix in itertools.islice(
        checkpoints, FLAGS.max_number_of_evaluations or None
    ):
        _evaluate(prefix)


def main(values: absl_flags.FlagValues) -> None:
    """Scores once, or follows a training."""
    flags.check_flags(values, "eval")
    if values.eval_interval_secs is not None and values.max_number_of_evaluations != 1:
        _follow(values.checkpoint_dir)
    else:
        _evaluate(tf1.resolve(values.checkpoint_dir))


def run() -> None:
    """Console entry."""
    run_program(main, FLAGS)
