"""Parses option values from flags and official files."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from deeplab_tf.config.options import option_of, type_of
from deeplab_tf.errors import UserError

_Value = TypeVar("_Value")


def parse_numbers(value: object, number: Callable = int) -> tuple:
    """Parses numbers from `"513,513"`, `["513", 513]`, `[513, 513]` or None."""
    if value is None:
        return ()
    parts = value if isinstance(value, list | tuple) else [value]
    words = [w for part in parts for w in str(part).split(",")]
    return tuple(number(word) for word in words if word.strip())


def parse_size(value: object) -> tuple[int, int] | None:
    """Parses height and width from `"513,513"`, `["513", "513"]` or None."""
    numbers = parse_numbers(value)
    if len(numbers) not in (0, 2):
        raise ValueError("expected height and width, such as 513,513")
    return numbers or None


def parse_bool(value: object) -> bool:
    """Parses a boolean from `True`, `"true"`, 1 or `"1"`, and their opposites."""
    words = {"true": True, "1": True, "false": False, "0": False}
    return words[str(value).lower()]


def _parse_int(value: object) -> int:
    # Through text: int() alone would accept 1.5 and True.
    return int(str(value))


def _parse_text(value: object) -> str:
    return "" if value is None else str(value)


_PARSERS: dict[Any, Callable] = {
    bool: parse_bool,
    int: _parse_int,
    float: float,
    str: _parse_text,
}


def parse_option(field: dataclasses.Field, flag: str, value: object) -> Any:
    """Parses the flag value of a field by the field's type.

    `value` is of that type, a string or a list of strings. Raises UserError, which
    names `flag`, if it cannot be parsed.
    """
    return parse(flag, value, option_of(field).parse or _find_parser(field))


def _find_parser(field: dataclasses.Field) -> Callable:
    hint, is_optional = type_of(field)
    if typing.get_origin(hint) is not tuple:
        scalar = _PARSERS[hint]
        return lambda v: None if is_optional and v is None else scalar(v)
    item, *more = typing.get_args(hint)
    if item is str:
        return lambda texts: tuple(texts or ())
    return (lambda v: parse_numbers(v, item)) if ... in more else parse_size


def parse(flag: str, value: object, parser: Callable[..., _Value]) -> _Value:
    """Returns `parser(value)`; its errors become a UserError that names the flag."""
    try:
        return parser(value)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"{flag} cannot be {value!r}: {error}") from error
