"""Reads datasets of tensorflow-datasets (TFDS) directly from their records.

Their names are `tfds:NAME[:image_key:label_key]`, where NAME may include a config and a
version, as in TFDS. `data_dir` is the TFDS data folder; "" is the default one.
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.reader import Reader
from deeplab_tf.data.source import TFDS_PREFIX, Source
from deeplab_tf.data.statistics import count_label_values
from deeplab_tf.errors import UserError

_MAX_VALUES = {"uint8": 255, "uint16": 65535}


class _Name(NamedTuple):
    """Parts of a `--dataset` name: TFDS builder and optional feature keys."""

    builder: str
    image: str | None
    label: str | None


def _parse_name(name: str) -> _Name:
    rest = name.removeprefix(TFDS_PREFIX)
    # A single colon is part of the version.
    if rest.count(":") < 2:
        return _Name(rest, None, None)
    return _Name(*rest.rsplit(":", 2))


@functools.lru_cache
def _load_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Returns a builder, after downloading and preparing its data if necessary."""
    try:
        builder = tfds.builder(_parse_name(name).builder, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        # TFDS lists all of its datasets after the first line.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--dataset={name} is not in tensorflow-datasets: {reason}"
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
    except Exception as error:  # dataset scripts may raise any exception
        reason = " ".join(str(error).split())
        raise UserError(f"--dataset={name} cannot be prepared: {reason}") from error


def _find_image_features(features, prefix: str = "") -> dict[str, tfds.features.Image]:
    """Returns the image features by key; nested keys are joined by slashes."""
    found = {}
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            found |= _find_image_features(feature, f"{prefix}{key}/")
        elif isinstance(feature, tfds.features.Image):
            found[prefix + key] = feature
    return found


def _require_single_candidate(
    name: str, kind: str, images: dict, candidates: list[str]
) -> str:
    """Returns the only candidate key; raises UserError for none or several."""
    if len(candidates) != 1:
        found = ", ".join(f"{key} {image.shape}" for key, image in images.items())
        raise UserError(
            f"--dataset={name}: cannot tell which feature is the {kind}; the image "
            f"features are {found or 'none'}; give the keys of image and label as "
            f"{TFDS_PREFIX}NAME:image_key:label_key"
        )
    return candidates[0]


def _find_segmentation_keys(name: str, builder) -> tuple[str, str]:
    """Returns the keys of image and label, from the name or, if unique, by type."""
    images, keys = _find_image_features(builder.info.features), _parse_name(name)
    for key in (keys.image, keys.label):
        if key is not None and key not in images:
            raise UserError(
                f"--dataset={name} has no image feature {key!r}; its image features "
                f"are {', '.join(images)}"
            )
    if keys.image is not None:
        return keys.image, keys.label
    labels = [k for k, f in images.items() if isinstance(f, tfds.features.LabeledImage)]
    grey = [k for k, f in images.items() if f.shape[-1] == 1]
    label = _require_single_candidate(name, "label", images, labels or grey)
    others = [key for key in images if key != label]
    photos = [key for key in others if key not in labels + grey]
    return _require_single_candidate(name, "image", images, photos or others), label


@functools.lru_cache
def load_info(name: str, data_dir: str) -> DatasetInfo:
    """Returns the description of a segmentation dataset.

    The classes come from its `LabeledImage` feature. If there is none, they are
    numbered up to the largest label in the train split, except for 255, which is
    ignored.

    Raises:
        UserError: if the dataset does not exist, lacks an image or label feature, or
            has images or labels of an unsupported type.
    """
    builder = _load_builder(name, data_dir)
    image_key, label_key = _find_segmentation_keys(name, builder)
    images = _find_image_features(builder.info.features)
    image, label = images[image_key], images[label_key]
    depth, label_depth = np.dtype(image.np_dtype).name, np.dtype(label.np_dtype).name
    if depth not in _MAX_VALUES or label_depth != "uint8" or label.shape[-1] != 1:
        raise UserError(
            f"--dataset={name}: {image_key} is {depth} {image.shape} and {label_key} "
            f"{label_depth} {label.shape}; images must be uint8 or uint16 and labels "
            "uint8 with one channel"
        )
    if getattr(label, "num_classes", None):
        names = label.names
    else:
        names = _make_class_names(_count_classes(name, data_dir, builder))
    return _make_info(name, builder, names, image)


def _make_info(name: str, builder, class_names, image) -> DatasetInfo:
    return DatasetInfo(
        name=name,
        class_names=tuple(class_names),
        channels=image.shape[-1],
        max_value=_MAX_VALUES[np.dtype(image.np_dtype).name],
        split_sizes={s: i.num_examples for s, i in builder.info.splits.items()},
    )


def _make_class_names(count: int) -> list[str]:
    return [f"class_{i}" for i in range(count)]


def _count_classes(name: str, data_dir: str, builder) -> int:
    """Returns the number of classes, from the largest label in the train split."""
    splits = sorted(builder.info.splits, key=lambda split: (split != "train", split))
    any_value = DatasetInfo(name, tuple(_make_class_names(256)))
    keys, index = open_split(name, data_dir, splits[0])
    values = count_label_values(Reader(Source(any_value, keys, index)), len(index))
    values[any_value.ignore_label] = 0
    if not values.any():
        raise UserError(
            f"--dataset={name}: all labels of {splits[0]} are 255, the ignored label"
        )
    return int(np.flatnonzero(values)[-1]) + 1


def open_split(
    name: str, data_dir: str, split: str
) -> tuple[records.Keys, records.RecordIndex]:
    """Returns feature keys and record index of a TFDS split, such as `train[:90%]`.

    Raises:
        UserError: if the split does not exist or is empty.
    """
    index = index_split(name, data_dir, split)
    keys = _find_segmentation_keys(name, _load_builder(name, data_dir))
    return records.Keys(*keys, ""), index


def index_split(name: str, data_dir: str, split: str) -> records.RecordIndex:
    """Returns the record index of a split or of a slice of one."""
    builder = _load_builder(name, data_dir)
    try:
        parts = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        # Drop a link and the list of splits.
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
        raise UserError(f"--dataset={name} contains no records in {split!r}")
    return index.select(np.flatnonzero(chosen))


def _find_classification_keys(name: str, builder) -> tuple[str, str]:
    """Returns the keys of image and class; the defaults are `image` and `label`."""
    features, keys = builder.info.features, _parse_name(name)
    image, label = keys.image, keys.label
    if image is None:
        image, label = "image", "label"
    is_named = isinstance(features, tfds.features.FeaturesDict)
    available = dict(features.items()) if is_named else {}
    for key, kind in ((image, tfds.features.Image), (label, tfds.features.ClassLabel)):
        if not isinstance(available.get(key), kind):
            found = ", ".join(f"{k} ({type(v).__name__})" for k, v in available.items())
            raise UserError(
                f"--dataset={name} has no {kind.__name__} feature {key!r}; its "
                f"features: {found or 'none with a name'}. Classification needs an "
                "Image and a ClassLabel; unless they are called image and label, give "
                f"--dataset={TFDS_PREFIX}NAME:image_key:label_key"
            )
    return image, label


def load_class_info(name: str, data_dir: str) -> DatasetInfo:
    """Returns the description of a classification dataset.

    Raises:
        UserError: if the dataset does not exist, lacks the image or label feature, or
            has images that are not uint8 or uint16.
    """
    builder = _load_builder(name, data_dir)
    image_key, label_key = _find_classification_keys(name, builder)
    image, label = (builder.info.features[key] for key in (image_key, label_key))
    depth, channels = np.dtype(image.np_dtype).name, image.shape[-1]
    if depth not in _MAX_VALUES or channels is None or not label.num_classes:
        raise UserError(
            f"--dataset={name}: {image_key} is {depth} {image.shape} and {label_key} "
            f"has {label.num_classes} classes; images must be uint8 or uint16 with a "
            "fixed number of channels, and the number of classes must be known"
        )
    return _make_info(name, builder, label.names, image)


def open_classes(
    name: str, data_dir: str, split: str
) -> tuple[records.Keys, records.RecordIndex]:
    """Returns the keys and index of a classification split; see `open_split`."""
    index = index_split(name, data_dir, split)
    keys = _find_classification_keys(name, _load_builder(name, data_dir))
    return records.Keys(*keys, ""), index
