"""Converts a folder of images and a folder of masks with the same names."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath

from deeplab_tf.convert import additions, color_labels, conversion, layout, splitting
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


def _make_background(
    classes: ClassList, apply_exif: bool, image: epath.Path
) -> np.ndarray:
    """Returns a label map of the size of an image, all background."""
    class_id = background_id(classes, "--missing_mask=background needs")
    return np.full(strips.read_size(image, apply_exif), class_id, np.uint8)


def _find_samples(
    files: Layout, classes: ClassList, output_dir: str, apply_exif: bool
) -> tuple[list[conversion.Sample], Callable[[], None]]:
    """Returns the samples, and a function that reports on their masks at the end."""
    found: Mapping[str, tuple[epath.Path, Any]]  # image, and mask or masks or None
    if files.mask_pattern:
        if classes.value_map:
            raise UserError(
                "--value_map has no effect with --mask_pattern, whose masks have 0 and "
                "one other value; remove one of the flags"
            )
        found = layout.find_class_masks(files, classes.info.class_names, output_dir)
        joined = ClassMasks(classes)
        read, report = joined.read, joined.report
    else:
        found = layout.find_pairs(files, output_dir)
        labels = [label for _, label in found.values() if label is not None]
        single = color_labels.Masks(classes, labels)
        read, report = single.read, functools.partial(_report_snapped, single)
    samples = []
    for name, (image, mask) in found.items():
        by_class = mask if isinstance(mask, Mapping) else {0: [mask] if mask else []}
        read_label = functools.partial(read, mask)
        if mask is None:
            read_label = functools.partial(_make_background, classes, apply_exif, image)
        labels = tuple(path for paths in by_class.values() for path in paths)
        samples.append(conversion.Sample(name, image, labels, read_label))
    return samples, report


def _report_snapped(masks: color_labels.Masks) -> None:
    """Prints how many pixels `--nearest` changed, if any."""
    if masks.classes.nearest:
        print(masks.snapped)


def _read_classes(
    samples: Mapping[str, conversion.Sample],
    ignore_label: int,
    skip_broken: bool,
    names: Sequence[str],
) -> dict[str, tuple[int, ...] | None]:
    """Returns the ids of the classes in each sample, None for labels to skip."""

    def read(name: str) -> tuple[int, ...] | None:
        try:
            values = np.unique(samples[name].read_label())
            return tuple(values[values != ignore_label].tolist())
        except UserError as error:
            if not skip_broken or isinstance(error, UnclearError):
                raise
            return None

    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def convert_samples(
    samples: Sequence[conversion.Sample],
    classes: ClassList,
    output_dir: str,
    division: Splitting = ALL_INTO_TRAIN,
    num_shards: int = 4,
    options: ImageOptions = REFUSE_UNCLEAR,
    run: RunOptions = ADD,
    recipe: str = "",
) -> DatasetInfo:
    """Divides samples into splits and converts them; see `convert`.

    `recipe` is what labels depend on besides their files and the classes.
    """
    by_name: dict[str, conversion.Sample] = {}
    for sample in samples:
        if (other := by_name.setdefault(sample.name, sample)) is not sample:
            raise UserError(
                f"{other.image} and {sample.image} have the same name; rename one of "
                "them"
            )
    earlier = {}
    if division.val_share and run.adds:
        earlier = additions.find_earlier_splits(output_dir)
    read = functools.partial(
        _read_classes, by_name, classes.info.ignore_label, run.skip_broken
    )
    splits = splitting.split_names(list(by_name), division, earlier, read)
    return conversion.convert(
        {split: [by_name[n] for n in names] for split, names in splits.items()},
        classes.info,
        output_dir,
        num_shards,
        classes.recipe() + recipe,
        options,
        run,
    )


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
    samples, report = _find_samples(
        files, classes, output_dir, bool(options.apply_exif)
    )
    info = convert_samples(
        *(samples, classes, output_dir, division, num_shards, options, run),
        recipe=files.mask_pattern,
    )
    report()
    return info
