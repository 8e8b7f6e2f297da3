"""Reads class files of every form: text, CSV, YAML and JSON."""

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_tf import strict_json
from deeplab_tf.convert import class_yaml
from deeplab_tf.convert.class_rows import (
    FIELD_WORDS,
    Row,
    Table,
    build_table,
    normalize_title,
)
from deeplab_tf.convert.class_text import (
    is_name,
    is_plain_name,
    parse_color,
    parse_text,
)
from deeplab_tf.convert.value_map import Color
from deeplab_tf.errors import UserError
from deeplab_tf.files import text_files

# Keys that hold the classes in the files of other tools.
_CLASS_KEYS = (
    "names id2label label2id class_names classes labels categories label_names"
).split()
_COUNT_KEYS = ("nc", "num_classes")
# Lists of one colour per class, next to a list of names.
_COLOR_KEYS = ("palette", "colors", "colours")
# Further keys of ids.
_ID_KEYS = ("category_id", "trainid", "train_id")


def read_table(content: bytes, source: str, suffix: str = "") -> Table:
    """Returns the classes of a file.

    Args:
        content: Its bytes, in UTF-8, or in UTF-16 with a byte order mark.
        source: Its path, for errors.
        suffix: Suffix of its name in lower case.

    Raises:
        UserError: if a line is not understood.
    """
    content = to_utf8(content, source)
    lines = text_files.split_lines(content, source)
    first = next((line.strip() for line in lines if line.strip()), "")
    if suffix == ".json" or first.startswith(("{", "[")):
        rows = _read_tree(strict_json.parse(content, source), source)
    elif suffix in (".yaml", ".yml") or _is_yaml(lines, first):
        keys = [*_CLASS_KEYS, *_COUNT_KEYS, *_COLOR_KEYS]
        rows = _read_tree(class_yaml.parse_yaml(lines, source, keys), source)
    else:
        rows = parse_text(lines, source)
    return build_table(rows, source)


def to_utf8(content: bytes, source: str) -> bytes:
    """Converts UTF-16 with a byte order mark to UTF-8; keeps all other content."""
    if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content
    try:
        return content.decode("utf-16").encode()
    except UnicodeError as error:
        raise UserError(
            f"{source} is neither UTF-8 nor UTF-16; save it as UTF-8"
        ) from error


def _is_yaml(lines: Sequence[str], first: str) -> bool:
    """Returns whether a file without suffix is YAML: it has a list or a known key."""
    if first == "---" or first == "-" or first.startswith("- "):
        return True
    keys = (re.match(r"(\w+)\s*:\s*($|[\[{#])", line) for line in lines)
    return any(key and key[1].lower() in _CLASS_KEYS for key in keys)


def _read_tree(tree: Any, source: str) -> list[Row]:
    """Reads the rows of parsed YAML or JSON, and their colours if listed apart."""
    if not isinstance(tree, dict):
        return _read_list(tree, source)
    by_key = {key.lower(): value for key, value in tree.items()}
    found = {
        key: _read_list(by_key[key], f"{key} of {source}")
        for key in _CLASS_KEYS
        if key in by_key and isinstance(by_key[key], dict | list)
    }
    if not found:
        return _read_map(tree, source)
    rows = _require_same_classes(found, source)
    for count in _COUNT_KEYS:
        if count in by_key and _to_int(by_key[count]) != len(rows):
            raise UserError(
                f"{source} has {count} {by_key[count]}, but lists {len(rows)} classes"
            )
    for colors in _COLOR_KEYS:
        if colors in by_key:
            rows = _add_colors(rows, by_key[colors], f"{colors} of {source}")
    return rows


def _require_same_classes(found: Mapping[str, list[Row]], source: str) -> list[Row]:
    """Returns the rows under the first key; those of other keys must be equal."""
    (key, rows), *others = found.items()
    for other, other_rows in others:
        if _strip_locations(other_rows) != _strip_locations(rows):
            raise UserError(f"{source} lists different classes in {key} and {other}")
    return rows


