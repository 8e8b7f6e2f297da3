"""Snaps undeclared values and colours to the nearest declared one (`--nearest`)."""

import functools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from etils import epath

from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.convert.value_map import format_value
from deeplab_tf.errors import UnclearError, pluralize
from deeplab_tf.images import lookup
from deeplab_tf.images.mask_files import MAX_VALUE, Mask

# Lossy formats change values by several levels.
_MIN_LOSSY_GAP = 16
# Edges are narrower than this, in pixels, or change by more levels.
_AREA, _MAX_RANGE = 5, 24
# Lossy formats shift the value of areas, by less than this.
_MAX_SHIFT = 32
# Added to labels.
_IS_SNAPPED, _IS_FAR, _IS_KNOWN = 1 << 8, 1 << 9, 1 << 10
# Values that are compared with the declared ones at once, to bound the memory.
_MOST_AT_ONCE = 1 << 16


def find_value_targets(classes: ClassList, white: int) -> dict[int, int]:
    """Returns the label of each value that pixels of one channel may snap to.

    These are the values of `--value_map`, the grey class colours, the values of the
    class file unless each class has a grey colour, and the ignore label if given. A
    first class without a value has 0.

    Args:
        classes: The classes.
        white: See `mask_files.Mask`.
    """
    greys = classes.grey_ids()
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


def require_one_meaning(classes: ClassList) -> None:
    """Raises `UnclearError` if grey values near both ids and colours are ambiguous."""
    values, greys = classes.file_values, classes.grey_ids()
    if (
        values is not None
        and greys
        and any(values.get(g) != i for g, i in greys.items())
    ):
        raise UnclearError(
            "--classes gives both ids and grey colours, and they differ; with "
            "--nearest, remove the ones that the masks do not use"
        )


def require_all_classes(classes: ClassList, targets: Mapping[Any, int]) -> None:
    """Raises `UnclearError` if a class has no value or colour to snap to."""
    for i, name in enumerate(classes.info.class_names):
        if i not in targets.values():
            raise UnclearError(
                f"--nearest needs a value for each class; add --value_map=VALUE:{name}"
            )


def _format(value: np.ndarray) -> str:
    return ",".join(map(str, value.astype(int).tolist()))


class Snapped(NamedTuple):
    """The pixels of a mask that were snapped.

    Attributes:
        path: The mask.
        pixels: Number of snapped pixels.
        total: Number of all pixels.
        distance: Largest distance of a value to its declared one.
    """

    path: epath.Path
    pixels: int
    total: int
    distance: float


def describe_snapped(masks: Collection[Snapped]) -> str:
    """Returns a line about all snapped masks of a conversion."""
    pixels = sum(mask.pixels for mask in masks)
    if not pixels:
        return "--nearest: all pixels had declared values"
    total = sum(mask.total for mask in masks)
    count = sum(mask.pixels > 0 for mask in masks)
    worst = max(masks, key=lambda mask: mask.distance)
    return (
        f"--nearest: {pixels:,} of {total:,} pixels ({pixels / total:.2%}) in "
        f"{pluralize(count, 'mask(s)')} snapped to the nearest declared value or "
        f"colour; the largest distance was {worst.distance:.0f}, in {worst.path}"
    )


def snap(
    path: epath.Path, mask: Mask, targets: Mapping[Any, int]
) -> tuple[np.ndarray, Snapped]:
    """Finds the label of the nearest declared value or colour of each pixel.

    Args:
        path: The mask.
        mask: Its content.
        targets: Labels of the declared values or colours.

    Returns:
        Labels, uint8 `[height, width]`, and the number of snapped pixels.

    Raises:
        UnclearError: if an undeclared value fills an area, and is therefore no edge, or
            if declared values are too close for a lossy format.
    """
    is_deep = mask.pixels.dtype == np.uint16
    table = _make_table(tuple(sorted(targets.items())), 257 if is_deep else 1)
    if mask.lossy:
        table.check_gaps(path, mask.lossy)
    is_color = mask.pixels.ndim == 3
    keys = lookup.pack_colors(mask.pixels) if is_color else mask.pixels
    codes, distance = table.encode(keys)
    _refuse_areas(path, mask.pixels, (codes & _IS_FAR) > 0)
    pixels = int(np.count_nonzero(codes & _IS_SNAPPED))
    return codes.astype(np.uint8), Snapped(path, pixels, codes.size, distance)


