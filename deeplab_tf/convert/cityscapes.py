"""Converts Cityscapes in its official layout.

Labels are made from the archives' `*_labelIds.png` files; the Cityscapes scripts are
not needed.
"""

import functools
from collections.abc import Sequence

import numpy as np
from etils import epath

from deeplab_tf.convert import conversion, pairs
from deeplab_tf.convert.options import RunOptions
from deeplab_tf.convert.shards import REPLACE
from deeplab_tf.data.info import CITYSCAPES_IDS, dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.images import mask_files

_NUM_IDS = 34

# Kind of label and sorted folders of each official split.
_SPLITS = {
    "train_fine": ("gtFine", ("train",)),
    "val_fine": ("gtFine", ("val",)),
    # Its labels are placeholders, with every pixel void.
    "test_fine": ("gtFine", ("test",)),
    "trainval_fine": ("gtFine", ("train", "val")),
    "train_coarse": ("gtCoarse", ("train", "train_extra")),
    "trainval_coarse": ("gtCoarse", ("train", "train_extra", "val")),
}


def train_ids() -> np.ndarray:
    """Returns the class of each id in a labelIds file, uint8 `[34]`; 255 is void.

    Licence plates have the id -1, which the files do not contain.
    """
    table = np.full(_NUM_IDS, 255, np.uint8)
    table[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
    return table


def _read_label(path: epath.Path) -> np.ndarray:
    ids = mask_files.read_index_label(path)
    if ids.max() >= _NUM_IDS:
        raise UserError(
            f"{path} contains the value {ids.max()}; the ids of labelIds files are "
            f"0..{_NUM_IDS - 1}"
        )
    return train_ids()[ids]


def _find_samples(root: epath.Path, kind: str, folder: str) -> list[conversion.Sample]:
    """Returns the samples of one folder, sorted by path."""
    suffix = "_leftImg8bit.png"
    found = pairs.find_pairs(
        pairs.Folder(root / "leftImg8bit" / folder, suffix, "<city>/"),
        pairs.Folder(root / kind / folder, f"_{kind}_labelIds.png", "<city>/"),
    )
    return [
        conversion.Sample(
            image.name.removesuffix(suffix),
            image,
            (label,),
            functools.partial(_read_label, label),
        )
        for image, label in found.values()
    ]


def _find_splits(
    root: epath.Path, wanted: Sequence[str]
) -> dict[str, list[conversion.Sample]]:
    """Returns the samples of the wanted splits whose folders exist."""
    for split in wanted:
        if split not in _SPLITS:
            raise UserError(f"--splits={split} must be one of {', '.join(_SPLITS)}")
    if not (root / "leftImg8bit").is_dir():
        raise UserError(
            f"--cityscapes_root={root} has no folder {root / 'leftImg8bit'}; it "
            "must be the folder that contains leftImg8bit and gtFine"
        )
    find_samples = functools.cache(functools.partial(_find_samples, root))
    splits = {
        split: [sample for folder in folders for sample in find_samples(kind, folder)]
        for split, (kind, folders) in _SPLITS.items()
        if split in wanted
        and all(
            (root / part / folder).is_dir()
            for part in ("leftImg8bit", kind)
            for folder in folders
        )
    }
    missing = [split for split in wanted if split not in splits]
    if missing and (not splits or list(wanted) != list(_SPLITS)):
        kind, folders = _SPLITS[missing[0]]
        raise UserError(
            f"the split {missing[0]} needs {' and '.join(folders)} in both leftImg8bit "
            f"and {kind} of {root}"
        )
    return splits


def convert(
    cityscapes_root: str,
    output_dir: str,
    num_shards: int = 10,
    splits: Sequence[str] = (),
    run: RunOptions = REPLACE,
) -> dict[str, int]:
    """Converts every split whose folders exist.

    Args:
        cityscapes_root: Folder that contains `leftImg8bit` and `gtFine`.
        output_dir: Folder of the TFRecords; an error leaves nothing in it.
        num_shards: Files per split; the official converter writes 10.
        splits: Names of the splits; default: all whose folders exist.
        run: How to treat earlier records; which processes write shards.

    Returns:
        Number of images by split.

    Raises:
        UserError: if a file is missing, unpaired or broken, or a value is out of range.
    """
    samples = _find_splits(epath.Path(cityscapes_root), splits or tuple(_SPLITS))
    info = dataset_info("cityscapes")
    written = conversion.convert(samples, info, output_dir, num_shards, run=run)
    return {split: written.split_sizes[split] for split in samples}
