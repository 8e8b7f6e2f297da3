"""TFRecord shards to batches; every sample a function of (seed, epoch, index)."""

import re
from collections.abc import Iterator

import tensorflow as tf

from deeplab_tf.config import DataConfig
from deeplab_tf.data import augment, records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError

# Encoded samples held for shuffling: all of VOC train, about 0.2 GB.
_SHUFFLE_BUFFER = 2048


def _checked(image, label, name, info: DatasetInfo):
    """Returns a sample after refusing sizes and labels that cannot be right."""
    same_size = tf.debugging.Assert(
        tf.reduce_all(tf.shape(image)[:2] == tf.shape(label)[:2]),
        ["image and label of", name, "differ in size", tf.shape(image), "and",
         tf.shape(label)],
    )  # fmt: skip
    values = tf.cast(label, tf.int32)
    valid = (values < info.num_classes) | (values == info.ignore_label)
    known = tf.debugging.Assert(
        tf.reduce_all(valid),
        ["the label of", name, "has the value",
         tf.reduce_max(tf.where(valid, -1, values)), "outside",
         f"0..{info.num_classes - 1} and {info.ignore_label}"],
    )  # fmt: skip
    with tf.control_dependencies([op for op in (same_size, known) if op is not None]):
        return tf.cast(image, tf.float32), tf.identity(label)


def _prepare(record, config: DataConfig, info: DatasetInfo):
    """Returns float32 image and uint8 label, resized where that is asked for."""
    image, label = _checked(*records.parse(record), info)
    if config.min_resize_value is None:
        return image, label
    return augment.resize_to_range(
        image,
        label,
        config.min_resize_value,
        config.max_resize_value,
        config.resize_factor,
    )


def _augmented(image, label, seeds, config: DataConfig, info: DatasetInfo):
    image, label = augment.random_scale(
        image,
        label,
        seeds[0],
        config.min_scale_factor,
        config.max_scale_factor,
        config.scale_factor_step_size,
    )
    image, label = augment.pad_to(
        image, label, config.crop_size, config.mean_pixel, info.ignore_label
    )
    image, label = augment.random_crop(image, label, config.crop_size, seeds[1])
    return augment.random_flip(image, label, seeds[2])


def _training(paths, config: DataConfig, info: DatasetInfo, start: int):
    count = sum(1 for _ in batches(tf.data.TFRecordDataset(paths)))
    if count == 0:
        raise UserError(f"the records of {config.dataset_dir} are empty: {paths}")

    def epoch_of_records(epoch):
        """Returns the records in the order of this epoch, with their index."""
        # Of this function's graph alone: the order owes nothing to a global seed.
        tf.random.set_seed(1)
        shuffled = tf.data.TFRecordDataset(paths).shuffle(
            _SHUFFLE_BUFFER,
            seed=config.seed * 1_000_003 + epoch,
            reshuffle_each_iteration=False,
        )
        skipped = tf.where(epoch == start // count, start % count, 0)
        return shuffled.enumerate(epoch * count).skip(tf.cast(skipped, tf.int64))

    def sample(index, record):
        seeds = tf.random.split([config.seed, tf.cast(index, tf.int32)], 3)
        image, label = _prepare(record, config, info)
        return _augmented(image, label, seeds, config, info)

    epochs = tf.data.Dataset.range(start // count, tf.int64.max)
    dataset = epochs.flat_map(epoch_of_records)
    dataset = dataset.map(sample, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(config.batch_size, drop_remainder=True)


def _evaluation(paths, config: DataConfig, info: DatasetInfo):
    dataset = tf.data.TFRecordDataset(paths).map(
        lambda record: _prepare(record, config, info),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    if config.batch_size == 1:
        return dataset.batch(1)
    # Images of one size form a batch, so that nothing is resized or padded.
    return dataset.group_by_window(
        lambda image, _: tf.reduce_sum(tf.shape(image, tf.int64)[:2] * [1 << 20, 1]),
        lambda _, same_size: same_size.batch(config.batch_size),
        window_size=config.batch_size,
    )


def batches(dataset: tf.data.Dataset) -> Iterator:
    """Yields what a dataset holds, telling broken samples in one line.

    Raises:
        UserError: for a record that is cut short, a sample that cannot be decoded
            or has impossible labels.
    """
    try:
        yield from dataset
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        raise UserError(f"a broken sample: {_first_fact(error.message)}") from error


def _first_fact(message: str) -> str:
    """Returns the sentence of a tf.data error that speaks of the data."""
    # "{{node ...}} what happened\n\t [[{{node ...}}]] [Op:...]"
    sentence = re.sub(r"^\{\{.*?\}\}\s*", "", message.split("\n\t [[")[0])
    failed = re.fullmatch(r"assertion failed: \[(.*)\]", sentence, re.S)
    if failed:
        sentence = failed.group(1).replace("] [", " ")
    return " ".join(sentence.split())


def load_dataset(
    config: DataConfig, split: str, training: bool, start: int = 0
) -> tf.data.Dataset:
    """Returns batches of images and labels.

    Args:
        config: Where the records are and how a sample is made.
        split: Official name of the split; `trainaug` is `train_aug`.
        training: Whether samples are shuffled, augmented to the crop size and
            repeated for ever. Otherwise every image comes once, at its own size.
        start: Number of training samples to pass over; those that follow are
            the same as in a run that was never interrupted.

    Returns:
        Pairs of float32 RGB images 0..255 `[batch, height, width, 3]` and uint8
        labels `[batch, height, width, 1]`.

    Raises:
        UserError: if the split has no records.
    """
    info = records.resolve_info(config.dataset, config.dataset_dir)
    paths = records.shard_paths(config.dataset_dir, split)
    if training:
        dataset = _training(paths, config, info, start)
    else:
        dataset = _evaluation(paths, config, info)
    return dataset.prefetch(tf.data.AUTOTUNE)