class _Table:
    """The labels of all values or colours that occurred so far.

    Args:
        targets: Labels of the declared values or colours.
        scale: One 8-bit level in the units of the values.
    """

    def __init__(self, targets: Mapping[Any, int], scale: int):
        self._known = np.array(sorted(targets), float).reshape(len(targets), -1)
        self._labels = np.array([targets[v] for v in sorted(targets)], np.uint16)
        self._max_shift = _MAX_SHIFT * scale
        size = lookup.COLORS if self._known.shape[1] == 3 else MAX_VALUE + 1
        # Memory is only taken by the parts that are used.
        self._codes = np.zeros(size, np.uint16)
        self._distances = np.zeros(size, np.float32)

    def encode(self, keys: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns the code of each key, and the largest distance.

        A code is the label plus flags, such as `_IS_SNAPPED` and `_IS_FAR`.

        Args:
            keys: Values, or colours as integers, unsigned `[height, width]`.
        """
        codes = np.take(self._codes, keys)
        if not codes.all():
            new = np.unique(keys[codes == 0])
            for i in range(0, len(new), _MOST_AT_ONCE):
                self._add_keys(new[i : i + _MOST_AT_ONCE])
            codes = np.take(self._codes, keys)
        return codes, float(np.take(self._distances, keys).max())

    def _add_keys(self, keys: np.ndarray) -> None:
        """Adds new keys, `[n]`."""
        is_color = self._known.shape[1] == 3
        values = lookup.unpack_colors(keys) if is_color else keys[:, None]
        values = values.astype(float)
        # (v - k)^2 without an array of all differences.
        squares = np.square(values).sum(1, keepdims=True) - 2 * values @ self._known.T
        squares += np.square(self._known).sum(1)
        distance = np.sqrt(squares.min(1))
        # First, because other threads only add keys without a code.
        self._distances[keys] = distance
        self._codes[keys] = (
            self._labels[squares.argmin(1)]
            | _IS_SNAPPED * (distance > 0)
            | _IS_FAR * (distance > self._max_shift)
            | _IS_KNOWN
        )

    def check_gaps(self, path: epath.Path, lossy: str) -> None:
        """Raises `UnclearError` if a lossy format may blur declared values together.

        Args:
            path: The mask.
            lossy: Name of the format.
        """
        for i, j in zip(*np.triu_indices(len(self._known), 1), strict=True):
            gap = np.linalg.norm(self._known[i] - self._known[j])
            if self._labels[i] != self._labels[j] and gap < _MIN_LOSSY_GAP:
                raise UnclearError(
                    f"{path} is {lossy}, and the declared values "
                    f"{_format(self._known[i])} and {_format(self._known[j])} are too "
                    "close to distinguish; save masks as PNG"
                )


@functools.lru_cache(maxsize=8)
def _make_table(targets: tuple[tuple[Any, int], ...], scale: int) -> _Table:
    return _Table(dict(targets), scale)


def _refuse_areas(path: epath.Path, pixels: np.ndarray, is_far: np.ndarray) -> None:
    """Raises `UnclearError` if values far from all declared ones fill an area."""
    kernel = np.ones((_AREA, _AREA), np.uint8)
    is_far = cv2.erode(is_far.astype(np.uint8), kernel) > 0
    if not is_far.any():
        return
    scale = 257 if pixels.dtype == np.uint16 else 1
    levels = cv2.subtract(cv2.dilate(pixels, kernel), cv2.erode(pixels, kernel))
    is_flat = levels.reshape(*is_far.shape, -1).max(-1) <= _MAX_RANGE * scale
    y, x = np.nonzero(is_flat & is_far)
    if y.size:
        value = np.atleast_1d(pixels[y[0], x[0]])
        flag = format_value(tuple(value) if value.size > 1 else int(value[0]))
        raise UnclearError(
            f"{path} has the undeclared value {_format(value)} at (x, y) = ({x[0]}, "
            f"{y[0]}), in an area too large to be an edge; add "
            f"--value_map={flag}:NAME or --value_map={flag}:ignore"
        )
