"""Rows of class files, whatever their format, and the table of classes they make."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from deeplab_tf.convert.value_map import Color
from deeplab_tf.data.info import check_class_names, check_color
from deeplab_tf.errors import UserError
from deeplab_tf.images.mask_files import MAX_VALUE

# labelme's name for pixels without a class.
_IGNORED = "__ignore__"
# Keys and column titles that mean a field of a class, in all formats.
FIELD_WORDS = {
    "name": ("name", "label", "class", "class_name", "label_name", "title"),
    "id": ("id", "class_id", "label_id", "index", "value", "pixel_value"),
    "color": ("color", "colour", "rgb", "hex", "color_rgb"),
}
_VOID_NAMES = {"void", "ignore", "ignored", "unlabeled", "unlabelled", "ambiguous"}


class Row(NamedTuple):
    """A class as listed; `where` is its location, such as `line 3 of classes.txt`."""

    where: str
    name: str
    id: int | None = None
    color: Color | None = None


class Table(NamedTuple):
    """The classes of a file.

    Attributes:
        names: Names, in the order of class ids.
        colors: A colour of each class, or none.
        values: Class id of each mask value; None if mask values are class ids.
        ignored_values: Mask values of pixels without a class.
        ignore_colors: Their colours.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    values: dict[int, int] | None
    ignored_values: tuple[int, ...] = ()
    ignore_colors: tuple[Color, ...] = ()


def normalize_title(text: str) -> str:
    """Returns a key or column title in lower case, with underscores for spaces."""
    return re.sub(r"[\s-]+", "_", text.lower())


def build_table(rows: Sequence[Row], source: str) -> Table:
    """Returns the table of rows, in the order of their ids.

    Raises:
        UserError: if there are no rows; if only some have an id or a colour; or if
            names, ids or colours are invalid or occur twice.
    """
    for row in rows:
        if row.color is not None:
            check_color(row.color, f"the colour in {row.where}")
    ignored = [row for row in rows if row.name == _IGNORED]
    classes = [row for row in rows if row.name != _IGNORED]
    if not classes:
        raise UserError(f"{source} lists no class; write one per line")
    for field, noun in (("id", "an id"), ("color", "a colour")):
        _require_all_or_none(rows, field, noun)
    if ignored and rows[0].id is None and ignored != [rows[0]]:
        raise UserError(f"{ignored[-1].where}: {_IGNORED} must be the first class")
    values = None
    if classes[0].id is not None:
        classes.sort(key=lambda row: row.id or 0)
        _check_ids(classes)
        values = {row.id: i for i, row in enumerate(classes) if row.id is not None}
    _check_unique(classes, source)
    names = tuple(row.name for row in classes)
    check_class_names(names, f"{source}: class_names")
    return Table(
        names,
        tuple(row.color for row in classes if row.color),
        None if values == {i: i for i in range(len(names))} else values,
        tuple(row.id for row in ignored if row.id is not None and row.id >= 0),
        tuple(row.color for row in ignored if row.color),
    )


def _require_all_or_none(rows: Sequence[Row], field: str, noun: str) -> None:
    """Raises `UserError` if some rows have a field and others do not."""
    given = [row for row in rows if getattr(row, field) is not None]
    missing = [row for row in rows if getattr(row, field) is None]
    if given and missing:
        raise UserError(
            f"{missing[0].where} has no {field}, but {given[0].where} has one; give "
            f"all classes {noun}, or none"
        )


def _check_ids(rows: Sequence[Row]) -> None:
    """Raises `UserError` for ids out of range or repeated, or a void class 255.

    `rows` must be sorted by id.
    """
    for before, row in zip([None, *rows], rows, strict=False):
        assert row.id is not None
        if not 0 <= row.id <= MAX_VALUE:
            raise UserError(
                f"{row.where} has the id {row.id}; ids are mask values, 0..{MAX_VALUE}"
            )
        if before is not None and before.id == row.id:
            raise UserError(
                f"{before.where} and {row.where} have the same id, {row.id}"
            )
        if row.id == 255 and row.name.lower() in _VOID_NAMES:
            raise UserError(
                f"{row.where}: is {row.name} a class? If not, remove it and add "
                "--value_map=255:ignore; else rename it"
            )


def _check_unique(rows: Sequence[Row], source: str) -> None:
    """Raises `UserError` for two classes with the same name or colour."""
    names: set[str] = set()
    by_color: dict[Color, str] = {}
    for row in rows:
        if row.name in names:
            raise UserError(
                f"{source} has two classes named {row.name}; if numbers next to a name "
                "belong to it, put the name in quotes"
            )
        names.add(row.name)
        if row.color is not None and row.color in by_color:
            raise UserError(
                f"{source} gives the classes {by_color[row.color]} and {row.name} the "
                f"same colour, {row.color}"
            )
        if row.color is not None:
            by_color[row.color] = row.name
