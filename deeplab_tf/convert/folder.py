"""Converts a folder of images and a folder of masks with the same names."""

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from deeplab_tf.convert import (
    additions,
    color_labels,
    conversion,
    findings,
    layout,
    splitting,
)
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.convert.class_masks import ClassMasks, background_id
from deeplab_tf.convert.options import ImageOptions, Layout, RunOptions, Splitting
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UnclearError, UserError
from deeplab_tf.images import strips

ADD = RunOptions(adds=True)
# Refuses images whose EXIF rotation makes it unclear how the label fits.
REFUSE_UNCLEAR = ImageOptions(apply_exif=None)
ALL_INTO_TRAIN = Splitting()


class FoundSamples(NamedTuple):
    """The samples of a folder.

    Attributes:
        samples: The samples.
        labels: Takes the findings of their labels and reports them.
        recipe: What the labels depend on besides their files and the classes.
    """

    samples: Sequence[conversion.Sample]
    labels: findings.Labels
    recipe: str = ""


def _make_background(
    classes: ClassList, apply_exif: bool, image: epath.Path
) -> np.ndarray:
    """Returns a label map of the size of an image, all background."""
    class_id = background_id(classes, "--missing_mask=background needs")
    return np.full(strips.read_size(image, apply_exif), class_id, np.uint8)


def _find_samples(
    files: Layout, classes: ClassList, output_dir: str, apply_exif: bool
) -> FoundSamples:
    """Returns the samples of a folder of masks."""
    labels: color_labels.Masks | ClassMasks
    found: Mapping[str, tuple[epath.Path, Any]]  # image, and mask or masks or None
    if files.mask_pattern:
        if classes.value_map:
            raise UserError(
                "--value_map has no effect with --mask_pattern, whose masks have 0 and "
                "one other value; remove one of the flags"
            )
        found = layout.find_class_masks(files, classes.info.class_names, output_dir)
        labels = ClassMasks(classes)
    else:
        found = layout.find_pairs(files, output_dir)
        masks = [mask for _, mask in found.values() if mask is not None]
        labels = color_labels.Masks(classes, masks)
    samples = []
    for name, (image, mask) in found.items():
        by_class = mask if isinstance(mask, Mapping) else {0: [mask] if mask else []}
        read_label = functools.partial(labels.read, mask)
        if mask is None:
            read_label = functools.partial(_make_background, classes, apply_exif, image)
        paths = tuple(path for paths in by_class.values() for path in paths)
        samples.append(conversion.Sample(name, image, paths, read_label))
    return FoundSamples(samples, labels, files.mask_pattern)


def _read_classes(
    samples: Mapping[str, conversion.Sample],
    ignore_label: int,
    skip_broken: bool,
    labels: findings.Labels,
    names: Sequence[str],
) -> dict[str, tuple[int, ...] | None]:
    """Returns the ids of the classes in each sample, None for labels to skip."""

    def read(name: str) -> tuple[tuple[int, ...] | None, list]:
        try:
            with findings.collect() as found:
                values = np.unique(samples[name].read_label())
            return tuple(values[values != ignore_label].tolist()), found
        except UserError as error:
            if not skip_broken or isinstance(error, UnclearError):
                raise
            return None, []

    ids: dict[str, tuple[int, ...] | None] = {}
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, (values, found) in zip(names, pool.map(read, names), strict=True):
            ids[name] = values
            for finding in found:
                labels.add(finding)
    return ids


def convert_samples(
    found: FoundSamples,
    classes: ClassList,
    output_dir: str,
    division: Splitting = ALL_INTO_TRAIN,
    num_shards: int = 4,
    options: ImageOptions = REFUSE_UNCLEAR,
    run: RunOptions = ADD,
) -> DatasetInfo:
    """Divides samples into splits, converts and reports them; see `convert`."""
    by_name: dict[str, conversion.Sample] = {}
    for sample in found.samples:
        if (other := by_name.setdefault(sample.name, sample)) is not sample:
            raise UserError(
                f"{other.image} and {sample.image} have the same name; rename one of "
                "them"
            )
    earlier = {}
    if division.val_share and run.adds:
        earlier = additions.find_earlier_splits(output_dir)
    ignore_label = classes.info.ignore_label
    read = functools.partial(
        _read_classes, by_name, ignore_label, run.skip_broken, found.labels
    )
    splits = splitting.split_names(list(by_name), division, earlier, read)
    info = conversion.convert(
        {split: [by_name[n] for n in names] for split, names in splits.items()},
        classes.info,
        output_dir,
        num_shards,
        classes.recipe() + found.recipe,
        options,
        run,
        found.labels,
    )
    found.labels.report()
    return info


def convert(
    files: Layout,
    classes: ClassList,
    output_dir: str,
    division: Splitting = ALL_INTO_TRAIN,
    num_shards: int = 4,
    options: ImageOptions = REFUSE_UNCLEAR,
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
        run: How to treat earlier records and broken images.

    Returns:
        The info as written next to the shards.

    Raises:
        UserError: if a file is missing, unpaired or broken, or a value is out of range;
            if the split has other images with the same names, or other classes.
    """
    found = _find_samples(files, classes, output_dir, bool(options.apply_exif))
    return convert_samples(
        found, classes, output_dir, division, num_shards, options, run
    )
