"""Label statistics of a split: class weights and images to repeat in training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf.data.info import DatasetInfo, normalize_split
from deeplab_tf.data.objects import ObjectSizes, measure_objects
from deeplab_tf.data.reader import Reader, iterate_batches
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError

# Number of labels from which object sizes are estimated.
_SAMPLED_LABELS = 200


class LabelCounts(NamedTuple):
    """Pixel counts of a split, without ignored pixels.

    Attributes:
        class_pixels: Pixels of each class, int64 `[num_classes]`.
        class_image_pixels: For each class, the pixels of all images that contain it,
            int64 `[num_classes]`.
        contains: Whether an image contains a class, bool `[images, num_classes]`.
    """

    class_pixels: np.ndarray
    class_image_pixels: np.ndarray
    contains: np.ndarray


def _count_values_by_record(reader: Reader, count: int) -> tf.data.Dataset:
    """Returns a dataset of each record's pixel counts by label value, int64 `[256]`."""

    @tf.autograph.experimental.do_not_convert
    def count_values(position):
        label = tf.reshape(tf.cast(reader.read_label(position), tf.int32), [-1])
        return tf.math.bincount(label, minlength=256, maxlength=256, dtype=tf.int64)

    dataset = tf.data.Dataset.range(count)
    return dataset.map(count_values, num_parallel_calls=tf.data.AUTOTUNE)


def count_label_values(reader: Reader, count: int) -> np.ndarray:
    """Counts the pixels of each label value in the first `count` records, `[256]`."""
    counts = iterate_batches(_count_values_by_record(reader, count))
    return sum((values.numpy() for values in counts), np.zeros(256, np.int64))


def count_labels(source: Source) -> LabelCounts:
    """Counts the labelled pixels of a split by decoding all of its labels."""
    info, count = source.info, len(source.index)
    pixels = np.zeros(info.num_classes, np.int64)
    image_pixels = np.zeros(info.num_classes, np.int64)
    contains = np.zeros((count, info.num_classes), bool)
    for i, values in enumerate(
        iterate_batches(_count_values_by_record(Reader(source), count))
    ):
        counts = values.numpy()
        counts[info.ignore_label] = 0
        counts = counts[: info.num_classes]
        contains[i] = counts > 0
        pixels += counts
        image_pixels += contains[i] * counts.sum()
    return LabelCounts(pixels, image_pixels, contains)


class LabelEstimate(NamedTuple):
    """Label statistics of a split, estimated without reading all labels.

    Attributes:
        split: Name of the split.
        images: Number of images.
        class_pixels: Pixels of each class, `[num_classes]`.
        images_with: Number of images that contain each class, `[num_classes]`.
        objects: Sizes of the objects in a sample of the labels.
    """

    split: str
    images: int
    class_pixels: np.ndarray
    images_with: np.ndarray
    objects: ObjectSizes


def estimate_labels(source: Source, split: str) -> LabelEstimate:
    """Estimates the pixels, images and object sizes of each class in a split.

    Pixels and images come from the counts in the dataset's info if it has them.
    Otherwise they are estimated from evenly spaced labels, like the object sizes.
    """
    info, count = source.info, len(source.index)
    sampled = min(count, _SAMPLED_LABELS)
    positions = np.linspace(0, count - 1, sampled).astype(np.int64)
    dataset = tf.data.Dataset.from_tensor_slices(positions).map(
        Reader(source).read_label, num_parallel_calls=tf.data.AUTOTUNE
    )
    objects = ObjectSizes(info.num_classes)
    pixels = np.zeros(info.num_classes)
    images_with = np.zeros(info.num_classes)
    for label in iterate_batches(dataset):
        label = label.numpy()[..., 0]
        objects.add(measure_objects(label, info.num_classes, info.ignore_label))
        values = np.bincount(label.ravel(), minlength=256)
        values[info.ignore_label] = 0
        pixels += values[: info.num_classes]
        images_with += values[: info.num_classes] > 0
    name = normalize_split(split)
    if name in info.class_pixels and name in info.class_image_pixels:
        pixels = np.array(info.class_pixels[name], np.float64)
        # Assumes that all images have the same number of labelled pixels.
        images_with = info.class_image_pixels[name] / max(1, pixels.sum() / count)
    else:
        pixels, images_with = (x * count / sampled for x in (pixels, images_with))
    return LabelEstimate(name, count, pixels, images_with, objects)


def median_frequency_weights(
    class_pixels: Sequence[int], class_image_pixels: Sequence[int]
) -> tuple[float, ...]:
    """Returns class weights by median frequency balancing.

    The weight of a class is the median of all class frequencies divided by the
    frequency of the class: its fraction of the labelled pixels in images that contain
    it (Eigen and Fergus, arXiv:1411.4734, Sec. 6.3.2). Classes without pixels have
    weight 1.
    """
    pixels = np.asarray(class_pixels, np.float64)
    is_present = pixels > 0
    frequency = pixels[is_present] / np.asarray(class_image_pixels)[is_present]
    weights = np.ones(len(pixels))
    weights[is_present] = np.median(frequency) / frequency
    return tuple(weights.tolist())


def compute_class_weights(source: Source, split: str) -> tuple[float, ...]:
    """Returns the class weights of a split by median frequency balancing.

    Decodes its labels only if the dataset's info has no counts.
    """
    info, split = source.info, normalize_split(split)
    if split in info.class_pixels and split in info.class_image_pixels:
        counts = info.class_pixels[split], info.class_image_pixels[split]
    else:
        counts = count_labels(source)[:2]
    return median_frequency_weights(*counts)


def find_class_ids(names: Sequence[str], info: DatasetInfo) -> list[int]:
    """Returns the ids of the named classes, ignoring case, spaces and punctuation.

    Raises:
        UserError: if a name is unknown.
    """
    ids = {_normalize_name(name): i for i, name in enumerate(info.class_names)}
    for name in names:
        if _normalize_name(name) not in ids:
            raise UserError(
                f"{info.name} has no class {name!r}; its classes are "
                f"{', '.join(info.class_names)}"
            )
    return [ids[_normalize_name(name)] for name in names]


def _normalize_name(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def list_epoch_positions(
    source: Source, bootstrap_classes: Sequence[str]
) -> np.ndarray:
    """Returns the positions in `source` of the records of one epoch, int64.

    Images that contain any of the `bootstrap_classes` (class names) appear twice
    (DeepLabv3, arXiv:1706.05587, Sec. 4.3).
    """
    positions = np.arange(len(source.index), dtype=np.int64)
    if not bootstrap_classes:
        return positions
    ids = find_class_ids(bootstrap_classes, source.info)
    hard = count_labels(source).contains[:, ids].any(axis=1)
    return np.concatenate([positions, positions[hard]])
