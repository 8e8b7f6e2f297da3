"""Images per second of the training pipeline, and of decoding alone.

    python -m benchmarks.input_pipeline --dataset_dir=tfrecord

Decoding alone is `tf.io.decode_jpeg` or `decode_png` of the same records in a parallel
`map`, as fast as TensorFlow does it, without checks, scaling, cropping and batching.
Both are measured in turns, each turn with a new iterator; printed are medians over the
turns. --training_steps=5 also compares training on the records with training on one
batch in memory.
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
from deeplab_tf.flags import size_value
from deeplab_tf.programs import run_program


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=9,
        dataset_dir=(..., "Folder of the TFRecords."),
        train_split=("train", "Split to read."),
        train_crop_size=((513, 513), "Crop."),
        train_batch_size=(8, "Images per batch.", 1),
        images=(640, "Images of a turn.", 1),
        training_steps=(0, "Steps of a turn of training; 0 has none."),
        model_variant=("mobilenet_v2", "To train."),
    )


def decode_records(paths: list[str]) -> tf.data.Dataset:
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


def images_per_second(dataset: tf.data.Dataset, images: int, per_element: int) -> float:
    """Measures a dataset, after a warm-up of a third as many images."""
    iterator = iter(dataset)
    for _ in range(images // per_element // 3):
        next(iterator)
    start = time.perf_counter()
    for _ in range(images // per_element):
        next(iterator)
    return images / (time.perf_counter() - start)


def compare_decoding(values: flags.FlagValues) -> tuple[dict, str]:
    """Returns images per second of the training pipeline and of decoding alone."""
    paths = records.shard_paths(values.dataset_dir, values.train_split)
    config = DataConfig(
        values.dataset_dir,
        crop_size=size_value(values, "train_crop_size"),
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
    return result, (
        "| | images/s | of decoding (quartiles) |\n|---|---|---|\n"
        f"| decoding alone | {result['decoding']:.0f} | |\n"
        f"| training pipeline | {result['pipeline']:.0f} | "
        "{median:.3f} ({low:.3f}..{high:.3f}) |".format(**result["share"])
    )


def compare_training(values: flags.FlagValues) -> tuple[list[dict], str]:
    """Returns rows of training on records and on a batch in memory."""
    task = {
        "model": {"model_variant": values.model_variant, "output_stride": 16},
        "batch": values.train_batch_size,
        "size": list(size_value(values, "train_crop_size")),
        "times": values.training_steps,
    }
    on_records = {"records": [values.dataset_dir, values.train_split]}
    several = [
        Contender("batch in memory", "training_step", task),
        Contender("records", "training_step", task | on_records),
    ]
    series = measuring.measure(several, values.turns)
    rows = measuring.summarize(series, values.training_steps)
    throughput = 1 / rows[1]["ratio"]["median"]
    return rows, (
        f"{measuring.table(rows, 'step')}\n\n"
        f"training on records has {throughput:.3f} of the throughput"
    )


def main(values: flags.FlagValues) -> None:
    """Measures and prints."""
    found = {"pipeline": compare_decoding(values)}
    if values.training_steps:
        found["training"] = compare_training(values)
    result = {name: numbers for name, (numbers, _) in found.items()}
    texts = "\n\n".join(text for _, text in found.values())
    measuring.report(values, "The training pipeline", result, texts)


if __name__ == "__main__":
    run_program(__name__)
