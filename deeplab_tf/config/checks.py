"""Validation of config dataclasses: the type and the range of every field."""

import dataclasses
import numbers
import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol

import numpy as np

from deeplab_tf.errors import UserError

# Training computes in float32: smaller numbers are 0 there, larger ones infinite.
_SMALLEST, _LARGEST = 1.2e-38, 3.4e38
_INTEGER_LIMIT = 2**32
# Longest side of an image, and of anything that is cut out of one.
LONGEST_SIDE = 2**16


class Dataclass(Protocol):
    """Any dataclass, to type checkers."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)


def listed(values: Iterable[object]) -> str:
    """Returns "8, 16 or 32"."""
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field accepts; `None` leaves a side unbounded.

    Attributes:
        at_least: Smallest number.
        above: Bound below all numbers, itself excluded.
        at_most: Largest number.
        below: Bound above all numbers, itself excluded.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        bounds = dataclasses.asdict(self).items()
        words = (f"{k.replace('_', ' ')} {v}" for k, v in bounds if v is not None)
        return " and ".join(words)


COUNT = Range(at_least=1)
NOT_NEGATIVE = Range(at_least=0)
POSITIVE = Range(above=0)
FRACTION = Range(at_least=0, below=1)
# Factors on the sides of an image. The papers scale by 0.5 to 2.
SCALES = Range(at_least=0.01, at_most=16)


def setting(
    default: Any = dataclasses.MISSING,
    limits: Range | None = None,
    *,
    flag: str = "",
    choices: tuple[str, ...] = (),
) -> Any:
    """Returns a dataclass field whose values `check_fields` restricts.

    Args:
        default: Default value; without one the field must be given.
        limits: Range of the number, or of each number of a tuple; None accepts all.
        flag: The flag as it is typed, where it is not `--` and the field's name.
        choices: The accepted strings; () accepts any.
    """
    rules = {"flag": flag, "choices": choices, "limits": limits}
    return dataclasses.field(default=default, metadata=rules)


def check_fields(config: Dataclass, of: str = "") -> None:
    """Checks the type, range and choices of every field of a frozen dataclass.

    Lists become tuples, and NumPy scalars and integers the type of their field.

    Args:
        config: The dataclass, in its `__post_init__`.
        of: Words after the name of a field in messages.

    Raises:
        UserError: for the first value that is not accepted; names field and flag,
            what is accepted and what was received.
    """
    for field in dataclasses.fields(config):
        received = getattr(config, field.name)
        try:
            value = _convert(field.type, received)
        except TypeError:
            accepted = _accepted_values(field, with_type=True)
            raise _refusal(field, of, accepted, received) from None
        if not _is_within(field, value):
            accepted = _accepted_values(field, with_type=False)
            raise _refusal(field, of, accepted, received)
        object.__setattr__(config, field.name, value)


def _refusal(
    field: dataclasses.Field, of: str, accepted: str, received: object
) -> UserError:
    flag = field.metadata.get("flag")
    name = f"{field.name}{of}" + (f" ({flag})" if flag else "")
    return UserError(f"{name} must be {accepted}; received {_shown(received)}")


def _shown(value: object) -> str:
    """Returns a value as one short line."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = shortened.maxlong = 80
    try:
        return " ".join(shortened.repr(value).split())
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "a number of thousands of digits"


def _is_within(field: dataclasses.Field, value: Any) -> bool:
    """Whether a converted value is among the choices and in the range."""
    choices, limits = field.metadata.get("choices"), field.metadata.get("limits")
    if choices:
        return value in choices
    if value is None or limits is None:
        return True
    return all(number in limits for number in _items(value))


def _items(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _accepted_values(field: dataclasses.Field, with_type: bool) -> str:
    """Returns what a field accepts, in words.

    Args:
        field: The field.
        with_type: Whether to name the type next to the range.
    """
    if field.metadata.get("choices"):
        return listed(field.metadata["choices"])
    hint, limits = _without_none(field.type), field.metadata.get("limits")
    if typing.get_origin(hint) is tuple:
        item, *more = typing.get_args(hint)
        name = _SCALARS[item].plural if item in _SCALARS else f"{item.__name__} objects"
        name = name if ... in more else f"two {name}"
        return f"{name}, each {limits}" if limits else name
    if limits and not with_type:
        return str(limits)
    name = _SCALARS[hint].singular if hint in _SCALARS else f"a {hint.__name__}"
    return f"{name}, {limits}" if limits else name


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) is types.UnionType:
        return next(a for a in typing.get_args(hint) if a is not types.NoneType)
    return hint


def _convert(hint: Any, value: Any) -> Any:
    """Returns a value as the type of its field.

    Raises:
        TypeError: if it is not of this type.
    """
    own = _without_none(hint)
    if own is not hint and value is None:
        return None
    if typing.get_origin(own) is tuple:
        return _convert_items(typing.get_args(own), value)
    if own in _SCALARS:
        return _SCALARS[own].convert(value)
    if not isinstance(value, own):
        raise TypeError
    return value


def _convert_items(hints: tuple, value: Any) -> tuple:
    if isinstance(value, np.ndarray):
        value = list(value)
    if not isinstance(value, list | tuple):
        raise TypeError
    if ... not in hints and len(value) != len(hints):
        raise TypeError
    return tuple(_convert(hints[0], item) for item in value)


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
    # False for NaN, as every comparison with it is.
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
