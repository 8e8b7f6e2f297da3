"""Sizes of the objects of each class: connected regions of one label value."""

import cv2
import numpy as np

# Larger labels are subsampled to this many pixels per side; tiny objects may be lost.
_LONGEST = 512
_MAX_SIDE = 4095  # of an object; longer sides are clipped


def measure_objects(
    label: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Measures the connected regions of each class in a label map `[height, width]`.

    Label maps of over 512 pixels per side are subsampled.

    Returns:
        Class, side and extent of each object, int32 `[objects, 3]`. The side is the
        square root of the area; the extent is the longer side of the bounding box. Both
        are in pixels.
    """
    step = -(-max(label.shape) // _LONGEST)
    small = np.ascontiguousarray(label[::step, ::step])
    found = [np.zeros((0, 3), np.int32)]
    present = np.bincount(small.ravel(), minlength=256)[:num_classes]
    for value in np.flatnonzero(present):
        if value == ignore_label:
            continue
        mask = (small == value).view(np.uint8)
        regions = cv2.connectedComponentsWithStats(mask)[2][1:]
        sides = step * np.sqrt(regions[:, cv2.CC_STAT_AREA])
        boxes = regions[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
        parts = [np.full(len(regions), value), sides, step * boxes.max(1)]
        found.append(np.minimum(np.stack(parts, 1), _MAX_SIDE).astype(np.int32))
    return np.concatenate(found)


class ObjectSizes:
    """Histograms of the sizes of the objects of each class.

    Attributes:
        sides: Number of objects by class and side, int64 `[num_classes, 4096]`.
        extents: Number of objects by class and extent, in the same shape.
    """

    def __init__(self, num_classes: int):
        self.sides = np.zeros((num_classes, _MAX_SIDE + 1), np.int64)
        self.extents = np.zeros_like(self.sides)

    def add(self, objects: np.ndarray) -> None:
        """Adds the objects of an image, from `measure_objects`."""
        classes, sides, extents = objects.T
        np.add.at(self.sides, (classes, sides), 1)
        np.add.at(self.extents, (classes, extents), 1)

    @property
    def counts(self) -> np.ndarray:
        """Number of objects of each class, `[num_classes]`."""
        return self.sides.sum(1)

    @property
    def median_sides(self) -> np.ndarray:
        """Median side of the objects of each class, in pixels; 0 without objects."""
        half = (self.counts + 1) // 2
        return np.argmax(np.cumsum(self.sides, 1) >= half[:, None], 1)

    def tiny_shares(self, cell: int) -> np.ndarray:
        """Returns the fraction of each class's objects with a side below `cell`."""
        return self.sides[:, :cell].sum(1) / np.maximum(1, self.counts)

    def tiny_pixel_shares(self, cell: int) -> np.ndarray:
        """Returns the fraction of each class's pixels that are in tiny objects.

        The side of a tiny object is below `cell` pixels.
        """
        pixels = self.sides * np.arange(_MAX_SIDE + 1) ** 2
        return pixels[:, :cell].sum(1) / np.maximum(1, pixels.sum(1))

    def huge_shares(self, crop_side: int) -> np.ndarray:
        """Returns the fraction of each class's objects that are longer than a crop."""
        return self.extents[:, crop_side + 1 :].sum(1) / np.maximum(1, self.counts)
