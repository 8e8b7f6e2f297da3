"""What the labels of a split hold: class weights, and images worth repeating."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf.data.info import DatasetInfo, split_name
from deeplab_tf.data.reader import Reader, iterate_batches
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError


class LabelCounts(NamedTuple):
    """What was counted in the labels of a split.

    Attributes:
        class_pixels: Labelled pixels of each class, int64 `[num_classes]`.
        class_image_pixels: Labelled pixels of the images that hold each class,
            int64 `[num_classes]`.
        holds: Whether an image holds a class, bool `[images, num_classes]`.
    """

    class_pixels: np.ndarray
    class_image_pixels: np.ndarray
    holds: np.ndarray


def _value_counts(reader: Reader, count: int) -> tf.data.Dataset:
    """Returns the pixels of each label value, int64 `[256]`, record by record."""

    def counts_of(position):
        label = tf.reshape(tf.cast(reader.read_label(position), tf.int32), [-1])
        return tf.math.bincount(label, minlength=256, maxlength=256, dtype=tf.int64)

    dataset = tf.data.Dataset.range(count)
    return dataset.map(counts_of, num_parallel_calls=tf.data.AUTOTUNE)


def label_values(reader: Reader, count: int) -> np.ndarray:
    """Returns the pixels of each label value in the first `count` records, `[256]`.

    Raises:
        UserError: for a broken record; names it.
    """
    counts = iterate_batches(_value_counts(reader, count))
    return sum((values.numpy() for values in counts), np.zeros(256, np.int64))


def count_labels(source: Source) -> LabelCounts:
    """Returns the counts of a split, after decoding all of its labels.

    Raises:
        UserError: for a broken record; names it.
    """
    info, count = source.info, len(source.index)
    pixels = np.zeros(info.num_classes, np.int64)
    image_pixels = np.zeros(info.num_classes, np.int64)
    holds = np.zeros((count, info.num_classes), bool)
    for i, values in enumerate(iterate_batches(_value_counts(Reader(source), count))):
        counts = values.numpy()
        counts[info.ignore_label] = 0
        counts = counts[: info.num_classes]
        holds[i] = counts > 0
        pixels += counts
        image_pixels += holds[i] * counts.sum()
    return LabelCounts(pixels, image_pixels, holds)


def median_frequency_weights(
    class_pixels: Sequence[int], class_image_pixels: Sequence[int]
) -> tuple[float, ...]:
    """Returns a weight per class: the median of all class frequencies by its own.

    The frequency of a class is its share of the labelled pixels of those images that
    hold it (Eigen and Fergus, arXiv:1411.4734, Sec. 6.3.2). Classes that no image
    holds have no frequency, and weight 1.

    Args:
        class_pixels: Labelled pixels of each class.
        class_image_pixels: Labelled pixels of the images that hold each class.
    """
    pixels = np.asarray(class_pixels, np.float64)
    there = pixels > 0
    frequency = pixels[there] / np.asarray(class_image_pixels)[there]
    weights = np.ones(len(pixels))
    weights[there] = np.median(frequency) / frequency
    return tuple(weights.tolist())


def class_weights(source: Source, split: str) -> tuple[float, ...]:
    """Returns the median frequency weights of a split.

    From the counts in its info where they are, else its labels are decoded.
    """
    info, split = source.info, split_name(split)
    if split in info.class_pixels and split in info.class_image_pixels:
        counts = info.class_pixels[split], info.class_image_pixels[split]
    else:
        counts = count_labels(source)[:2]
    return median_frequency_weights(*counts)


def class_ids(names: Sequence[str], info: DatasetInfo) -> list[int]:
    """Returns the ids of classes by their names; case and spaces do not count.

    Raises:
        UserError: for a name that is not there; lists those that are.
    """
    ids = {_plain(name): i for i, name in enumerate(info.class_names)}
    for name in names:
        if _plain(name) not in ids:
            raise UserError(
                f"{info.name} has no class {name!r}; its classes are "
                f"{', '.join(info.class_names)}"
            )
    return [ids[_plain(name)] for name in names]


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def epoch_positions(source: Source, bootstrap_classes: Sequence[str]) -> np.ndarray:
    """Returns the positions of the records of an epoch, int64.

    Args:
        source: The records.
        bootstrap_classes: Names of classes; images that hold one of them come twice
            (DeepLabv3, arXiv:1706.05587, Sec. 4.3).
    """
    positions = np.arange(len(source.index), dtype=np.int64)
    if not bootstrap_classes:
        return positions
    ids = class_ids(bootstrap_classes, source.info)
    hard = count_labels(source).holds[:, ids].any(axis=1)
    return np.concatenate([positions, positions[hard]])