def _add_colors(rows: Sequence[Row], colors: Any, where: str) -> list[Row]:
    """Returns the rows with a list of colours, one per row."""
    has_columns = any(row.id is not None or row.color for row in rows)
    if not isinstance(colors, list) or len(colors) != len(rows) or has_columns:
        raise UserError(
            f"{where} must be a list of {len(rows)} colours, one for each item of a "
            "list of names"
        )
    return [
        row._replace(color=_to_color(color, f"item {i} of {where}"))
        for i, (row, color) in enumerate(zip(rows, colors, strict=True))
    ]


def _strip_locations(rows: Sequence[Row]) -> list[tuple]:
    """Returns rows without their locations; missing ids become 0, 1, 2, ..."""
    ids = [i if row.id is None else row.id for i, row in enumerate(rows)]
    return sorted(
        (i, row.name, row.color or ()) for i, row in zip(ids, rows, strict=True)
    )


def _read_list(tree: Any, where: str) -> list[Row]:
    if isinstance(tree, dict):
        return _read_map(tree, where)
    if not isinstance(tree, list):
        raise UserError(f"{where} must be a list or a map of classes")
    return [_read_item(item, f"item {i} of {where}") for i, item in enumerate(tree)]


def _read_item(item: Any, where: str) -> Row:
    """Reads an item of a list: a name, or a map of fields."""
    if isinstance(item, dict):
        row = _read_fields(item, where)
        if not row.name:
            raise UserError(f"{where} has no name")
        return row
    return Row(where, _to_name(item, where))


def _read_map(tree: Mapping[str, Any], where: str) -> list[Row]:
    """Reads a map from ids to names, or from names to ids or colours."""
    is_id = {_to_int(key) is not None for key in tree}
    if len(is_id) > 1:
        raise UserError(
            f"{where} mixes ids with other keys; use only ids or only names"
        )
    read = _read_id_entry if is_id == {True} else _read_name_entry
    return [read(key, value, f"{key} of {where}") for key, value in tree.items()]


def _read_id_entry(key: str, value: Any, where: str) -> Row:
    """Reads an entry of a map whose keys are ids."""
    row = _read_item(value, where)
    if row.id not in (None, _to_int(key)):
        raise UserError(f"{where} contains a different id, {row.id}")
    return row._replace(id=_to_int(key))


def _read_name_entry(key: str, value: Any, where: str) -> Row:
    """Reads `name: id`, `name: colour` or `name: {fields}`."""
    name = _to_name(key, where)
    if isinstance(value, dict):
        row = _read_fields(value, where)
        if row.name not in ("", name):
            raise UserError(f"{where} contains a different name, {row.name}")
        return row._replace(name=name)
    number = _to_int(value)
    if number is not None:
        return Row(where, name, number)
    return Row(where, name, None, _to_color(value, where))


def _read_fields(item: Mapping[str, Any], where: str) -> Row:
    """Reads name, id and colour of a map; the name may be missing."""
    values = {normalize_title(key): value for key, value in item.items()}
    found = {}
    for field, keys in (FIELD_WORDS | {"id": FIELD_WORDS["id"] + _ID_KEYS}).items():
        given = [key for key in keys if key in values]
        if len(given) > 1:
            raise UserError(f"{where} has {given[0]} and {given[1]}; keep one of them")
        if given:
            found[field] = values[given[0]]
    row_id = _to_int(found["id"]) if "id" in found else None
    if "id" in found and row_id is None:
        raise UserError(f"{where}: {found['id']!r} is not an integer id")
    name = _to_name(found["name"], where) if "name" in found else ""
    color = _to_color(found["color"], where) if "color" in found else None
    return Row(where, name, row_id, color)


def _to_int(value: Any) -> int | None:
    if type(value) is int:
        return value if abs(value) < 10**9 else None
    is_text = isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value.strip())
    return int(value) if is_text else None


def _to_name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise UserError(f"{where}: {value!r} is not a name")
    if isinstance(value, class_yaml.Plain) and not is_plain_name(value):
        raise UserError(f"{where}: put the name in quotes: {value}")
    return str(value.strip())


def _to_color(value: Any, where: str) -> Color:
    if isinstance(value, list):
        numbers = [_to_int(number) for number in value]
        value = ",".join("x" if n is None else str(n) for n in numbers)
    if not isinstance(value, str):
        raise UserError(
            f"{where}: {value!r} is not a colour; write [r, g, b] or #rrggbb"
        )
    return parse_color(value.strip(), where)
