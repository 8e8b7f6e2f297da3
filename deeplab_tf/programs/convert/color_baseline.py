"""Scores a colour-only baseline on the generated shapes."""

import pathlib

import numpy as np
from PIL import Image

from deeplab_tf.data import info as dataset_info
from deeplab_tf.evaluation import confusion


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
