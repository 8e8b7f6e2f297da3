"""Reads the classes of a dataset from a text file or a `dataset_info.json`."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from deeplab_tf import strict_json
from deeplab_tf.convert import class_files
from deeplab_tf.convert.class_rows import Row, Table, build_table
from deeplab_tf.convert.value_map import Color, Targets, format_value, parse_value_map
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.files import text_files
from deeplab_tf.images import formats


def is_background(name: str) -> bool:
    """Returns whether a class name means the pixels outside of all objects."""
    return name.casefold().strip("_- ") in ("background", "bg")


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
    value_map: Mapping[int | Color, int] = {}
    nearest: bool = False
    ignores_explicitly: bool = False

    def color_ids(self) -> dict[Color, int]:
        """Returns the label of each colour."""
        colors = self.info.colors if self.has_colors else ()
        ids = {color: i for i, color in enumerate(colors)}
        ids |= {color: self.info.ignore_label for color in self.ignore_colors}
        return ids | {c: i for c, i in self.value_map.items() if isinstance(c, tuple)}

    def grey_ids(self) -> dict[int, int]:
        """Returns the label of each grey level that is a class colour."""
        return {c[0]: i for c, i in self.color_ids().items() if len(set(c)) == 1}

    @property
    def object_name(self) -> str:
        """For messages: the only class besides the background, or a placeholder."""
        names = self.info.class_names
        return names[1] if len(names) == 2 else "NAME"

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
        """Returns the settings that labels depend on, as text to detect changes."""
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
        path: Text with one class per line, YAML or JSON, see `class_files`, or a
            `dataset_info.json`.
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
    found, table = _read_info(content, str(path), default_name)
    # The sizes and counts in a JSON file belong to other images.
    fields = ("name", "class_names", "ignore_label", "colors", "channels", "max_value")
    kept = {field: getattr(found, field) for field in fields}
    info = DatasetInfo(**(kept | changes))
    targets = Targets(info.class_names, info.ignore_label, table.values is None)
    ignored = dict.fromkeys(table.ignored_values, info.ignore_label)
    classes = ClassList(
        info,
        bool(table.colors),
        (*table.ignore_colors, *options.ignore_colors),
        None if table.values is None else table.values | ignored,
        parse_value_map(options.value_map, targets),
        options.nearest,
        "ignore_label" in changes,
    )
    _check_ignore_label(path, classes)
    _check_ignore_colors(path, classes)
    _check_value_map(classes)
    return classes


def _read_info(
    content: bytes, source: str, default_name: str
) -> tuple[DatasetInfo, Table]:
    """Reads a `dataset_info.json` or a class file of another form."""
    content = class_files.to_utf8(content, source)
    if content.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"{":
        tree = strict_json.parse(content, source)
        if "class_names" in tree and len(tree) > 1:
            info = DatasetInfo.from_json(content, source)
            colors = info.colors if tree.get("colors") else ()
            rows = [
                Row(f"class {i} of {source}", name, None, colors[i] if colors else None)
                for i, name in enumerate(info.class_names)
            ]
            return info, build_table(rows, source)
    table = class_files.read_table(content, source, formats.get_suffix(source))
    return DatasetInfo(default_name, table.names, colors=table.colors), table


def _check_ignore_label(path: epath.Path, classes: ClassList) -> None:
    """Raises `UserError` if the ignore label is the value or the id of a class."""
    label, values = classes.info.ignore_label, classes.file_values
    if values is None or not classes.ignores_explicitly:
        return
    if label in values or label < classes.info.num_classes:
        raise UserError(
            f"--ignore_label={label} is the value or id of a class in {path}, whose "
            f"ids become 0..{classes.info.num_classes - 1}; use "
            f"--value_map={label}:ignore"
        )


def _check_ignore_colors(path: epath.Path, classes: ClassList) -> None:
    """Raises `UserError` unless each class has a colour that is not ignored."""
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
    """Raises `UserError` for a contradictory `--value_map`, or a useless `--nearest`.

    `--value_map` must agree with the class file and `--ignore_color`; `--nearest` needs
    declared values or colours.
    """
    without = classes._replace(value_map={})
    colors, values = without.color_ids(), without.file_values or {}
    for value, label in classes.value_map.items():
        # A grey value is also a colour.
        color = (value,) * 3 if isinstance(value, int) else value
        for other in (colors.get(color), values.get(value)):
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
    """Returns the name of a class, or "ignored pixels"."""
    is_class = label < classes.info.num_classes
    return classes.info.class_names[label] if is_class else "ignored pixels"
