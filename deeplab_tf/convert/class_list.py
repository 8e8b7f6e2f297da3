"""Reads the classes of a dataset from a text file or a `dataset_info.json`."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from deeplab_tf import strict_json
from deeplab_tf.data.info import DatasetInfo, check_class_names, check_color
from deeplab_tf.errors import UserError
from deeplab_tf.files import text_files

Color = tuple[int, int, int]

# Colours follow the names or, as in CamVid's list, precede them.
_HEADER = ["name", "r", "g", "b"]


class ClassList(NamedTuple):
    """The classes of labels and, if labels may be painted, their colours.

    `has_colors` is whether the user gave `info.colors`, so that labels may use them;
    `ignore_color` is the colour of ignored pixels in such labels.
    """

    info: DatasetInfo
    has_colors: bool = False
    ignore_color: Color | None = None

    def color_ids(self) -> dict[Color, int]:
        """Returns the label value of each colour."""
        if not self.has_colors:
            return {}
        ids = {color: i for i, color in enumerate(self.info.colors)}
        if self.ignore_color is not None:
            ids[self.ignore_color] = self.info.ignore_label
        return ids


def read_class_list(
    path: epath.Path,
    default_name: str,
    ignore_color: Color | None = None,
    **changes: str | int,
) -> ClassList:
    """Reads the classes that a file lists.

    Args:
        path: Text with one class per line, `name` or `name r g b` or `r g b name`,
            or JSON as in `dataset_info.json`.
        default_name: Name of the dataset if the file has none.
        ignore_color: Colour of ignored pixels in colour masks.
        **changes: Fields of `DatasetInfo` (`name`, `ignore_label`, `channels`,
            `max_value`) that replace those of the file.

    Raises:
        UserError: if the file is missing or invalid, or two classes have the same name
            or colour.
    """
    if not path.exists() or path.is_dir():
        raise UserError(f"--classes={path} is not a file")
    content = text_files.read_content(os.fspath(path))
    if path.suffix == ".json" or content.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"{":
        found = DatasetInfo.from_json(content, source=str(path))
        has_colors = bool(strict_json.parse(content, str(path)).get("colors"))
    else:
        names, colors = _parse_lines(path, text_files.split_lines(content, str(path)))
        check_class_names(names, f"{path}: class_names")
        found = DatasetInfo(default_name, names, colors=colors)
        has_colors = bool(colors)
    _check_unique(path, found)
    # The sizes and counts of a JSON are those of other images.
    fields = ("name", "class_names", "ignore_label", "colors", "channels", "max_value")
    kept = {field: getattr(found, field) for field in fields}
    classes = ClassList(DatasetInfo(**(kept | changes)), has_colors, ignore_color)
    _check_ignore_color(path, classes)
    return classes


def _parse_lines(
    path: epath.Path, lines: Sequence[str]
) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Returns the names and the colours of the classes; there may be no colours."""
    rows = []
    for number, line in enumerate(lines, 1):
        words = [word for word in re.split(r"[\s,;]+", line) if word]
        header = not rows and [word.lower() for word in words] == _HEADER
        if words and not header and not words[0].startswith("#"):
            rows.append((number, *_parse_row(f"line {number} of {path}", words)))
    if not rows:
        raise UserError(f"{path} lists no class; write one per line")
    with_color = [number for number, _, color in rows if color]
    without = [number for number, _, color in rows if not color]
    if with_color and without:
        raise UserError(
            f"{path} has a colour in line {with_color[0]} but none in line "
            f"{without[0]}; give all classes a colour, or none"
        )
    names = tuple(name for _, name, _ in rows)
    return names, tuple(color for _, _, color in rows if color)


def _parse_row(where: str, words: Sequence[str]) -> tuple[str, Color | None]:
    color_last, color_first = (
        len(words) > 3 and all(re.fullmatch(r"-?\d+", word) for word in part)
        for part in (words[-3:], words[:3])
    )
    if len(words) == 3 and all(word.isdecimal() for word in words):
        raise UserError(
            f"{where} has a colour but no name: {' '.join(words)}; add the class name"
        )
    if color_last and color_first:
        raise UserError(
            f"{where} is ambiguous: the colour may be the first or the last three "
            f"numbers of {' '.join(words)!r}; change the class name"
        )
    if not (color_last or color_first):
        return " ".join(words), None
    name, color = (words[:-3], words[-3:]) if color_last else (words[3:], words[:3])
    # Python refuses to convert thousands of digits.
    values = tuple(int(word) if len(word) < 10 else 10**9 for word in color)
    check_color(values, f"the colour in {where}")
    return " ".join(name), values


def _check_unique(path: epath.Path, info: DatasetInfo) -> None:
    """Raises `UserError` for two classes with the same name or colour."""
    names, by_color = set(), {}
    for name, color in zip(info.class_names, info.colors, strict=True):
        if name in names:
            raise UserError(f"{path} has two classes named {name}")
        names.add(name)
        if color in by_color:
            raise UserError(
                f"{path} gives the classes {by_color[color]} and {name} the same "
                f"colour, {color}"
            )
        by_color[color] = name


def _check_ignore_color(path: epath.Path, classes: ClassList) -> None:
    """Raises `UserError` if a class has the ignore colour or all have none."""
    color = classes.ignore_color
    if color is None:
        return
    if not classes.has_colors:
        raise UserError(f"--ignore_color needs a colour for each class of {path}")
    if color in classes.info.colors:
        name = classes.info.class_names[classes.info.colors.index(color)]
        raise UserError(
            f"--ignore_color={','.join(map(str, color))} is the colour of the class "
            f"{name} in {path}; remove the class to ignore it"
        )
