"""Converts the scene parsing version of ADE20K, `ADEChallengeData2016`."""

import functools

import numpy as np
from etils import epath

from deeplab_tf.convert import conversion, pairs
from deeplab_tf.convert.options import RunOptions
from deeplab_tf.convert.shards import REPLACE
from deeplab_tf.data.info import dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.images import mask_files

_SPLITS = {"train": "training", "val": "validation"}


def _read_shifted_label(path: epath.Path) -> np.ndarray:
    """Reads a label and subtracts 1, so that 0, which is ignored, becomes 255."""
    label = mask_files.read_index_label(path)
    if label.max() > 150:
        raise UserError(
            f"{path} contains the value {label.max()}; annotations contain 0..150 "
            "(0 is ignored)"
        )
    return label - np.uint8(1)  # 0 wraps around to 255


# Dataset and label reader by number of classes.
_FORMS = {
    151: ("ade20k", mask_files.read_index_label),
    150: ("ade20k_150", _read_shifted_label),
}


def _find_samples(root: epath.Path, folder: str, read) -> list[conversion.Sample]:
    """Returns the samples of `training` or `validation`, sorted by name."""
    found = pairs.find_pairs(
        pairs.Folder(root / "images" / folder, ".jpg"),
        pairs.Folder(root / "annotations" / folder, ".png"),
    )
    return [
        conversion.Sample(stem, image, (label,), functools.partial(read, label))
        for stem, (image, label) in found.items()
    ]


def convert(
    ade20k_root: str,
    output_dir: str,
    num_shards: int = 4,
    num_classes: int = 151,
    run: RunOptions = REPLACE,
) -> dict[str, int]:
    """Converts train and val.

    Args:
        ade20k_root: Folder that contains `images` and `annotations`.
        output_dir: Folder of the TFRecords; an error leaves nothing in it.
        num_shards: Files per split; the official converter writes 4.
        num_classes: 151 for the official labels, in which 0 is ignored; 150 for
            classes that start at 0, with 255 ignored.
        run: How to treat earlier records; which processes write shards.

    Returns:
        Number of images by split.

    Raises:
        UserError: if a file is missing, unpaired or broken, or a value is out of range.
    """
    if num_classes not in _FORMS:
        raise UserError(f"num_classes must be 151 or 150; received {num_classes!r}")
    root = epath.Path(ade20k_root)
    for part in ("images", "annotations"):
        for folder in _SPLITS.values():
            if not (root / part / folder).is_dir():
                raise UserError(
                    f"--ade20k_root={root} has no folder {root / part / folder}; it "
                    "must be the ADEChallengeData2016 folder from the archive"
                )
    dataset, read = _FORMS[num_classes]
    splits = {
        split: _find_samples(root, folder, read) for split, folder in _SPLITS.items()
    }
    written = conversion.convert(
        splits, dataset_info(dataset), output_dir, num_shards, run=run
    )
    return {split: written.split_sizes[split] for split in splits}
