"""Converts masks of class ids, other values or colours to class ids.

All masks of a conversion are read in the same way. If two readings of their values are
plausible, they are refused; the error names the flag that decides.
"""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np
from etils import epath

from deeplab_tf.convert import findings, mask_values, nearest
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.convert.value_map import Color
from deeplab_tf.errors import UnclearError
from deeplab_tf.images import lookup, mask_files
from deeplab_tf.images.image_files import TooLargeError
from deeplab_tf.images.large_masks import LargeMask
from deeplab_tf.images.mask_files import Mask

# Lossy formats change neighbouring class ids by less than this.
_MAX_NOISE = 8


def read_label(path: epath.Path, classes: ClassList) -> np.ndarray:
    """Returns the class ids of a single mask; see `Masks.read`."""
    return Masks(classes, [path]).read(path)


class _Reading(NamedTuple):
    """How a mask was read that is either class ids or grey colours."""

    path: epath.Path
    kind: str


class Masks:
    """The masks of a conversion.

    Args:
        classes: The classes and the meaning of values and colours.
        paths: All masks of the conversion. A few are read to decide how to read one
            that is ambiguous on its own.
    """

    def __init__(self, classes: ClassList, paths: Sequence[epath.Path]):
        self.classes = classes
        self._values = mask_values.AllValues(paths)
        # --val_share reads masks twice.
        self._snapped: dict[epath.Path, nearest.Snapped] = {}
        self._readings: dict[str, epath.Path] = {}

    def read(self, path: epath.Path) -> np.ndarray:
        """Returns the class ids of a mask, uint8 `[height, width]`.

        It has one channel of class ids or declared values, or colours (RGB or a
        palette). Values must match exactly, unless `classes.nearest`.

        Raises:
            UserError: if the file is broken.
            UnclearError: if it is lossy without `classes.nearest`, has a value or
                colour without a meaning, or is ambiguous.
        """
        try:
            return self._read_mask(path, mask_files.read_mask(path))
        except TooLargeError:
            if self.classes.nearest:
                # The values alone do not distinguish edges from areas.
                raise
            large = LargeMask(path)
            return large.label(self._read_mask(path, large.values))

    def add(self, finding: nearest.Snapped | _Reading) -> None:
        """Counts snapped pixels, and compares how masks were read.

        Raises:
            UnclearError: if masks have both class ids and grey colours.
        """
        if isinstance(finding, nearest.Snapped):
            self._snapped.setdefault(finding.path, finding)
            return
        self._readings.setdefault(finding.kind, finding.path)
        if len(self._readings) > 1:
            (first, a), (second, b) = sorted((p, k) for k, p in self._readings.items())
            raise UnclearError(
                f"{first} has {a}, but {second} has {b}; a conversion needs masks of "
                "one kind"
            )

    def report(self) -> None:
        """Prints how many pixels `--nearest` changed."""
        if self.classes.nearest:
            print(nearest.describe_snapped(self._snapped.values()))

    def _read_mask(self, path: epath.Path, mask: Mask) -> np.ndarray:
        """Reads a mask, after refusing lossy formats without `--nearest`."""
        if mask.lossy and not self.classes.nearest:
            raise UnclearError(
                f"{path} is {mask.lossy}, which changes values and colours; save "
                f"masks as PNG, or add --nearest{self._suggest_flags(path, mask)}"
            )
        label = self._interpret(path, mask)
        self._check_clear(path, mask, label)
        return label

    def _suggest_flags(self, path: epath.Path, mask: Mask) -> str:
        """Returns the flags that `--nearest` needs as well, "" if none."""
        if self.classes.color_ids() or self.classes.declared_values():
            return ""
        counts = mask_values.count_values(mask)
        hint = mask_values.suggest_flag(counts, self.classes) if counts else ""
        _, nearest_flag, flags = hint.partition("--nearest")
        return flags if nearest_flag else " and the values of the classes, --value_map"

    def _check_clear(self, path: epath.Path, mask: Mask, label: np.ndarray) -> None:
        """Raises `UnclearError` if transparent pixels are painted as an object."""
        if mask.is_clear is None:
            return
        info = self.classes.info
        is_hidden = mask.is_clear & (label != 0) & (label != info.ignore_label)
        if is_hidden.any():
            raise UnclearError(
                f"{path} has {mask.count_pixels(is_hidden):,} transparent pixels in "
                f"the colour of {info.class_names[label[is_hidden][0]]}; remove the "
                "transparency, or paint them as background"
            )

    def _interpret(self, path: epath.Path, mask: Mask) -> np.ndarray:
        """Reads a mask as colours, as a palette or as values, whichever it has."""
        if mask.pixels.ndim == 3:
            grey = mask_values.to_one_channel(mask)
            colors = self._map_colors()
            if self.classes.color_ids() or (grey is None and self.classes.nearest):
                self._check_grey_colors(path, grey, colors)
                return self._read_colors(path, mask, colors)
            if grey is None:
                raise UnclearError(
                    f"{path} is in colour, but the classes have no colours; add r g b "
                    "to each line of --classes, or --value_map=#rrggbb:NAME"
                )
            mask = grey
        counts = mask_values.count_values(mask)
        if mask.palette is not None:
            label = self._read_palette(path, mask, counts)
            if label is not None:
                return label
        return self._read_values(path, mask, counts)

    def _check_grey_colors(
        self, path: epath.Path, grey: Mask | None, colors: Mapping[Color, int]
    ) -> None:
        """Raises `UnclearError` if grey colours may be class ids in three channels."""
        if grey is None or not self._values.is_grey():
            return
        ids = self.classes.value_ids()
        values = mask_values.count_values(grey).keys()
        differs = any(ids.get(v) != colors.get((v, v, v)) for v in values)
        is_sure = self._is_black_and_white(grey.white) or not differs
        if self.classes.nearest:
            nearest.require_one_meaning(self.classes)
        elif any((v, v, v) not in colors for v in values):
            return  # `_read_colors` reports them
        if not is_sure and self._are_ids(ids.keys(), grey):
            raise UnclearError(
                f"{path} has grey colours that are also class ids; save class ids with "
                "one channel, or declare the colours with --value_map=#rrggbb:NAME and "
                "remove the ids and colours from --classes"
            )

    def _map_colors(self) -> dict[Color, int]:
        """Returns the label of each colour, and of each declared grey value."""
        colors = self.classes.color_ids()
        if self.classes.nearest and not colors:
            values = nearest.find_value_targets(self.classes, 255)
        elif colors:
            # The class file's values are those of masks of one channel.
            values = self.classes._replace(file_values=None).declared_values()
        else:
            values = self.classes.declared_values()
        greys = {(v, v, v): label for v, label in values.items() if v < 256}
        return greys | colors

    def _read_colors(
        self,
        path: epath.Path,
        mask: Mask,
        ids: Mapping[Color, int],
    ) -> np.ndarray:
        """Labels colours, exactly or, with `--nearest`, by the nearest colour."""
        if self.classes.nearest:
            nearest.require_all_classes(self.classes, ids)
            return _snap(path, mask, ids)
        keys = lookup.pack_colors(mask.pixels)
        # Only the parts of the table that are used take memory.
        table = np.zeros(lookup.COLORS, np.uint16)
        for (red, green, blue), label in ids.items():
            table[red << 16 | green << 8 | blue] = label + 1
        labels = lookup.look_up(table, keys)
        if not labels.all():
            what = mask_values.describe_unknown_color(path, mask, keys, labels == 0)
            raise UnclearError(what)
        return (labels - 1).astype(np.uint8)

    def _read_palette(
        self, path: epath.Path, mask: Mask, counts: Mapping[int, int]
    ) -> np.ndarray | None:
        """Reads a palette as colours if all of them are known; else returns None."""
        assert mask.palette is not None
        ids, declared = self._map_colors(), self.classes.declared_values()
        used = list(counts)
        colors = {
            i: tuple(mask.palette[i].tolist()) for i in used if i < len(mask.palette)
        }
        if ids and len(colors) == len(used) and all(c in ids for c in colors.values()):
            table = np.zeros(256, np.uint8)
            for index, color in colors.items():
                table[index] = ids[color]
            by_index = [declared.get(i) for i in used]
            if None not in by_index and by_index != [table[i] for i in used]:
                raise UnclearError(
                    f"{path} has a palette whose indices and colours are both declared "
                    "but differ; declare only one of them"
                )
            return lookup.look_up(table, mask.pixels)
        known = self.classes.color_ids()
        if not self.classes.nearest:
            _check_palette(path, colors, known, self.classes.value_ids())
            return None
        if set(used) <= set(self.classes.value_ids()):
            raise UnclearError(
                f"{path} has a palette of undeclared colours whose indices are class "
                "ids; remove --nearest, or save the mask in RGB"
            )
        colored = mask._replace(pixels=mask.palette[mask.pixels])
        return self._read_colors(path, colored, ids)

    def _read_values(
        self, path: epath.Path, mask: Mask, counts: Mapping[int, int]
    ) -> np.ndarray:
        if self.classes.nearest and mask.palette is None:
            return self._snap_values(path, mask, counts)
        table = self._choose_table(path, mask, counts)
        labels = np.zeros(max(table) + 1, np.uint8)
        labels[list(table)] = list(table.values())
        return lookup.look_up(labels, mask.pixels)

    def _snap_values(
        self, path: epath.Path, mask: Mask, counts: Mapping[int, int]
    ) -> np.ndarray:
        """Labels values by the nearest declared one."""
        nearest.require_one_meaning(self.classes)
        targets = nearest.find_value_targets(self.classes, mask.white)
        nearest.require_all_classes(self.classes, targets)
        by_id, _ = self._map_values(mask)
        differs = any(by_id.get(v) != targets.get(v) for v in counts)
        is_sure = self._is_black_and_white(mask.white) or not differs
        if not is_sure and self._are_ids(by_id.keys(), mask):
            raise UnclearError(
                f"{path} has the values {mask_values.format_counts(counts)}, which are "
                "all class ids, but not declared as such; remove --nearest, or declare "
                "them with --value_map"
            )
        return _snap(path, mask, targets)

    def _choose_table(
        self, path: epath.Path, mask: Mask, counts: Mapping[int, int]
    ) -> Mapping[int, int]:
        """Returns the labels of values, read as class ids or as grey colours."""
        by_id, by_color = self._map_values(mask)
        values = counts.keys()
        fits_id = values <= by_id.keys()
        fits_color = values <= by_color.keys()
        if not (fits_id or fits_color):
            raise UnclearError(self._describe_values(path, mask, counts))
        if fits_id and fits_color and any(by_id[v] != by_color[v] for v in values):
            fits_id, fits_color = self._choose_reading(path, mask, by_id, by_color)
        if fits_id != fits_color:
            findings.add(_Reading(path, "class ids" if fits_id else "grey colours"))
        table = by_id if fits_id else by_color
        if fits_id:
            self._check_black_and_white(path, mask, values)
        return table

    def _map_values(self, mask: Mask) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Returns two tables of labels by value: as class ids and as grey colours."""
        declared = self.classes.declared_values()
        ids = {v: i for v, i in self.classes.value_ids().items() if v not in declared}
        if mask.white < 255:
            # Users may have declared the values that viewers display.
            shown = _scale_levels(declared, mask.white)
            is_shown = {0, 255} <= declared.keys()
            is_shown &= self._values.has_only(declared.keys(), 255)
            known = declared if is_shown else ids | declared
            both = {v for v in shown.keys() & known if shown[v] != known[v]}
            declared = {v: i for v, i in (shown | declared).items() if v not in both}
            ids = {v: i for v, i in ids.items() if v not in both}
        by_id = ids | declared
        if mask.palette is not None:
            return by_id, {}
        by_color = _scale_levels(self.classes.grey_ids(), mask.white)
        return by_id, (by_color | declared if by_color else {})

    def _choose_reading(
        self,
        path: epath.Path,
        mask: Mask,
        by_id: Mapping[int, int],
        by_color: Mapping[int, int],
    ) -> tuple[bool, bool]:
        """Returns whether values are class ids, and whether they are grey colours.

        Decides by the values of all masks; exactly one is true.
        """
        fits_id = self._values.has_only(by_id.keys(), mask.white)
        fits_color = self._values.has_only(by_color.keys(), mask.white)
        if fits_id != fits_color:
            return fits_id, fits_color
        if fits_id and self._is_black_and_white(mask.white) and 255 in by_color:
            return False, True
        entries = [
            f"{value}:{self.classes.info.class_names[label]}"
            for value, label in sorted(by_color.items())
            if label < self.classes.info.num_classes
        ]
        raise UnclearError(
            f"{path} has one channel whose values may be class ids or the grey colours "
            f"of --classes; for colours, add --value_map={','.join(entries)}; for "
            "class ids, remove the colours from --classes"
        )

    def _check_black_and_white(
        self, path: epath.Path, mask: Mask, values: Set[int]
    ) -> None:
        """Raises `UnclearError` if 255 is ignored but may be the object in white."""
        is_suspicious = 255 in values and values <= {0, 255}
        if not (is_suspicious and self._is_black_and_white(mask.white)):
            return
        counts = self._values.count()
        raise UnclearError(
            f"{path} and all other masks have only the values "
            f"{mask_values.format_counts(counts)}; if 255 is an object, add "
            f"--value_map=255:{self.classes.object_name}; if it is unlabelled, add "
            "--ignore_label=255"
        )

    def _are_ids(self, ids: Set[int], mask: Mask) -> bool:
        """Returns whether all masks may have class ids, judging by their format.

        Void is left out for lossy formats: it may be white paint.
        """
        if mask.lossy:
            shifts = range(-_MAX_NOISE, _MAX_NOISE + 1)
            ids = ids - {self.classes.info.ignore_label}
            ids = {value + shift for value in ids for shift in shifts}
        return self._values.has_only(ids, mask.white)

    def _is_black_and_white(self, white: int) -> bool:
        """Returns whether all masks are 0 and 255, and 255 is ignored by default."""
        return (
            not self.classes.ignores_explicitly
            and self.classes.info.ignore_label == 255
            and 255 not in self.classes.declared_values()
            and self._values.has_only({0, 255}, white)
            and not self._values.has_only({0}, white)
        )

    def _describe_values(
        self, path: epath.Path, mask: Mask, counts: Mapping[int, int]
    ) -> str:
        """Returns the error for unknown values, with a suggestion."""
        by_id, by_color = self._map_values(mask)
        unknown = sorted(v for v in counts if v not in by_id and v not in by_color)
        total = self._values.count()
        if not unknown:
            what = "values that are partly class ids and partly grey colours"
        else:
            n, every = counts[unknown[0]], sum(counts.values())
            what = f"the value {unknown[0]} in {n:,} of {every:,} pixels"
            if mask.white < 255 and unknown[0] in self.classes.value_ids():
                what += ", in fewer than 8 bits: an id or a grey level"
        return (
            f"{path} contains {what}; valid labels are "
            f"{self.classes.describe_values()}; {self._values.describe(total)}; "
            f"{mask_values.suggest_flag(total, self.classes)}"
        )


def _snap(path: epath.Path, mask: Mask, targets: Mapping) -> np.ndarray:
    label, snapped = nearest.snap(path, mask, targets)
    findings.add(snapped)
    return label


def _scale_levels(levels: Mapping[int, int], white: int) -> dict[int, int]:
    """Returns the labels of grey levels 0..255 as values of another depth."""
    return {
        level * white // 255: label
        for level, label in levels.items()
        if level < 256 and level * white % 255 == 0
    }


def _check_palette(
    path: epath.Path,
    colors: Mapping[int, Color],
    ids: Mapping[Color, int],
    value_ids: Mapping[int, int],
) -> None:
    """Raises `UnclearError` if colours of known classes disagree with the indices."""
    unknown = [color for color in colors.values() if color not in ids]
    is_other = len(unknown) == len(colors)  # has nothing to do with the classes
    for index, color in () if is_other else colors.items():
        label = value_ids.get(index, index)
        # A class without a colour may have any.
        painted = ids.get(color, None if label in ids.values() else label)
        if painted != label:
            what = "not its own" if painted is None else f"that of class {painted}"
            raise UnclearError(
                f"{path} has the colour {unknown[0]}, which is not a class, but {color}"
                f" at index {index} is {what}; correct its palette, or remove the "
                "colours from --classes to read the indices"
            )
