"""Snaps values and colours in between to the nearest declared one (`--nearest`)."""

import threading
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from etils import epath

from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.errors import UnclearError, pluralize

# Lossy formats change values by several levels.
_MIN_LOSSY_GAP = 16
# Edges are narrower than this, in pixels, or change by more levels.
_AREA, _MAX_RANGE = 5, 24
# Lossy formats shift the value of areas, by less than this.
_MAX_SHIFT = 32


def value_targets(classes: ClassList, white: int) -> dict[int, int]:
    """Returns the label of each value that pixels of one channel may snap to.

    Grey class colours come first; else the values of the class file. A first class
    without a value has 0. `white` is that of `mask_files.Mask`.
    """
    greys = _grey_colors(classes)
    is_complete = set(range(classes.info.num_classes)) <= set(greys.values())
    source = classes._replace(file_values=None) if is_complete else classes
    declared = source.declared_values()
    scale = 257 if white > 255 else 1
    targets = {grey * scale: label for grey, label in greys.items()} | declared
    ignore_label = classes.info.ignore_label
    if classes.ignores_explicitly and ignore_label not in targets:
        targets[ignore_label] = ignore_label
    if 0 not in targets and 0 not in targets.values():
        targets[0] = 0
    return targets


def _grey_colors(classes: ClassList) -> dict[int, int]:
    colors = classes.color_ids()
    return {c[0]: label for c, label in colors.items() if len(set(c)) == 1}


def require_one_meaning(classes: ClassList) -> None:
    """Raises `UnclearError` if grey values near both ids and colours are ambiguous."""
    values, greys = classes.file_values, _grey_colors(classes)
    if (
        values is not None
        and greys
        and any(values.get(g) != i for g, i in greys.items())
    ):
        raise UnclearError(
            "--classes gives the classes both other ids and grey colours; for "
            "--nearest remove those that the masks do not have"
        )


def require_all_classes(classes: ClassList, targets: Mapping[Any, int]) -> None:
    """Raises `UnclearError` if a class has no value or colour to snap to."""
    for i, name in enumerate(classes.info.class_names):
        if i not in targets.values():
            raise UnclearError(
                f"--nearest needs a value of every class; add --value_map=VALUE:{name}"
            )


def check_gaps(
    path: epath.Path, known: np.ndarray, labels: np.ndarray, lossy: str
) -> None:
    """Raises `UnclearError` if a lossy format may turn one declared value into another.

    Args:
        path: The mask.
        known: Declared values or colours `[count, channels]`.
        labels: Their labels `[count]`.
        lossy: Name of the lossy format, or "".
    """
    if not lossy:
        return
    for i, j in zip(*np.triu_indices(len(known), 1), strict=True):
        gap = np.linalg.norm(known[i].astype(float) - known[j])
        if labels[i] != labels[j] and gap < _MIN_LOSSY_GAP:
            raise UnclearError(
                f"{path} is {lossy}, and the declared values {_format(known[i])} and "
                f"{_format(known[j])} are too close for that; save masks as PNG"
            )


def _format(value: np.ndarray) -> str:
    return ",".join(map(str, value.tolist()))


class Summary:
    """Counts the pixels that were snapped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pixels = self.total = self.masks = 0
        self._seen: set[epath.Path] = set()
        self.worst = 0.0
        self.worst_path: epath.Path | None = None

    def __str__(self) -> str:
        if not self.pixels:
            return "--nearest: all pixels had declared values"
        return (
            f"--nearest: {self.pixels:,} of {self.total:,} pixels "
            f"({self.pixels / self.total:.2%}) in "
            f"{pluralize(self.masks, 'mask(s)')} snapped to the "
            f"nearest declared value or colour; the largest distance was "
            f"{self.worst:.0f}, in {self.worst_path}"
        )

    def snap(
        self,
        path: epath.Path,
        pixels: np.ndarray,
        known: np.ndarray,
        index: np.ndarray,
        is_wrong: np.ndarray,
    ) -> np.ndarray:
        """Returns the index of the nearest declared value or colour of each pixel.

        Args:
            path: The mask.
            pixels: Values `[height, width, channels]`.
            known: Declared values or colours `[count, channels]`.
            index: Index of each pixel into `known`, `[height, width]`, where exact.
            is_wrong: Whether a pixel is not exact, `[height, width]`.

        Raises:
            UserError: if an undeclared value fills an area, so that it is no edge.
        """
        wrong = pixels[is_wrong]
        # One number per value or colour: unique rows would be slow.
        keys = wrong.astype(np.int32) @ (1 << 8 * np.arange(wrong.shape[1]))
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        found = wrong[first]
        index, distances = index.copy(), np.zeros(index.shape, np.float32)
        if len(found):
            nearest = np.empty(len(found), int)
            distance = np.empty(len(found), np.float32)
            for i, value in enumerate(found.astype(np.float32)):
                away = np.linalg.norm(known - value, axis=1)
                nearest[i] = away.argmin()
                distance[i] = away[nearest[i]]
            index[is_wrong] = nearest[inverse.ravel()]
            distances[is_wrong] = distance[inverse.ravel()]
            _refuse_areas(path, pixels, distances)
        with self._lock:
            if path in self._seen:  # --val_share reads masks twice
                return index
            self._seen.add(path)
            self.total += is_wrong.size
            self.pixels += int(is_wrong.sum())
            self.masks += bool(len(found))
            if distances.max() > self.worst:
                self.worst, self.worst_path = float(distances.max()), path
        return index


def _refuse_areas(path: epath.Path, pixels: np.ndarray, distances: np.ndarray) -> None:
    kernel = np.ones((_AREA, _AREA), np.uint8)
    pixels = np.ascontiguousarray(pixels)
    scale = 257 if pixels.dtype == np.uint16 else 1
    levels = cv2.subtract(cv2.dilate(pixels, kernel), cv2.erode(pixels, kernel))
    is_flat = levels.reshape(*distances.shape, -1).max(-1) <= _MAX_RANGE * scale
    is_far = cv2.erode(distances, kernel) > _MAX_SHIFT * scale
    y, x = np.nonzero(is_flat & is_far)
    if y.size:
        value = pixels[y[0], x[0]]
        flag = (
            _format(value) if value.size == 1 else "#{:02x}{:02x}{:02x}".format(*value)
        )
        raise UnclearError(
            f"{path} has an area of {_format(value)} at (x, y) = ({x[0]}, {y[0]}), "
            f"which is not declared and too large for an edge; add "
            f"--value_map={flag}:NAME or {flag}:ignore"
        )
