"""Counts the values of masks and suggests the flag that gives them a meaning."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np
from etils import epath

from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.convert.value_map import format_value
from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.images import lookup, mask_files
from deeplab_tf.images.image_files import TooLargeError
from deeplab_tf.images.large_masks import LargeMask
from deeplab_tf.images.mask_files import Mask

_MOST_LISTED = 8
# Number of masks read to describe the values of a conversion in an error.
_MOST_DESCRIBED = 200
# Each mask is read once. Not in `AllValues`, which can then be pickled.
_LOCK = threading.RLock()


def to_one_channel(mask: Mask) -> Mask | None:
    """Returns a mask of one channel, or None if it is not grey."""
    if mask.pixels.ndim == 2:
        return mask
    red, green, blue = np.moveaxis(mask.pixels, -1, 0)
    is_grey = np.array_equal(red, green) and np.array_equal(red, blue)
    return mask._replace(pixels=np.ascontiguousarray(red)) if is_grey else None


def count_values(mask: Mask) -> dict[int, int]:
    """Counts pixels by value; none for masks in colour."""
    grey = to_one_channel(mask)
    if grey is None:
        return {}
    if mask.counts is None:
        counts = lookup.count_values(grey.pixels)
    else:
        counts = np.bincount(grey.pixels.ravel(), mask.counts.ravel()).astype(int)
    values = np.flatnonzero(counts)
    return dict(zip(values.tolist(), counts[values].tolist(), strict=True))


def _read_values(path: epath.Path) -> Mask:
    """Returns a mask, or a smaller one with the same values if it is large."""
    try:
        return mask_files.read_mask(path)
    except TooLargeError:
        return LargeMask(path).values


class _Values(NamedTuple):
    """The white of a mask and its pixel counts by value."""

    white: int
    counts: Mapping[int, int]


class AllValues:
    """The values of all masks of a conversion, read when they are needed."""

    def __init__(self, paths: Sequence[epath.Path]):
        self._paths = list(paths)
        self._read: dict[epath.Path, _Values] = {}
        self._fits: dict[tuple[frozenset[int], int], bool] = {}

    def _read_once(self, path: epath.Path) -> _Values:
        """Returns the values of a mask, reading it at the first call."""
        if path not in self._read:
            try:
                mask = _read_values(path)
                self._read[path] = _Values(mask.white, count_values(mask))
            except UserError:  # raised again when the mask is converted
                self._read[path] = _Values(0, {})
        return self._read[path]

    def has_only(self, known: Set[int], white: int) -> bool:
        """Returns whether all masks with this white have only known values."""
        key = frozenset(known), white
        with _LOCK:
            if key not in self._fits:
                self._fits[key] = all(
                    values.white != white or values.counts.keys() <= known
                    for values in map(self._read_once, self._paths)
                )
            return self._fits[key]

    def is_grey(self) -> bool:
        """Returns whether all masks are grey."""
        with _LOCK:
            return all(self._read_once(path).counts for path in self._paths)

    def count(self) -> dict[int, int]:
        """Returns pixels by value, of the first masks if there are many."""
        counts: Counter[int] = Counter()
        with _LOCK:
            for path in self._paths[:_MOST_DESCRIBED]:
                counts.update(self._read_once(path).counts)
        return dict(counts)

    def describe(self, counts: Mapping[int, int]) -> str:
        """Returns the result of `count` as a sentence."""
        masks = min(len(self._paths), _MOST_DESCRIBED)
        subject = "it has" if masks == 1 else f"{masks} masks have"
        return f"{subject} the values {format_counts(counts)}"


def format_counts(counts: Mapping[int, int]) -> str:
    """Returns values with their pixel counts, such as `0 (90 pixels), 255 (10)`."""
    common = Counter(counts).most_common(_MOST_LISTED)
    listed = sorted(common)
    parts = [f"{v} ({pluralize(n, 'pixel(s)')})" for v, n in listed[:1]]
    parts += [f"{value} ({count:,})" for value, count in listed[1:]]
    more = len(counts) - len(common)
    text = ", ".join(parts)
    return f"{text} and {pluralize(more, 'more value(s)')}" if more else text


def describe_unknown_color(
    path: epath.Path, mask: Mask, packed: np.ndarray, wrong: np.ndarray
) -> str:
    """Describes the first unknown colour of a mask, and suggests a reason.

    Args:
        path: The file.
        mask: The mask, in colour.
        packed: Its colours as integers, in the shape of the mask.
        wrong: Where they are unknown, bool, in the same shape.
    """
    y, x = np.argwhere(wrong)[0].tolist()
    color = tuple(mask.pixels[y, x].tolist())
    where = f" first at (x, y) = ({x}, {y})," if mask.counts is None else ""
    count, every = (
        mask.count_pixels(packed == packed[y, x]),
        mask.count_pixels(packed >= 0),
    )
    others = np.unique(packed[wrong]).size - 1
    hint = (
        f"and {others} more colours, {mask.count_pixels(wrong):,} pixels in all; "
        "if it was anti-aliased, resized or saved as JPEG, add --nearest"
        if others > 8
        else f"add a class of this colour, --value_map={format_value(color)}:NAME, or "
        f"{format_value(color)}:ignore"
    )
    return (
        f"{path} has the colour {color}, which is not a class,{where} in {count} of "
        f"{every} pixels; {hint}"
    )


def suggest_flag(counts: Mapping[int, int], classes: ClassList) -> str:
    """Returns a guess at the meaning of values and the flag that declares it.

    Args:
        counts: Pixels by value.
        classes: The classes.
    """
    names, known = classes.info.class_names, classes.value_ids()
    values = sorted(counts)
    unknown = [value for value in values if value not in known]
    if not unknown:
        return "declare each value with --value_map"
    if len(unknown) > max(4, len(names)):
        return _suggest_nearest(counts, classes)
    if values == [0, 255] or (len(names) > 1 and set(values) <= {0, 255}):
        return f"if 255 is an object, add --value_map=255:{classes.object_name}"
    if len(values) == 2 and values[0] == 0 and len(unknown) == 1:
        entry = f"{values[1]}:{classes.object_name}"
        return f"if {values[1]} is an object, add --value_map={entry}"
    if values in ([*range(1, len(names) + 1)], [*range(len(names) + 1)]):
        entries = [f"{i}:{name}" for i, name in enumerate(names, 1)]
        return f"if class ids start at 1, add --value_map=0:ignore,{','.join(entries)}"
    if len(values) == len(names) and len(unknown) > 1:
        entries = [f"{v}:{name}" for v, name in zip(values, names, strict=True)]
        return (
            "if there is one value per class, in the order of --classes, add "
            f"--value_map={','.join(entries)}"
        )
    entries = [f"{value}:NAME" for value in unknown[:_MOST_LISTED]]
    return (
        f"add --value_map={','.join(entries)} with the class of each value, or "
        f"{unknown[0]}:ignore"
    )


def _suggest_nearest(counts: Mapping[int, int], classes: ClassList) -> str:
    """Returns a sentence that suggests `--nearest` and the values to declare."""
    names = classes.info.class_names
    ends = min(counts), max(counts)
    declared = classes.grey_ids() | classes.declared_values()
    count = sum(n for value, n in counts.items() if value not in (declared or ends))
    found = pluralize(count, "pixel(s) (has|have) values in between")
    what = (
        f"{found}; if masks were anti-aliased, resized or saved as JPEG, add --nearest"
    )
    if declared:
        return what
    entries = f"{ends[0]}:{names[0]},{ends[1]}:{classes.object_name}"
    return f"{what} --value_map={entries}"
