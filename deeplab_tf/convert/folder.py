"""Converts a folder of images and a folder of masks with the same names."""

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent import futures

import numpy as np
from etils import epath

from deeplab_tf.convert import additions, color_labels, conversion, layout, splitting
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.convert.layout import Layout
from deeplab_tf.convert.shards import RunOptions
from deeplab_tf.convert.splitting import Splitting
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.images import encoding

ADD = RunOptions(adds=True)
# Images whose EXIF rotation leaves open how the label fits are refused.
REFUSE_UNSURE = conversion.ImageOptions(apply_exif=None)
_ALL_INTO_TRAIN = Splitting()
_BACKGROUND = ("background", "bg")


def _background_id(info: DatasetInfo) -> int:
    """Returns the id of the class that is called background."""
    for i, name in enumerate(info.class_names):
        if name.lower().strip("_- ") in _BACKGROUND:
            return i
    raise UserError(
        "--missing_mask=background needs a class named background in --classes; the "
        f"classes are {', '.join(info.class_names)}"
    )


def _make_background(
    image: epath.Path, info: DatasetInfo, class_id: int, apply_exif: bool
) -> np.ndarray:
    encoded = encoding.read_encoded(image, info, apply_exif)
    return np.full((encoded.height, encoded.width), class_id, np.uint8)


def _make_samples(
    found: Mapping[str, tuple[epath.Path, epath.Path | None]],
    masks: color_labels.Masks,
    apply_exif: bool,
) -> list[conversion.Sample]:
    """Returns the samples of images and masks, which may be missing."""
    info, samples = masks.classes.info, []
    for name, (image, label) in found.items():
        if label is None:
            arguments = (image, info, _background_id(info), apply_exif)
            read = functools.partial(_make_background, *arguments)
            samples.append(conversion.Sample(name, image, (), read))
        else:
            read = functools.partial(masks.read, label)
            samples.append(conversion.Sample(name, image, (label,), read))
    return samples


def _read_classes(
    samples: Mapping[str, conversion.Sample], ignore_label: int, names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Returns the ids of the classes in each sample; none for broken labels."""

    def read(name: str) -> tuple[int, ...]:
        try:
            values = np.unique(samples[name].read_label())
            return tuple(values[values != ignore_label].tolist())
        except UserError:  # the conversion stops at it or skips it
            return ()

    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def convert_samples(
    samples: Sequence[conversion.Sample],
    classes: ClassList,
    output_dir: str,
    division: Splitting = _ALL_INTO_TRAIN,
    num_shards: int = 4,
    options: conversion.ImageOptions = REFUSE_UNSURE,
    run: RunOptions = ADD,
) -> DatasetInfo:
    """Divides samples into splits and converts them; see `convert`."""
    division.check()
    by_name = {sample.name: sample for sample in samples}
    earlier = {}
    if division.val_share and run.adds:
        earlier = additions.earlier_splits(output_dir)
    read = functools.partial(_read_classes, by_name, classes.info.ignore_label)
    splits = splitting.divide(list(by_name), division, earlier, read)
    return conversion.convert(
        {split: [by_name[n] for n in names] for split, names in splits.items()},
        classes.info,
        output_dir,
        num_shards,
        classes.recipe(),
        options,
        run,
    )


def convert(
    files: Layout,
    classes: ClassList,
    output_dir: str,
    division: Splitting = _ALL_INTO_TRAIN,
    num_shards: int = 4,
    options: conversion.ImageOptions = REFUSE_UNSURE,
    run: RunOptions = ADD,
) -> DatasetInfo:
    """Converts a folder of images and a folder of masks.

    Args:
        files: The folders, and how names of images and masks differ.
        classes: The classes of the masks.
        output_dir: Folder of the TFRecords. Images of other runs stay in it, and
            images in the same split are added to them.
        division: Names of the splits and the share of the validation images.
        num_shards: Files per split.
        options: How images become records.
        run: Whether to replace a split instead, and whether to skip broken images.

    Returns:
        The info as written next to the shards.

    Raises:
        UserError: if a file is missing, unpaired or broken, or a value out of range; if
            the split has other images of the same names, or other classes.
    """
    division.check()
    found = layout.find_pairs(files, output_dir)
    labels = [label for _, label in found.values() if label is not None]
    masks = color_labels.Masks(classes, labels)
    samples = _make_samples(found, masks, bool(options.apply_exif))
    info = convert_samples(
        samples, classes, output_dir, division, num_shards, options, run
    )
    if classes.nearest:
        print(masks.snapped)
    return info
