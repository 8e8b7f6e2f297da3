"""Writes generated scenes of overlapping shapes in the folder layout of PASCAL VOC.

    deeplab-convert shapes --output_dir=shapes
    deeplab-convert voc2012 --voc_root=shapes --output_dir=tfrecord

Also prints the mIoU of a colour-only baseline, which a network has to beat.
"""

import pathlib
import sys

import numpy as np
from absl import flags as absl_flags
from PIL import Image

from deeplab_tf import flags
from deeplab_tf.convert import shapes
from deeplab_tf.data import info as dataset_info
from deeplab_tf.errors import UserError, one_line
from deeplab_tf.evaluation import confusion

_TRAIN, _VAL, _TEST, _SIZE, _SEED = shapes.write.__defaults__
_FLAGS = {
    "output_dir": (flags.STRING, None, "Folder to create."),
    "train_images": (flags.INTEGER, _TRAIN, "Training scenes."),
    "val_images": (flags.INTEGER, _VAL, "Validation scenes."),
    "test_images": (flags.INTEGER, _TEST, "Test scenes."),
    "image_size": (
        *(flags.REPEATED, ",".join(map(str, _SIZE))),
        "Height and width of the images.",
    ),
    "seed": (flags.INTEGER, _SEED, "Random seed."),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_flags(values, _FLAGS)
    return values


def main(values):
    """Writes the dataset and prints the split sizes and the colour baseline."""
    if not values.output_dir:
        raise UserError("--output_dir must name the folder to create")
    names = ("output_dir", "train_images", "val_images", "test_images", "seed")
    settings = {name: values[name].value for name in names}
    info = shapes.write(
        image_size=flags.read_size(values, "image_size") or (), **settings
    )
    sizes = ", ".join(f"{split} {info.split_sizes[split]}" for split in shapes.SPLITS)
    print(f"{values.output_dir}: {sizes} images")
    miou = score_color_baseline(values.output_dir, eval_split="val")
    print(f"mIoU on val if labelled by the nearest mean colour: {miou:.3f}")


def run(argv):
    """Runs the program without importing TensorFlow; returns the exit status."""
    values = define_flags()
    try:
        if {"--help", "-help", "-h"} & set(argv[1:]):
            print(f"{__doc__}\n{values.get_help()}")
            return 0
        rest = values(argv)[1:]
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}; flags begin with --")
        main(values)
    except (UserError, absl_flags.Error, OSError) as error:
        print(f"shapes: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _read_labelled_pixels(root, split, ignore_label):
    """Yields colours `[n, 3]` and classes `[n]` of each image's labelled pixels."""
    names = (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
    for name in names:
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as file:
            image = np.asarray(file.convert("RGB"))
        with Image.open(root / "SegmentationClass" / f"{name}.png") as file:
            label = np.asarray(file)
        known = label != ignore_label
        yield image[known].astype(np.float64), label[known].astype(np.int64)


def score_color_baseline(root, train_split="train", eval_split="test"):
    """Returns the mIoU of predicting the class with the nearest mean colour.

    Args:
        root: Folder written by `shapes.write`.
        train_split: Split to compute the mean colours from.
        eval_split: Split to evaluate on.
    """
    root = pathlib.Path(root)
    path = root / "dataset_info.json"
    info = dataset_info.DatasetInfo.from_json(path.read_bytes(), str(path))
    n = info.num_classes
    sums, counts = np.zeros((n, 3)), np.zeros((n, 1))
    for pixels, label in _read_labelled_pixels(root, train_split, info.ignore_label):
        counts[:, 0] += np.bincount(label, minlength=n)
        for channel in range(3):
            sums[:, channel] += np.bincount(label, pixels[:, channel], minlength=n)
    means = sums / np.maximum(counts, 1)
    # |p - m|^2 without |p|^2, equal for all classes; absent classes are never nearest.
    offsets = np.where(counts[:, 0] > 0, np.sum(means**2, 1), np.inf)
    matrix = np.zeros((n, n), np.int64)
    for pixels, label in _read_labelled_pixels(root, eval_split, info.ignore_label):
        nearest = np.argmin(offsets - 2 * pixels @ means.T, axis=1)
        matrix += confusion.confusion_matrix(label, nearest, n, info.ignore_label)
    return confusion.mean_iou(matrix)
