"""Reads the classes of a dataset from a text file or a `dataset_info.json`."""

import os
import re
import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from deeplab_tf import strict_json
from deeplab_tf.convert.value_map import Color, Targets, format_value, parse_value_map
from deeplab_tf.data.info import DatasetInfo, check_class_names, check_color
from deeplab_tf.errors import UserError
from deeplab_tf.files import text_files

# Colours follow the names or, as in CamVid's list, precede them.
_HEADER = ["name", "r", "g", "b"]


class ClassList(NamedTuple):
    """The classes, and the meaning of the values and colours of masks.

    Attributes:
        info: Names, colours and the ignore label.
        has_colors: Whether the user gave `info.colors`, so that masks may use them.
        ignore_colors: Colours of ignored pixels.
        file_values: Class id of each mask value that the class file gives; None if it
            gives none, so that mask values are class ids.
        value_map: Label of further values and colours (`--value_map`).
        nearest: Whether other values and colours become the nearest of these.
        ignores_explicitly: Whether the user gave the ignore label.
    """

    info: DatasetInfo
    has_colors: bool = False
    ignore_colors: tuple[Color, ...] = ()
    file_values: Mapping[int, int] | None = None
    value_map: Mapping[int | Color, int] = types.MappingProxyType({})
    nearest: bool = False
    ignores_explicitly: bool = False

    def color_ids(self) -> dict[Color, int]:
        """Returns the label of each colour."""
        colors = self.info.colors if self.has_colors else ()
        ids = {color: i for i, color in enumerate(colors)}
        ids |= {color: self.info.ignore_label for color in self.ignore_colors}
        return ids | {c: i for c, i in self.value_map.items() if isinstance(c, tuple)}

    def declared_values(self) -> dict[int, int]:
        """Returns the label of each value that the user gives a meaning."""
        declared = {v: i for v, i in self.value_map.items() if isinstance(v, int)}
        return dict(self.file_values or {}) | declared

    def value_ids(self) -> dict[int, int]:
        """Returns the label of each value, of one channel."""
        ids = {self.info.ignore_label: self.info.ignore_label}
        if self.file_values is None:
            ids |= {i: i for i in range(self.info.num_classes)}
        return ids | self.declared_values()

    def describe_values(self) -> str:
        """Returns the valid values of masks of one channel, for messages."""
        if self.file_values is None and not self.declared_values():
            return self.info.known_labels
        return ", ".join(map(str, sorted(self.value_ids())))

    def describe(self) -> str:
        """Returns a table of the classes: id, name, colour and mask values."""
        values, colors = self.value_ids(), self.color_ids()
        rows = [("id", "class", "colour", "mask values")]
        names = [
            *enumerate(self.info.class_names),
            (self.info.ignore_label, "(ignored)"),
        ]
        # In ADE20K, a class is ignored.
        for label, name in dict(reversed(names)).items():
            of_label = [format_value(c) for c, i in colors.items() if i == label]
            numbers = [str(v) for v, i in sorted(values.items()) if i == label]
            rows.append((str(label), name, " ".join(of_label), " ".join(numbers)))
        rows[1:] = sorted(rows[1:], key=lambda row: int(row[0]))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
        )

    def recipe(self) -> str:
        """Returns a text of everything that labels depend on."""
        values = sorted(self.value_ids().items())
        return repr((values, sorted(self.color_ids().items()), self.nearest))


class MaskOptions(NamedTuple):
    """Flags that say what mask values and colours mean.

    Attributes:
        ignore_colors: Colours of ignored pixels.
        value_map: Entries of `--value_map`.
        nearest: Whether other values and colours become the nearest of the declared.
    """

    ignore_colors: tuple[Color, ...] = ()
    value_map: Sequence[str] = ()
    nearest: bool = False


NO_OPTIONS = MaskOptions()


def read_class_list(
    path: epath.Path,
    default_name: str,
    options: MaskOptions = NO_OPTIONS,
    **changes: str | int,
) -> ClassList:
    """Reads the classes that a file lists.

    Args:
        path: Text with one class per line, `name` or `name r g b` or `r g b name`,
            or JSON as in `dataset_info.json`.
        default_name: Name of the dataset if the file has none.
        options: The meaning of values and colours in masks.
        **changes: Fields of `DatasetInfo` (`name`, `ignore_label`, `channels`,
            `max_value`) that replace those of the file.

    Raises:
        UserError: if the file is missing or invalid, two classes have the same name or
            colour, or the options contradict the file.
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
    info = DatasetInfo(**(kept | changes))
    classes = ClassList(
        info,
        has_colors,
        options.ignore_colors,
        None,
        parse_value_map(
            options.value_map, Targets(info.class_names, info.ignore_label)
        ),
        options.nearest,
        "ignore_label" in changes,
    )
    _check_ignore_colors(path, classes)
    _check_value_map(classes)
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


def _check_ignore_colors(path: epath.Path, classes: ClassList) -> None:
    """Raises `UserError` if a class has an ignore colour, or all have no colour."""
    for color in classes.ignore_colors:
        if not classes._replace(ignore_colors=()).color_ids():
            raise UserError(f"--ignore_color needs a colour for each class of {path}")
        if classes.has_colors and color in classes.info.colors:
            name = classes.info.class_names[classes.info.colors.index(color)]
            raise UserError(
                f"--ignore_color={','.join(map(str, color))} is the colour of the "
                f"class {name} in {path}; remove the class to ignore it"
            )


def _check_value_map(classes: ClassList) -> None:
    """Raises `UserError` if `--value_map` contradicts colours or the class file."""
    without = classes._replace(value_map={})
    known = without.color_ids()
    known_values = without.file_values or {}
    for value, label in classes.value_map.items():
        # A grey value is also a colour.
        color = (value,) * 3 if isinstance(value, int) else value
        for other in (known.get(color), known_values.get(value)):
            if other not in (None, label):
                raise UserError(
                    f"--value_map gives {format_value(value)} to "
                    f"{_label_name(classes, label)}, but --classes or --ignore_color "
                    f"gives it to {_label_name(classes, other)}"
                )
    if classes.nearest and not (classes.color_ids() or classes.declared_values()):
        raise UserError(
            "--nearest needs declared values or colours; add --value_map, such as "
            f"--value_map=0:{classes.info.class_names[0]},255:"
            f"{classes.info.class_names[-1]}, or r g b to each line of --classes"
        )


def _label_name(classes: ClassList, label: int) -> str:
    is_class = label < classes.info.num_classes
    return classes.info.class_names[label] if is_class else "ignored pixels"
