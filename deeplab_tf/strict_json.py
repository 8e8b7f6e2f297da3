"""Writes JSON with a checksum, and strictly validates JSON when it is read.

Every problem raises a `UserError` that names the file, and either the line and column
of a syntax error or the key path of a value, such as `colors[3]`.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import sys
import types
import typing
import unicodedata
from collections.abc import Mapping

from deeplab_tf.errors import UserError

# Any content of this size parses within 300 MiB of memory.
MAX_BYTES = 16 * 2**20
# Integers up to here are exact in every JSON parser (RFC 7493).
MAX_COUNT = 2**53
CHECKSUM = "checksum"
# Python before 3.10.7 takes minutes for very long numbers; later versions raise.
_LONG_NUMBER = re.compile(r"[0-9]{310}")
# A surrogate pair, a lone surrogate (group 1), or any other escape.
_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL
)
# Control characters, surrogates, line and paragraph separators. Joiners and direction
# marks (Cf) occur in ordinary text.
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

_Config = typing.TypeVar("_Config")
_Value = typing.Any  # as parsed from JSON


def decode_utf8(content: bytes, source: str, max_bytes: int = MAX_BYTES) -> str:
    """Decodes UTF-8 text and removes the byte order mark.

    Arguments are as for `parse`. Raises UserError for invalid or too much content.
    """
    if len(content) > max_bytes:
        raise UserError(f"{source} is too large: more than {max_bytes:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `error.start` does not count the byte order mark.
        start = len(content) - len(error.object) + error.start
        line = content.count(b"\n", 0, start) + 1
        raise UserError(
            f"{source}: line {line} is not UTF-8 (byte 0x{content[start]:02x}); save "
            "the file as UTF-8"
        ) from error


def parse(content: str | bytes, source: str, max_bytes: int = MAX_BYTES) -> typing.Any:
    """Parses JSON text or its UTF-8 bytes.

    Stricter than `json.loads`: refuses NaN and infinity, duplicate keys, very long
    numbers and lone surrogates. Raises UserError, which names `source` and the
    position, if the text is invalid or longer than `max_bytes`.
    """
    if isinstance(content, bytes):
        content = decode_utf8(content, source, max_bytes)
    elif len(content) > max_bytes:
        raise UserError(f"{source} has more than {max_bytes:,} characters")
    if not content.strip():
        raise UserError(f"{source} is empty")
    number = _LONG_NUMBER.search(content)
    if number:
        where = _describe_position(content, number.start())
        raise UserError(f"{source}: {where}: a number with too many digits")
    _refuse_lone_surrogates(content, source)
    try:
        return json.loads(
            content,
            object_pairs_hook=_build_object,
            parse_constant=_refuse_constant,
            parse_float=_parse_finite_float,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{source}: {where}: {error.msg}") from error
    except RecursionError:
        raise UserError(f"{source}: values are nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def _describe_position(text: str, index: int) -> str:
    line = text.count("\n", 0, index) + 1
    return f"line {line}, column {index - text.rfind(chr(10), 0, index)}"


def _refuse_lone_surrogates(text: str, source: str) -> None:
    for escape in _ESCAPES.finditer(text):
        if escape[1]:
            where = _describe_position(text, escape.start())
            raise UserError(
                f"{source}: {where}: {escape[0]} is half of a surrogate pair"
            )


def _build_object(pairs: list[tuple[str, typing.Any]]) -> dict[str, typing.Any]:
    """Returns a dict of the pairs; refuses duplicate keys."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {json.dumps(twice)} occurs twice in one object")
    return values


def _refuse_constant(name: str) -> typing.NoReturn:
    """Raises ValueError for NaN and infinity."""
    raise ValueError(f"{name} is not a number in JSON")


def _parse_finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {_shorten(text)} is too large")
    return value


def dump(values: Mapping[str, typing.Any]) -> str:
    """Serialises an object as JSON with a checksum of its entries.

    The checksum comes first. Put required keys next, so that a gap in the file cannot
    remove the checksum without also removing a required key.
    """
    # Tuples become lists, as they will be when read back.
    values = json.loads(json.dumps(values, allow_nan=False))
    return json.dumps({CHECKSUM: checksum(values), **values}, indent=2) + "\n"


def to_values(config: _Config) -> dict[str, _Value]:
    """Returns a dataclass as parsed JSON, the inverse of `build_dataclass`."""
    return json.loads(json.dumps(dataclasses.asdict(typing.cast(typing.Any, config))))


def load(
    content: str | bytes, source: str, max_bytes: int = MAX_BYTES
) -> dict[str, typing.Any]:
    """Parses a JSON object and verifies its checksum if it has one.

    Raises:
        UserError: if the text is invalid, not an object, or was changed after its
            checksum was computed.
    """
    values = parse(content, source, max_bytes)
    if not isinstance(values, dict):
        raise UserError(f"{source} must be a JSON object; received {describe(values)}")
    if CHECKSUM in values and values.pop(CHECKSUM) != checksum(values):
        raise UserError(
            f"{source} was changed after deeplab_tf wrote it; restore it, or delete "
            f'its "{CHECKSUM}" entry to accept the change'
        )
    return values


