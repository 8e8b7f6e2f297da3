"""Images per second of the training pipeline, and of decoding alone.

    python -m benchmarks.input_pipeline --dataset_dir=tfrecord

Decoding alone is `tf.io.decode_jpeg` or `decode_png` of the same records in a parallel
`map`, as fast as TensorFlow does it, without checks, scaling, cropping and batching.
Both are measured in turns, each turn with a new iterator; medians over the turns are
printed. With --grow=10000 also the same for copies of the first 100 records, and of as
many as are asked for, with the seconds to the first batch.
"""

import os
import statistics
import tempfile
import time

import deeplab_tf.programs

# isort: split
import tensorflow as tf
from absl import flags

from deeplab_tf.config import DataConfig
from deeplab_tf.data import records
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.flags import size_value

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "dataset_dir", None, "Folder of the TFRecords.", flag_values=FLAGS, required=True
)
flags.DEFINE_string("train_split", "train", "Split to read.", flag_values=FLAGS)
flags.DEFINE_multi_string("train_crop_size", "513,513", "Crop.", flag_values=FLAGS)
flags.DEFINE_integer("train_batch_size", 8, "Images per batch.", flag_values=FLAGS)
flags.DEFINE_integer("images", 640, "Images of a turn.", flag_values=FLAGS)
flags.DEFINE_integer("turns", 9, "Turns of each.", flag_values=FLAGS)
flags.DEFINE_integer(
    "grow", 0, "Records of the large copy; 0 makes none.", flag_values=FLAGS
)


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


def compare(values: flags.FlagValues) -> None:
    """Prints the training pipeline beside decoding alone."""
    paths = records.shard_paths(values.dataset_dir, values.train_split)
    config = _config(values, values.dataset_dir)
    training, alone = [], []
    for _ in range(values.turns):
        alone.append(measured(decoding(paths), values.images, 1))
        pipeline = load_dataset(config, values.train_split, training=True)
        training.append(measured(pipeline, values.images, config.batch_size))
    training, alone = statistics.median(training), statistics.median(alone)
    print(f"decoding alone     {alone:8.0f} images/s")
    print(f"training pipeline  {training:8.0f} images/s, {training / alone:.2f} of it")


def _config(values: flags.FlagValues, folder: str) -> DataConfig:
    return DataConfig(
        folder,
        crop_size=size_value(values, "train_crop_size"),
        batch_size=values.train_batch_size,
    )


def compare_sizes(values: flags.FlagValues) -> None:
    """Prints the training pipeline for a small and a large copy of the records."""
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
        for count in configs:
            rate, start = (statistics.median(x[count]) for x in (rates, starts))
            print(f"{count:6d} records {rate:8.0f} images/s, first batch {start:.2f} s")


def main(values: flags.FlagValues) -> None:
    """Measures and prints."""
    compare(values)
    if values.grow:
        compare_sizes(values)


if __name__ == "__main__":
    deeplab_tf.programs.run_program(main, FLAGS)
