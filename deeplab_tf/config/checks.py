"""Validates the type and range of every field of a config dataclass."""

import dataclasses
import numbers
import os
import reprlib
import typing
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from deeplab_tf.config.options import Dataclass, flag_name, option_of, type_of
from deeplab_tf.errors import UserError

# Training runs in float32, where smaller numbers become 0 and larger ones infinite.
_SMALLEST, _LARGEST = 1.2e-38, 3.4e38
_INTEGER_LIMIT = 2**32


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)


def join_choices(values: Iterable[object]) -> str:
    """Returns "8, 16 or 32" for `(8, 16, 32)`."""
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last


def check_fields(config: Dataclass, of: str = "") -> None:
    """Checks the type, range and choices of every field of a frozen dataclass.

    Call it in `__post_init__`. Lists become tuples; NumPy scalars and integers become
    the type of their field.

    Args:
        config: The dataclass.
        of: Text after the field name in messages.

    Raises:
        UserError: for the first invalid value; names the field, its flag, the accepted
            values and the value received.
    """
    for field in dataclasses.fields(config):
        received = getattr(config, field.name)
        try:
            value = _convert(*type_of(field), received)
        except TypeError:
            accepted = _describe_accepted(field, with_type=True)
            raise _make_error(field, of, accepted, received) from None
        if not _is_within(field, value):
            accepted = _describe_accepted(field, with_type=False)
            raise _make_error(field, of, accepted, received)
        object.__setattr__(config, field.name, value)


def _make_error(
    field: dataclasses.Field, of: str, accepted: str, received: object
) -> UserError:
    spelled = _distinct_flag(field)
    name = f"{field.name}{of}" + (f" ({spelled})" if spelled else "")
    return UserError(f"{name} must be {accepted}; received {_format_value(received)}")


def _distinct_flag(field: dataclasses.Field) -> str:
    """Returns the field's flag if its name differs from that of the field, else ""."""
    export_flag, name = option_of(field).export_flag, flag_name(field)
    if export_flag:
        return f"--{export_flag} of an export"
    return f"--{name}" if name not in ("", field.name) else ""


def _format_value(value: object) -> str:
    """Formats a value as one short line."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = shortened.maxlong = 80
    try:
        return " ".join(shortened.repr(value).split())
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return "a number with thousands of digits"


def _is_within(field: dataclasses.Field, value: Any) -> bool:
    accepts = option_of(field).accepts
    if accepts is None:
        return True
    if isinstance(accepts, tuple):
        return value in accepts
    numbers = value if isinstance(value, tuple) else (value,)
    return value is None or all(number in accepts for number in numbers)


def _describe_accepted(field: dataclasses.Field, with_type: bool) -> str:
    """Describes the values that a field accepts, optionally with their type."""
    accepts, (hint, _) = option_of(field).accepts, type_of(field)
    if isinstance(accepts, tuple):
        return join_choices(accepts)
    if typing.get_origin(hint) is tuple:
        item, *more = typing.get_args(hint)
        name = _SCALARS[item].plural if item in _SCALARS else f"{item.__name__} objects"
        name = name if ... in more else f"two {name}"
        return f"{name}, each {accepts}" if accepts else name
    if accepts and not with_type:
        return str(accepts)
    name = _SCALARS[hint].singular if hint in _SCALARS else f"a {hint.__name__}"
    return f"{name}, {accepts}" if accepts else name


def _convert(hint: Any, is_optional: bool, value: Any) -> Any:
    """Converts a value to the type of its field, or raises TypeError."""
    if is_optional and value is None:
        return None
    if typing.get_origin(hint) is tuple:
        return _convert_items(typing.get_args(hint), value)
    if hint in _SCALARS:
        return _SCALARS[hint].convert(value)
    if not isinstance(value, hint):
        raise TypeError
    return value


def _convert_items(hints: tuple, value: Any) -> tuple:
    if isinstance(value, np.ndarray):
        value = list(value)
    if not isinstance(value, list | tuple):
        raise TypeError
    if ... not in hints and len(value) != len(hints):
        raise TypeError
    return tuple(_convert(hints[0], False, item) for item in value)


def _to_bool(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return bool(value)


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError
    number = int(value)
    if abs(number) >= _INTEGER_LIMIT:
        raise TypeError
    return number


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    try:
        number = float(value)
    except OverflowError:
        raise TypeError from None
    # The comparisons are false for NaN, which is refused too.
    if not (number == 0 or _SMALLEST <= abs(number) <= _LARGEST):
        raise TypeError
    return number


def _to_string(value: Any) -> str:
    value = os.fspath(value)  # raises TypeError
    if not isinstance(value, str):
        raise TypeError
    return str(value)


class _Scalar(typing.NamedTuple):
    convert: Callable[[Any], Any]
    singular: str
    plural: str


_SCALARS: dict[Any, _Scalar] = {
    bool: _Scalar(_to_bool, "True or False", "booleans"),
    int: _Scalar(_to_int, "an integer below 2^32", "integers"),
    float: _Scalar(_to_float, "a finite number", "finite numbers"),
    str: _Scalar(_to_string, "a string", "strings"),
}
