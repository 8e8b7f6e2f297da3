"""Benchmarks the training input pipeline against decoding alone.

    python -m benchmarks.input_pipeline --dataset_dir=tfrecord

Decoding alone is a parallel `map` of `tf.io.decode_jpeg` or `decode_png`, without
checks, scaling, cropping or batching. Each turn uses a new iterator. --training_steps=5
also compares training on records with training on one batch in memory.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import statistics
import time

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from benchmarks.measuring import Contender
from deeplab_tf.config import DataConfig
from deeplab_tf.data import records
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.flags import read_size
from deeplab_tf.programs import run_program


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=9,
        dataset_dir=(..., "Folder of the TFRecords."),
        train_split=("train", "Split to read."),
        train_crop_size=((513, 513), "Crop size."),
        train_batch_size=(8, "Images per batch.", 1),
        images=(640, "Images per turn.", 1),
        training_steps=(0, "Training steps per turn; 0 skips training."),
        model_variant=("mobilenet_v2", "Backbone to train."),
    )


def decode_records(paths: list[str]) -> tf.data.Dataset:
    """Returns a repeated dataset of decoded images and labels."""

    def decode(record):
        image, label, _ = records.parse(record)
        image = tf.cond(
            tf.io.is_jpeg(image),
            lambda: tf.io.decode_jpeg(image, channels=3),
            lambda: tf.io.decode_png(image, channels=3),
        )
        return image, tf.io.decode_png(label, channels=1)

    dataset = tf.data.TFRecordDataset(paths).repeat()
    dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def images_per_second(dataset: tf.data.Dataset, images: int, per_element: int) -> float:
    """Measures the throughput after a warm-up of a third of the images."""
    iterator = iter(dataset)
    for _ in range(images // per_element // 3):
        next(iterator)
    start = time.perf_counter()
    for _ in range(images // per_element):
        next(iterator)
    return images / (time.perf_counter() - start)


def compare_decoding(values: flags.FlagValues) -> tuple[dict, str]:
    """Measures the training pipeline and decoding alone."""
    paths = records.find_shards(values.dataset_dir, values.train_split)
    config = DataConfig(
        values.dataset_dir,
        crop_size=read_size(values, "train_crop_size"),
        batch_size=values.train_batch_size,
    )
    training, alone = [], []
    for _ in range(values.turns):
        alone.append(images_per_second(decode_records(paths), values.images, 1))
        pipeline = load_dataset(config, values.train_split, training=True)
        training.append(images_per_second(pipeline, values.images, config.batch_size))
    result = {
        "decoding": statistics.median(alone),
        "pipeline": statistics.median(training),
        "share": measuring.quartiles(np.divide(training, alone)),
    }
    share = "{median:.3f} ({low:.3f}..{high:.3f})".format(**result["share"])
    rows = [
        ["decoding alone", f"{result['decoding']:.0f}", ""],
        ["training pipeline", f"{result['pipeline']:.0f}", share],
    ]
    names = ["", "images/s", "times decoding (quartiles)"]
    return result, measuring.markdown_table(names, rows)


def compare_training(values: flags.FlagValues) -> tuple[list[dict], str]:
    """Measures training on records and on one batch in memory."""
    task = {
        "model": {"model_variant": values.model_variant, "output_stride": 16},
        "batch": values.train_batch_size,
        "size": list(read_size(values, "train_crop_size")),
        "times": values.training_steps,
    }
    on_records = {"records": [values.dataset_dir, values.train_split]}
    contenders = [
        Contender("batch in memory", "training_step", task),
        Contender("records", "training_step", task | on_records),
    ]
    series = measuring.measure(contenders, values.turns)
    rows = measuring.summarize(series, values.training_steps)
    throughput = 1 / rows[1]["ratio"]["median"]
    return rows, (
        f"{measuring.table(rows, 'step')}\n\n"
        f"training on records has {throughput:.3f} times the throughput"
    )


def main(values: flags.FlagValues) -> None:
    """Runs the benchmark."""
    result = {}
    result["pipeline"], text = compare_decoding(values)
    if values.training_steps:
        result["training"], training = compare_training(values)
        text += f"\n\n{training}"
    measuring.report(values, "The training pipeline", result, text)


if __name__ == "__main__":
    run_program(__name__)
