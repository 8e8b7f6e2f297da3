"""Any segmentation data set of tensorflow-datasets, as it is on disk.

`tfds:NAME[:image_key:label_key]` names it, NAME with configuration and version as
tensorflow-datasets writes them. Its records are read like our own, under other keys.
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.reader import Reader
from deeplab_tf.data.source import TFDS_PREFIX, Source
from deeplab_tf.data.statistics import label_values
from deeplab_tf.errors import UserError

_MAX_VALUES = {"uint8": 255, "uint16": 65535}


class _Keys(NamedTuple):
    builder: str
    image: str | None
    label: str | None


def _parse(name: str) -> _Keys:
    """Returns the parts of `tfds:NAME[:image_key:label_key]`."""
    rest = name.removeprefix(TFDS_PREFIX)
    # One colon is that of a version.
    if rest.count(":") < 2:
        return _Keys(rest, None, None)
    return _Keys(*rest.rsplit(":", 2))


@functools.lru_cache
def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Returns the builder, its data downloaded and prepared."""
    try:
        builder = tfds.builder(_parse(name).builder, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        # All the names that there are would follow.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--dataset={name}: tensorflow-datasets has none of that name: {reason}"
        ) from error
    if not builder.is_prepared():
        _prepare(name, builder)
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"--dataset={name} is prepared as {builder.info.file_format.value} in "
            f"{builder.data_dir}; prepare it with file_format='tfrecord'"
        )
    return builder


def _prepare(name: str, builder: tfds.core.DatasetBuilder) -> None:
    try:
        builder.download_and_prepare(file_format="tfrecord")
    except Exception as error:  # the scripts of data sets raise whatever they like
        reason = " ".join(str(error).split())
        raise UserError(f"--dataset={name} cannot be prepared: {reason}") from error


def _images(features, prefix: str = "") -> dict[str, tfds.features.Image]:
    """Returns the image features by their keys, nested ones as `a/b`."""
    found = {}
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            found |= _images(feature, f"{prefix}{key}/")
        elif isinstance(feature, tfds.features.Image):
            found[prefix + key] = feature
    return found


def _the_one(name: str, kind: str, images: dict, candidates: list[str]) -> str:
    if len(candidates) != 1:
        there = ", ".join(f"{key} {image.shape}" for key, image in images.items())
        raise UserError(
            f"--dataset={name}: which feature is the {kind}? Name both as "
            f"{TFDS_PREFIX}NAME:image_key:label_key; images there: {there or 'none'}"
        )
    return candidates[0]


def _features(name: str, builder) -> tuple[str, str]:
    """Returns the keys of image and label: those given, or the only ones there."""
    images, keys = _images(builder.info.features), _parse(name)
    for key in (keys.image, keys.label):
        if key is not None and key not in images:
            raise UserError(
                f"--dataset={name} has no image {key!r}; it has {', '.join(images)}"
            )
    if keys.image is not None:
        return keys.image, keys.label
    labels = [k for k, f in images.items() if isinstance(f, tfds.features.LabeledImage)]
    grey = [k for k, f in images.items() if f.shape[-1] == 1]
    label = _the_one(name, "label", images, labels or grey)
    others = [key for key in images if key != label]
    photos = [key for key in others if key not in labels + grey]
    return _the_one(name, "image", images, photos or others), label


@functools.lru_cache
def describe(name: str, data_dir: str) -> DatasetInfo:
    """Returns what the labels mean.

    The classes are those of a `LabeledImage`. Where the data set does not say them,
    they are 0 to the largest label of its first split but 255, which is ignored.

    Args:
        name: `tfds:NAME[:image_key:label_key]`.
        data_dir: Of tensorflow-datasets; "" is its default.

    Raises:
        UserError: if there is no such data set, or no such feature.
    """
    builder = _builder(name, data_dir)
    image_key, label_key = _features(name, builder)
    images = _images(builder.info.features)
    image, label = images[image_key], images[label_key]
    depth, label_depth = np.dtype(image.np_dtype).name, np.dtype(label.np_dtype).name
    if depth not in _MAX_VALUES or label_depth != "uint8" or label.shape[-1] != 1:
        raise UserError(
            f"--dataset={name}: {image_key} is {depth} {image.shape} and {label_key} "
            f"{label_depth} {label.shape}; images are uint8 or uint16 and labels uint8 "
            "of one channel"
        )
    if getattr(label, "num_classes", None):
        names = label.names
    else:
        names = _numbered(_class_count(name, data_dir, builder))
    return DatasetInfo(
        name=name,
        class_names=tuple(names),
        channels=image.shape[-1],
        max_value=_MAX_VALUES[depth],
        split_sizes={s: i.num_examples for s, i in builder.info.splits.items()},
    )


