"""Images per second of the training pipeline, and of decoding alone.

    python -m benchmarks.input_pipeline --dataset_dir=tfrecord

Decoding alone is `tf.io.decode_jpeg` or `decode_png` of the same records in a parallel
`map`, as fast as TensorFlow does it, without checks, scaling, cropping and batching.
Both are measured in turns, each turn with a new iterator; medians over the turns are
printed. With --grow=10000 also the same for copies of the first 100 records, and of as
many as are asked for, with the seconds to the first batch. With --training_steps=5 also
steps of training on the records beside steps on one batch in memory.
"""

import os
import statistics
import tempfile
import time

import benchmarks.quiet_tensorflow  # noqa: F401

# isort: split
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from benchmarks.measuring import Contender
from deeplab_tf.config import DataConfig
from deeplab_tf.data import records
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.flags import size_value
from deeplab_tf.programs import run_program

_HERE = "benchmarks.contenders"


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "dataset_dir",
        None,
        "Folder of the TFRecords.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_string("train_split", "train", "Split to read.", flag_values=values)
    flags.DEFINE_multi_string("train_crop_size", "513,513", "Crop.", flag_values=values)
    flags.DEFINE_integer("train_batch_size", 8, "Images per batch.", flag_values=values)
    flags.DEFINE_integer("images", 640, "Images of a turn.", flag_values=values)
    flags.DEFINE_integer(
        "training_steps",
        0,
        "Steps of a turn of training; 0 has none.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "model_variant", "mobilenet_v2", "To train.", flag_values=values
    )
    measuring.define_flags(values, turns=9)
    flags.DEFINE_integer(
        "grow", 0, "Records of the large copy; 0 makes none.", flag_values=values
    )
    return values


def decoding(paths: list[str]) -> tf.data.Dataset:
    """Returns decoded images and labels, over and over."""

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


def measured(dataset: tf.data.Dataset, images: int, per_element: int) -> float:
    """Returns images per second, after a warm-up of a third as many."""
    iterator = iter(dataset)
    for _ in range(images // per_element // 3):
        next(iterator)
    start = time.perf_counter()
    for _ in range(images // per_element):
        next(iterator)
    return images / (time.perf_counter() - start)


def first_batch(config: DataConfig, split: str) -> float:
    """Returns the seconds from nothing to the first batch."""
    start = time.perf_counter()
    next(iter(load_dataset(config, split, training=True)))
    return time.perf_counter() - start


def copy_records(paths: list[str], folder: str, count: int) -> None:
    """Writes the first 100 records over and over, `count` in all, into four shards."""
    dataset = tf.data.TFRecordDataset(paths).take(100).repeat().take(count)
    contents = iter(dataset.as_numpy_iterator())
    for shard in range(4):
        path = os.path.join(folder, f"train-{shard:05d}-of-00004.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(count // 4):
                writer.write(next(contents))


def compare(values: flags.FlagValues) -> tuple[dict, str]:
    """Returns images per second of the training pipeline and of decoding alone."""
    paths = records.shard_paths(values.dataset_dir, values.train_split)
    config = _config(values, values.dataset_dir)
    training, alone = [], []
    for _ in range(values.turns):
        alone.append(measured(decoding(paths), values.images, 1))
        pipeline = load_dataset(config, values.train_split, training=True)
        training.append(measured(pipeline, values.images, config.batch_size))
    share = measuring.spread(np.divide(training, alone))
    result = {
        "decoding": statistics.median(alone),
        "pipeline": statistics.median(training),
        "share": share,
    }
    return result, (
        "| | images/s | of decoding (quartiles) |\n|---|---|---|\n"
        f"| decoding alone | {result['decoding']:.0f} | |\n"
        f"| training pipeline | {result['pipeline']:.0f} | "
        "{median:.3f} ({low:.3f}..{high:.3f}) |".format(**share)
    )


def _config(values: flags.FlagValues, folder: str) -> DataConfig:
    return DataConfig(
        folder,
        crop_size=size_value(values, "train_crop_size"),
        batch_size=values.train_batch_size,
    )


def compare_sizes(values: flags.FlagValues) -> tuple[dict, str]:
    """Returns speed and start of the pipeline on a small and a large copy."""
    paths = records.shard_paths(values.dataset_dir, values.train_split)
    with tempfile.TemporaryDirectory() as folder:
        configs = {}
        for count in (100, values.grow):
            configs[count] = _config(values, os.path.join(folder, str(count)))
            os.mkdir(configs[count].dataset_dir)
            copy_records(paths, configs[count].dataset_dir, count)
        rates, starts = {c: [] for c in configs}, {c: [] for c in configs}
        for _ in range(values.turns):
            for count, config in configs.items():
                starts[count].append(first_batch(config, "train"))
                dataset = load_dataset(config, "train", training=True)
                rate = measured(dataset, values.images, config.batch_size)
                rates[count].append(rate)
    result, lines = {}, ["| records | images/s | first batch |", "|---|---|---|"]
    for count in configs:
        rate, start = (statistics.median(x[count]) for x in (rates, starts))
        result[count] = {"images_per_second": rate, "first_batch_seconds": start}
        lines.append(f"| {count} | {rate:.0f} | {start:.2f} s |")
    return result, "\n".join(lines)


def compare_training(values: flags.FlagValues) -> tuple[list[dict], str]:
    """Returns rows of training on records and on a batch in memory."""
    task = {
        "model": {"model_variant": values.model_variant, "output_stride": 16},
        "batch": values.train_batch_size,
        "size": list(size_value(values, "train_crop_size")),
        "times": values.training_steps,
    }
    place = {"dataset_dir": values.dataset_dir, "split": values.train_split}
    memory, on_records = "batch in memory", "records"
    several = [
        Contender(memory, f"{_HERE}:training_step", task),
        Contender(on_records, f"{_HERE}:training_on_records", task | place),
    ]
    series = measuring.measure(several, values.turns)
    rows = measuring.compared(series, memory, values.training_steps)
    throughput = 1 / rows[1]["ratio"]["median"]
    return rows, (
        f"{measuring.table(rows, memory, 'step')}\n\n"
        f"training on records has {throughput:.3f} of the throughput"
    )


def main(values: flags.FlagValues) -> None:
    """Measures and prints."""
    result, text = compare(values)
    whole, texts = {"pipeline": result}, [text]
    if values.grow:
        whole["sizes"], text = compare_sizes(values)
        texts.append(text)
    if values.training_steps:
        whole["training"], text = compare_training(values)
        texts.append(text)
    measuring.report(values, "The training pipeline", whole, "\n\n".join(texts))


if __name__ == "__main__":
    run_program(__name__)
