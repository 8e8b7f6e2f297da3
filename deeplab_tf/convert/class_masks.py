"""Joins masks of one class each into label maps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from deeplab_tf.convert import findings, mask_values
from deeplab_tf.convert.class_list import ClassList, is_background
from deeplab_tf.errors import UnclearError, UserError, pluralize
from deeplab_tf.images import mask_files


def background_id(classes: ClassList, why: str) -> int:
    """Returns the id of the class called background.

    Raises:
        UserError: if there is none; `why` begins the message.
    """
    names = classes.info.class_names
    for i, name in enumerate(names):
        if is_background(name):
            return i
    raise UnclearError(
        f"{why} a class named background in --classes; the classes are "
        f"{', '.join(names)}"
    )


class _Overlaps(NamedTuple):
    """Overlapping pixels by lower and upper class, and the first mask of the image."""

    first: epath.Path
    counts: Counter[tuple[int, int]]


class ClassMasks:
    """Reads masks of one class each, and counts where they overlap."""

    def __init__(self, classes: ClassList):
        self.classes = classes
        self._overlaps: dict[epath.Path, Counter[tuple[int, int]]] = {}

    def read(self, masks: Mapping[int, Sequence[epath.Path]]) -> np.ndarray:
        """Returns the class ids, uint8 `[height, width]`.

        Nonzero pixels have the class of their mask; where masks overlap, the last
        class wins. Pixels in no mask are background.

        Args:
            masks: The masks by class id; several masks of a class are joined.

        Raises:
            UserError: if a mask is broken, has another size or more than two values, or
                pixels are in no mask and no class is called background.
        """
        first = next(iter(masks.values()))[0]
        label, is_painted = np.zeros(0), np.zeros(0)
        overlaps: Counter[tuple[int, int]] = Counter()
        for class_id in sorted(masks):
            for path in masks[class_id]:
                is_class = read_binary_mask(path, self.classes.nearest)
                if not label.size:
                    label = np.zeros(is_class.shape, np.uint8)
                    is_painted = np.zeros(is_class.shape, bool)
                if is_class.shape != label.shape:
                    (h, w), (height, width) = is_class.shape, label.shape
                    raise UserError(
                        f"{path} is {w}x{h}, but {first} of the same image is "
                        f"{width}x{height}"
                    )
                hidden, counts = np.unique(
                    label[is_class & is_painted], return_counts=True
                )
                for lower, count in zip(hidden.tolist(), counts.tolist(), strict=True):
                    if lower != class_id:
                        overlaps[lower, class_id] += count
                label[is_class] = class_id
                is_painted |= is_class
        if not is_painted.all():
            why = (
                f"{first} and the other masks of its image leave pixels out, which need"
            )
            label[~is_painted] = background_id(self.classes, why)
        findings.add(_Overlaps(first, overlaps))
        return label

    def add(self, finding: _Overlaps) -> None:
        """Counts the overlaps of an image, which may be read more than once."""
        self._overlaps[finding.first] = finding.counts

    def report(self) -> None:
        """Prints one line about overlapping masks, if there are any."""
        overlaps = {path: counts for path, counts in self._overlaps.items() if counts}
        if not overlaps:
            return
        total: Counter[tuple[int, int]] = sum(overlaps.values(), Counter())
        names = self.classes.info.class_names
        listed = ", ".join(
            f"{names[upper]} over {names[lower]} {count:,}"
            for (lower, upper), count in sorted(total.items())
        )
        print(
            f"masks of {pluralize(len(overlaps), 'image(s)')} overlap in "
            f"{pluralize(total.total(), 'pixel(s)')}, which get the later class in "
            f"--classes: {listed}"
        )


def read_binary_mask(path: epath.Path, nearest: bool) -> np.ndarray:
    """Reads the nonzero pixels of a mask of one class, bool `[height, width]`.

    Args:
        path: File of the mask.
        nearest: Whether to threshold masks with more than two values, at half of the
            maximum value.

    Raises:
        UnclearError: if the mask is in colour, partly transparent, or has a palette in
            which not only index 0 is black; unless `nearest`, also if it is lossy or
            has more than two values.
    """
    mask = mask_files.read_mask(path)
    if mask.palette is not None:
        colors = mask.palette[np.minimum(mask.pixels, len(mask.palette) - 1)]
        if ((mask.pixels != 0) != colors.any(-1)).any():
            raise UnclearError(
                f"{path} has a palette in which index 0 is not black; save the mask in "
                "black and white"
            )
    counts = mask_values.count_values(mask)
    if not counts:
        raise UnclearError(
            f"{path} is in colour; a mask of one class must be black and white"
        )
    if mask.is_clear is not None:
        raise UnclearError(f"{path} is partly transparent; remove the transparency")
    pixels = mask.pixels if mask.pixels.ndim == 2 else mask.pixels[..., 0]
    is_binary = len(counts.keys() | {0}) <= 2
    if nearest:
        return pixels > 0 if is_binary else pixels.astype(np.int32) * 2 >= mask.white
    if mask.lossy or not is_binary:
        reason = f" is {mask.lossy} and" if mask.lossy else ""
        raise UnclearError(
            f"{path}{reason} has the values {mask_values.format_counts(counts)}; a "
            "mask of one class has 0 and one other value: add --nearest to "
            "threshold at half of the maximum value"
        )
    return pixels > 0