def _numbered(count: int) -> list[str]:
    return [f"class_{i}" for i in range(count)]


def _class_count(name: str, data_dir: str, builder) -> int:
    splits = sorted(builder.info.splits, key=lambda split: (split != "train", split))
    any_value = DatasetInfo(name, tuple(_numbered(256)))
    keys, index = open_split(name, data_dir, splits[0])
    values = label_values(Reader(Source(any_value, keys, index)), len(index))
    values[any_value.ignore_label] = 0
    if not values.any():
        raise UserError(f"--dataset={name}: the labels of {splits[0]} hold no class")
    return int(np.flatnonzero(values)[-1]) + 1


def open_split(
    name: str, data_dir: str, split: str
) -> tuple[records.Keys, records.RecordIndex]:
    """Returns keys and index of the records of a split.

    Args:
        name: `tfds:NAME[:image_key:label_key]`.
        data_dir: Of tensorflow-datasets; "" is its default.
        split: As tensorflow-datasets writes it, such as `train[:90%]`.

    Raises:
        UserError: if there is no such split, or nothing in it.
    """
    index = _index(name, data_dir, split)
    return records.Keys(*_features(name, _builder(name, data_dir)), ""), index


def _index(name: str, data_dir: str, split: str) -> records.RecordIndex:
    builder = _builder(name, data_dir)
    try:
        parts = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        # The splits would follow, and a link before it.
        reason = str(error).split("\n")[-1].split(". ")[0].rstrip(".")
        raise UserError(
            f"--dataset={name} has no split {split!r}: {reason}; it has "
            f"{', '.join(builder.info.splits)}"
        ) from error
    index = records.index_records([part.filename for part in parts])
    first = np.array([part.skip for part in parts])[index.file]
    count = np.array([part.take for part in parts])[index.file]
    chosen = (index.number >= first) & (index.number - first < count)
    if not chosen.any():
        raise UserError(f"--dataset={name} has no record in {split!r}")
    return index.select(np.flatnonzero(chosen))


def _class_features(name: str, builder) -> tuple[str, str]:
    """Returns the keys of image and class: those given, else `image` and `label`."""
    features, keys = builder.info.features, _parse(name)
    image, label = keys.image, keys.label
    if image is None:
        image, label = "image", "label"
    is_named = isinstance(features, tfds.features.FeaturesDict)
    there = dict(features.items()) if is_named else {}
    for key, kind in ((image, tfds.features.Image), (label, tfds.features.ClassLabel)):
        if not isinstance(there.get(key), kind):
            found = ", ".join(f"{k} ({type(v).__name__})" for k, v in there.items())
            raise UserError(
                f"--dataset={name} has no {kind.__name__} {key!r}; a data set of "
                f"classified images has one of each, named as {TFDS_PREFIX}NAME:"
                f"image_key:label_key where they are not image and label; it has "
                f"{found or 'no features by name'}"
            )
    return image, label


def describe_classes(name: str, data_dir: str) -> DatasetInfo:
    """Returns the classes of a data set of classified images.

    Args:
        name: `tfds:NAME[:image_key:label_key]`, the keys being image and label where
            they are not given.
        data_dir: Of tensorflow-datasets; "" is its default.

    Raises:
        UserError: if there is no such data set, or no such feature.
    """
    builder = _builder(name, data_dir)
    image_key, label_key = _class_features(name, builder)
    image, label = (builder.info.features[key] for key in (image_key, label_key))
    depth, channels = np.dtype(image.np_dtype).name, image.shape[-1]
    if depth not in _MAX_VALUES or channels is None or not label.num_classes:
        raise UserError(
            f"--dataset={name}: {image_key} is {depth} {image.shape} and {label_key} "
            f"has {label.num_classes} classes; images are uint8 or uint16 of a known "
            "number of channels, and the classes are counted"
        )
    return DatasetInfo(
        name=name,
        class_names=tuple(label.names),
        channels=channels,
        max_value=_MAX_VALUES[depth],
        split_sizes={s: i.num_examples for s, i in builder.info.splits.items()},
    )


def open_classes(
    name: str, data_dir: str, split: str
) -> tuple[records.Keys, records.RecordIndex]:
    """Returns keys and index of the records of a split of classified images.

    Args:
        name: See `describe_classes`.
        data_dir: Of tensorflow-datasets; "" is its default.
        split: As tensorflow-datasets writes it, such as `train[:90%]`.

    Raises:
        UserError: if there is no such split, or nothing in it.
    """
    index = _index(name, data_dir, split)
    return records.Keys(*_class_features(name, _builder(name, data_dir)), ""), index
