"""Parses `--value_map` and `--ignore_color`."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from deeplab_tf.data.info import check_color
from deeplab_tf.errors import UserError, suggest_similar
from deeplab_tf.images.mask_files import MAX_VALUE

Color = tuple[int, int, int]
# A value of one channel or a colour -> class id, or the ignore label.
ValueMap = dict[int | Color, int]

IGNORE = "ignore"
_HEX = re.compile("#[0-9a-fA-F]{6}")
# Class names may contain commas.
_NEXT_ENTRY = re.compile(r",(?=\s*(?:#[0-9a-fA-F]{6}|\d+)\s*:)")


class Targets(NamedTuple):
    """The possible targets of a value.

    Attributes:
        class_names: Names by class id.
        ignore_label: Label of ignored pixels.
        has_ids: Whether a class id is also the value that the class file gives to the
            class; else only names are unambiguous.
    """

    class_names: Sequence[str]
    ignore_label: int
    has_ids: bool = True

    def find(self, name: str, where: str) -> int:
        """Returns the label of a class name, class id or `ignore`."""
        names = list(self.class_names)
        if name == IGNORE:
            if IGNORE in names:
                raise UserError(
                    f"{where}: {IGNORE} is also a class; give its id, "
                    f"{names.index(IGNORE)}, or rename the class to ignore pixels"
                )
            return self.ignore_label
        if name in names:
            return names.index(name)
        if not name.isdecimal():
            near = suggest_similar(name, [*names, IGNORE])
            raise UserError(
                f"{where}: {name!r} is not a class; {near}write one of "
                f"{', '.join(names)}, a class id or {IGNORE}"
            )
        if not self.has_ids:
            raise UserError(
                f"{where}: {name} could be a class id or a mask value of --classes; "
                "write the name of the class"
            )
        if len(name) > 3 or int(name) >= len(names):
            raise UserError(f"{where}: class ids are 0..{len(names) - 1}")
        return int(name)


def format_value(value: int | Color) -> str:
    """Returns a value or colour as `--value_map` takes it."""
    return (
        str(value) if isinstance(value, int) else "#{:02x}{:02x}{:02x}".format(*value)
    )


def parse_hex(text: str) -> Color:
    """Returns the colour in a string such as #ff8000."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def is_hex(text: str) -> bool:
    """Returns whether a string is a colour such as #ff8000."""
    return bool(_HEX.fullmatch(text))


def parse_value_map(entries: Sequence[str], targets: Targets) -> ValueMap:
    """Parses `--value_map`.

    Args:
        entries: Comma-separated lists of `VALUE:CLASS`. VALUE is 0..65535 or a colour
            such as #ff8000, CLASS a class name, a class id or `ignore`.
        targets: The classes.

    Raises:
        UserError: if an entry is invalid or gives a value two classes.
    """
    values: ValueMap = {}
    for entry in (e for text in entries for e in _NEXT_ENTRY.split(text)):
        where = f"--value_map={entry.strip()}"
        left, colon, right = (part.strip() for part in entry.partition(":"))
        if not (colon and right):
            raise UserError(
                f"{where} must be VALUE:CLASS, such as 255:{targets.class_names[-1]}"
            )
        value = _parse_value(left, where)
        target = targets.find(right, where)
        if values.setdefault(value, target) != target:
            raise UserError(f"--value_map maps {left} to two classes")
    return values


def _parse_value(text: str, where: str) -> int | Color:
    if is_hex(text):
        return parse_hex(text)
    if not text.isdecimal() or len(text) > 5 or int(text) > MAX_VALUE:
        raise UserError(
            f"{where}: {text!r} is not a value in 0..{MAX_VALUE} or a colour such as "
            "#ff8000"
        )
    return int(text)


def parse_colors(texts: Sequence[str], flag: str) -> tuple[Color, ...]:
    """Parses the values of a flag: each is `r,g,b`, or colours `#rrggbb,#rrggbb,...`.

    Raises:
        UserError: if a value is neither.
    """
    colors: list[Color] = []
    for text in texts:
        parts = [part.strip() for part in text.split(",")]
        if all(is_hex(part) for part in parts):
            colors += map(parse_hex, parts)
            continue
        values = tuple(int(x) if x.isdecimal() and len(x) < 10 else x for x in parts)
        check_color(values, flag)
        colors.append(values)
    return tuple(colors)
