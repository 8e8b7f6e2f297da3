"""Converts a folder of images and a folder of labels with the same names."""

import functools
import hashlib
import os
import re
from collections.abc import Sequence

from etils import epath

from deeplab_tf.convert import color_labels, conversion, pairs
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.data.info import DatasetInfo, split_name
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds
from deeplab_tf.images import formats
from deeplab_tf.images.mask_files import MASK_SUFFIXES

# Images whose EXIF rotation leaves open how the label fits are refused.
REFUSE_UNSURE = conversion.ImageOptions(apply_exif=None)


def _join_first(paths: Sequence[epath.Path]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(os.fspath(path) for path in paths[:3]) + more


def _require_unique(entries: pairs.Entries) -> None:
    for stem, path in entries.duplicates.items():
        raise UserError(
            f"{entries.files[stem]} and {path.name} have the same name; remove one of "
            "them"
        )


def _list_folder(flag: str, folder: str) -> list[epath.Path]:
    if file_kinds.kind_of(folder) is not file_kinds.Kind.DIRECTORY:
        raise UserError(f"--{flag}={folder} is not a folder")
    return pairs.list_folder(epath.Path(folder))


def find_pairs(
    image_dir: str, label_dir: str, label_suffix: str = ""
) -> dict[str, tuple[epath.Path, epath.Path]]:
    """Returns image and label by name, in alphabetical order.

    `label_suffix` ends the labels' names before the extension.

    Raises:
        UserError: if a folder is missing or empty, two files have the same name, or an
            image or a label has no counterpart.
    """
    is_shared = os.path.realpath(image_dir) == os.path.realpath(label_dir)
    suffixes = (".png",) if is_shared and not label_suffix else MASK_SUFFIXES

    def label_stem(path: epath.Path) -> str | None:
        is_label = path.suffix.lower() in suffixes and path.stem.endswith(label_suffix)
        return path.stem.removesuffix(label_suffix) if is_label else None

    label_paths = _list_folder("label_dir", label_dir)
    label_files = {path for path in label_paths if label_stem(path) is not None}

    def image_stem(path: epath.Path) -> str | None:
        is_image = formats.is_image_name(path) and path not in label_files
        return path.stem if is_image else None

    labels = pairs.find_entries(label_paths, label_stem)
    images = pairs.find_entries(_list_folder("image_dir", image_dir), image_stem)
    _require_paired(images, labels, image_dir, label_dir, label_suffix)
    images.report_skipped(image_dir)
    labels.report_skipped(label_dir)
    return {s: (images.files[s], labels.files[s]) for s in sorted(images.files)}


def _require_paired(
    images: pairs.Entries,
    labels: pairs.Entries,
    image_dir: str,
    label_dir: str,
    label_suffix: str,
) -> None:
    pairs.require_files(images, labels)
    if not images.files:
        suffixes = ", ".join(formats.IMAGE_SUFFIXES)
        raise UserError(f"--image_dir={image_dir} has no image ({suffixes})")
    if not labels.files:
        raise UserError(
            f"--label_dir={label_dir} has no label *{label_suffix} "
            f"({', '.join(MASK_SUFFIXES)})"
        )
    _require_unique(images)
    _require_unique(labels)
    unpaired = [path for stem, path in images.files.items() if stem not in labels.files]
    if unpaired:
        raise UserError(
            f"{label_dir} has no label, such as {unpaired[0].stem}{label_suffix}.png, "
            f"for {_join_first(unpaired)}"
        )
    unpaired = [path for stem, path in labels.files.items() if stem not in images.files]
    if unpaired:
        raise UserError(f"{image_dir} has no image for {_join_first(unpaired)}")


def is_validation_image(name: str, share: float) -> bool:
    """Returns whether the hash of an image's name puts it into the validation split."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _split_samples(
    samples: Sequence[conversion.Sample], split: str, val_share: float
) -> dict[str, list[conversion.Sample]]:
    if not 0 <= val_share < 1:
        raise UserError(
            f"--val_share must be at least 0 and below 1; received {val_share}"
        )
    if not re.fullmatch(r"\w+", split):
        raise UserError(
            f"--split must be letters, digits and underscores; received {split!r}"
        )
    if not val_share:
        return {split: list(samples)}
    if split == "val":
        raise UserError(
            "--val_share creates the split val; --split must be another one"
        )
    splits = {split: [], "val": []}
    for sample in samples:
        splits["val" if is_validation_image(sample.name, val_share) else split].append(
            sample
        )
    for name, members in splits.items():
        if not members:
            raise UserError(
                f"--val_share={val_share} of {len(samples)} images leaves none for "
                f"{name}"
            )
    return splits


def convert(  # noqa: PLR0913
    image_dir: str,
    label_dir: str,
    classes: ClassList,
    output_dir: str,
    split: str = "train",
    label_suffix: str = "",
    val_share: float = 0.0,
    num_shards: int = 4,
    options: conversion.ImageOptions = REFUSE_UNSURE,
) -> DatasetInfo:
    """Converts a folder of images and a folder of labels.

    Args:
        image_dir: Folder of the images.
        label_dir: Folder of the labels, files with the names of the images.
        classes: The classes of the labels.
        output_dir: Folder of the TFRecords; other splits in it are kept.
        split: Name of the split.
        label_suffix: Suffix of the labels' names before the extension.
        val_share: Share of the images for the split `val` instead, in [0, 1).
        num_shards: Files per split.
        options: How images become records.

    Returns:
        The info as written next to the shards.

    Raises:
        UserError: if a file is missing, unpaired or broken, or a value out of range.
    """
    found = find_pairs(image_dir, label_dir, label_suffix)
    masks = color_labels.Masks(classes, [label for _, label in found.values()])
    samples = [
        conversion.Sample(
            name,
            image,
            (label,),
            functools.partial(masks.read, label),
        )
        for name, (image, label) in found.items()
    ]
    splits = _split_samples(samples, split_name(split), val_share)
    info = conversion.convert(
        splits, classes.info, output_dir, num_shards, classes.recipe(), options
    )
    if classes.nearest:
        print(masks.snapped)
    return info