def checksum(value: typing.Any) -> str:
    """Returns the checksum of a JSON value, independent of key order and spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def from_json(
    cls: type[_Config],
    content: str | bytes,
    source: str,
    required: tuple[str, ...] = (),
) -> _Config:
    """Parses a dataclass from a JSON object.

    The `required` fields must be present even though they have a default.

    Raises:
        UserError: if the text is invalid or a value does not match its field; names
            `source` and the key path.
    """
    values = load(content, source)
    config = build_dataclass(cls, values, source)
    require_keys(required, values, source)
    return config


def build_dataclass(
    cls: type[_Config], values: dict[str, _Value], where: str, separator: str = ": "
) -> _Config:
    """Builds a dataclass from parsed JSON, checking types at any depth.

    Args:
        cls: The dataclass.
        values: Its fields, as in `dataclasses.asdict`.
        where: Name of the object, for errors.
        separator: Text between `where` and the name of a field.

    Raises:
        UserError: if a key is unknown or missing, or a value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(typing.cast(typing.Any, cls))
    absent = dataclasses.MISSING
    needed = [f.name for f in fields if f.default is f.default_factory is absent]
    _refuse_unknown_keys(values, list(hints), where)
    require_keys(needed, values, where)
    checked = {
        name: convert(hints[name], value, f"{where}{separator}{name}")
        for name, value in values.items()
    }
    try:
        return cls(**checked)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def require_keys(
    needed: typing.Iterable[str], values: dict[str, _Value], where: str
) -> None:
    """Raises UserError if a required key is missing."""
    missing = [name for name in needed if name not in values]
    if missing:
        raise UserError(f'{where}: the key "{missing[0]}" is missing')


def _refuse_unknown_keys(
    values: dict[str, _Value], known: list[str], where: str
) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f'did you mean "{near[0]}"?' if near else "remove it"
            raise UserError(f"{where}: unknown key {describe(name)}; {hint}")


def convert(hint: typing.Any, value: _Value, where: str) -> typing.Any:
    """Converts a parsed JSON value to the type of an annotation.

    Args:
        hint: `str`, `bool`, `int`, `float`, a dataclass, a list, tuple or dictionary of
            these, or one of them `| None`.
        value: The value.
        where: Name of the value, for errors.

    Raises:
        UserError: if the value has a different type.
    """
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        _require_type(dict, value, where)
        return build_dataclass(typing.cast(type, hint), value, where, ".")
    checkers: dict[typing.Any, typing.Callable] = {
        tuple: _convert_tuple,
        list: _convert_list,
        dict: _convert_dict,
        str: _require_str,
        bool: _require_bool,
        int: _require_int,
        float: _convert_float,
    }
    return checkers[typing.get_origin(hint) or hint](hint, value, where)


def _convert_tuple(hint: typing.Any, value: _Value, where: str) -> tuple:
    _require_type(list, value, where)
    items = typing.get_args(hint)
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise UserError(f"{where} must have {len(items)} values; received {len(value)}")
    pairs = enumerate(zip(items, value, strict=True))
    return tuple(convert(item, v, f"{where}[{i}]") for i, (item, v) in pairs)


def _convert_list(hint: typing.Any, value: _Value, where: str) -> list:
    _require_type(list, value, where)
    (item,) = typing.get_args(hint)
    return [convert(item, v, f"{where}[{i}]") for i, v in enumerate(value)]


def _convert_dict(hint: typing.Any, value: _Value, where: str) -> dict:
    _require_type(dict, value, where)
    _, item = typing.get_args(hint)
    for key in value:
        check_text(key, f"{where}: a key")
    return {key: convert(item, v, f"{where}.{key}") for key, v in value.items()}


def _require_str(hint: typing.Any, value: _Value, where: str) -> str:
    _require_type(str, value, where)
    check_text(value, where)
    return value


def _require_bool(hint: typing.Any, value: _Value, where: str) -> bool:
    _require_type(bool, value, where)
    return value


def _require_int(hint: typing.Any, value: _Value, where: str) -> int:
    # Not isinstance, because a bool is an int.
    if type(value) is not int:
        raise _make_type_error(int, value, where)
    if abs(value) > MAX_COUNT:
        raise UserError(f"{where} is too large; received {describe(value)}")
    return value


def _convert_float(hint: typing.Any, value: _Value, where: str) -> float:
    # An integer may be too large for a float.
    if type(value) not in (int, float) or abs(value) > sys.float_info.max:
        raise _make_type_error(float, value, where)
    return float(value)


def check_text(text: str, where: str) -> None:
    """Raises UserError if a line of text has control characters."""
    for character in text:
        if unicodedata.category(character) in _UNPRINTABLE:
            raise UserError(
                f"{where} has the control character U+{ord(character):04X}; remove it"
            )


def _require_type(kind: type, value: _Value, where: str) -> None:
    if type(value) is not kind:
        raise _make_type_error(kind, value, where)


def _make_type_error(kind: type, value: _Value, where: str) -> UserError:
    return UserError(f"{where} must be {_NAMES[kind]}; received {describe(value)}")


def describe(value: typing.Any) -> str:
    """Describes a parsed JSON value in a few words, for errors."""
    if isinstance(value, list | dict) or value is None:
        return _NAMES[type(value)]
    return _shorten(json.dumps(value))


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
