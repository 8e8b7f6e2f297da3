"""Checks arguments of public functions and config fields against their annotations.

A value is converted to the annotated type if that is lossless: lists become tuples,
paths become strings, and NumPy scalars become numbers.
"""

import dataclasses
import functools
import inspect
import numbers
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from deeplab_tf.errors import UserError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
# Training runs in float32, where smaller numbers become 0 and larger ones infinite.
_SMALLEST, _LARGEST = 1.2e-38, 3.4e38
_INTEGER_LIMIT = 2**63
# Sequences of unknown items, too: any iterable serves.
_UNCHECKED = (Any, Iterable, Sequence, inspect.Parameter.empty)
_DESCRIPTIONS = {
    Callable: "a function",
    Mapping: "a dictionary",
    dict: "a dictionary",
    os.PathLike: "a path",
}
_COUNTS = {2: "two", 3: "three"}
# By type, how to make the expected object from a string.
_FROM_STRING = {
    "DataConfig": "DataConfig(dataset_dir={!r})",
    "DatasetInfo": "dataset_info({!r})",
    "Model": "from_pretrained({!r})",
    "ModelConfig": "ModelConfig(backbone={!r})",
}


class Accepted(typing.Protocol):
    """Accepted values of the right type; `str()` describes them after "must be"."""

    def __contains__(self, value: Any) -> bool:
        """Returns whether a value is accepted."""


@dataclasses.dataclass(frozen=True)
class Elements:
    """Accepts all iterables except strings, paths and dictionaries.

    Attributes:
        description: Description of an accepted value, for messages.
        arrays: Whether an array is accepted.
        functions: Whether a function is accepted.
    """

    description: str
    arrays: bool = False
    functions: bool = False

    def __contains__(self, value: Any) -> bool:
        if callable(value):
            return self.functions
        if hasattr(value, "shape"):
            return self.arrays
        others = str | bytes | os.PathLike | Mapping
        return isinstance(value, Iterable) and not isinstance(value, others)

    def __str__(self) -> str:
        return self.description


def check_arguments(
    **accepted: Accepted | tuple[str, ...],
) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Decorates a function to check its arguments against their annotations.

    Annotations without a simple check, such as `Any`, accept everything.

    Args:
        **accepted: The values that an argument accepts: a range (for each number in a
            tuple) or strings.

    Raises:
        UserError: when the function is called with an invalid argument; names the first
            one, what it must be and the value received.
    """

    def decorate(
        function: Callable[_Parameters, _Result],
    ) -> Callable[_Parameters, _Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def check_and_call(
            *args: _Parameters.args, **kwargs: _Parameters.kwargs
        ) -> _Result:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # its error names the function
            for name, value in bound.arguments.items():
                parameter = signature.parameters[name]
                is_variadic = parameter.kind is inspect.Parameter.VAR_KEYWORD
                if value is not parameter.default and not is_variadic:
                    bound.arguments[name] = require_type(
                        name, value, parameter.annotation, accepted.get(name)
                    )
            return function(*bound.args, **bound.kwargs)

        return check_and_call

    return decorate


def require_type(
    name: str,
    value: Any,
    hint: Any,
    accepted: Accepted | tuple[str, ...] | None = None,
    title: str = "",
) -> Any:
    """Returns a value converted to the type of an annotation.

    Args:
        name: Name of the argument.
        value: The value received.
        hint: The annotation.
        accepted: See `check_arguments`.
        title: Name of the argument in messages; default: `name`.

    Raises:
        UserError: if the value has a different type or is not accepted.
    """
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    title = title or name
    try:
        converted = _convert(hint, value)
    except TypeError:
        described = _describe(hint, accepted, with_type=True)
        advice = _suggest_replacement(name, value, hint, accepted)
        raise UserError(
            f"{title} must be {described}; received {format_value(value)}{advice}"
        ) from None
    if not _is_accepted(accepted, converted):
        described = _describe(hint, accepted, with_type=False)
        raise UserError(f"{title} must be {described}; received {format_value(value)}")
    return converted


def join_choices(values: Iterable[object]) -> str:
    """Returns "8, 16 or 32" for `(8, 16, 32)`."""
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last


def format_value(value: object) -> str:
    """Formats a value as one short line; large arrays by their shape and type."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        if not _is_numpy(value, "ndarray", "generic") or value.size > 20:  # type: ignore[attr-defined]
            return f"an array of shape {list(shape)} and type {dtype}"
        value = value.tolist()  # type: ignore[attr-defined]
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = shortened.maxlong = 80
    try:
        return " ".join(shortened.repr(value).split())
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return "a number with thousands of digits"


def _is_numpy(value: object, *kinds: str) -> bool:
    """Returns whether a value is of one of these classes of NumPy.

    NumPy is not imported here, so that `--help` needs none.
    """
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(
        value, tuple(getattr(numpy, kind) for kind in kinds)
    )


def _find_scalar(hint: Any) -> "_Scalar | None":
    """Returns the conversion to a type without items, or None for other types."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    homes = (("numpy", "ndarray"), ("numpy.typing", "ArrayLike"))
    arrays = (getattr(sys.modules.get(home), name, None) for home, name in homes)
    return (
        _ARRAY if any(array is not None and hint == array for array in arrays) else None
    )


def _is_accepted(accepted: Accepted | tuple[str, ...] | None, value: Any) -> bool:
    if accepted is None:
        return True
    is_tuple = isinstance(value, tuple)
    return all(item in accepted for item in (value if is_tuple else (value,)))


def _list_members(hint: Any) -> list:
    """Returns the members of a union except None, or the only type."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if not is_union or _find_scalar(hint):
        return [hint]
    return [x for x in typing.get_args(hint) if x is not types.NoneType]


def _convert(hint: Any, value: Any) -> Any:
    """Converts a value to an annotated type, or raises TypeError."""
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    *others, last = _list_members(hint)
    for member in others:
        try:
            return _convert_to_member(member, value)
        except TypeError:
            continue
    return _convert_to_member(last, value)


def _convert_to_member(hint: Any, value: Any) -> Any:
    """Converts a value to a type that is not a union, or raises TypeError."""
    kind = typing.get_origin(hint) or hint
    if typing.get_origin(hint) in (tuple, Sequence):
        return _convert_items(_list_item_types(hint), value)
    scalar = _find_scalar(hint)
    if scalar:
        return scalar.convert(value)
    is_class = isinstance(kind, type) and kind not in _UNCHECKED
    if is_class and not isinstance(value, kind):
        raise TypeError
    return value


def _list_item_types(hint: Any) -> tuple:
    """Returns the arguments of a tuple or sequence; `...` means any length."""
    items = typing.get_args(hint)
    return items if typing.get_origin(hint) is tuple else (*items, ...)


def _convert_items(hints: tuple, value: Any) -> tuple:
    """Converts a sequence or an array to a tuple, or raises TypeError."""
    if _is_numpy(value, "ndarray") and value.ndim:
        value = list(value)
    if not isinstance(value, list | tuple | range):
        raise TypeError
    if ... not in hints and len(value) != len(hints):
        raise TypeError
    return tuple(_convert(hints[0], item) for item in value)


def _to_bool(value: Any) -> bool:
    if not isinstance(value, bool) and not _is_numpy(value, "bool_"):
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
    """Converts a real number; refuses NaN and numbers beyond the range of float32."""
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
    """Converts a path to a string, or raises TypeError."""
    value = os.fspath(value)  # raises TypeError
    if not isinstance(value, str):
        raise TypeError
    return str(value)


def _to_array(value: Any) -> Any:
    """Converts nested numbers to a NumPy array; keeps tensors as they are."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return value  # a tensor may be on another device
    import numpy

    try:
        array = numpy.asarray(value)
    except ValueError:  # a ragged list
        raise TypeError from None
    if array.dtype.kind not in "biuf":
        raise TypeError
    return array


class _Scalar(typing.NamedTuple):
    """The conversion to a type without items, and the words for one or several."""

    convert: Callable[[Any], Any]
    singular: str
    plural: str


_SCALARS: dict[Any, _Scalar] = {
    bool: _Scalar(_to_bool, "True or False", "booleans"),
    int: _Scalar(_to_int, "an integer", "integers"),
    float: _Scalar(_to_float, "a finite number", "finite numbers"),
    str: _Scalar(_to_string, "a string", "strings"),
}
_ARRAY = _Scalar(_to_array, "an array of numbers", "arrays of numbers")


def _describe(
    hint: Any, accepted: Accepted | tuple[str, ...] | None, with_type: bool
) -> str:
    """Describes the accepted values, optionally with their type."""
    if isinstance(accepted, tuple):
        return join_choices(accepted)
    members = _list_members(hint)
    each = any(typing.get_origin(x) in (tuple, Sequence) for x in members)
    if accepted and not with_type and not each:
        return str(accepted)
    names = join_choices(map(_describe_type, members))
    return f"{names}, {'each ' if each else ''}{accepted}" if accepted else names


def _describe_type(hint: Any) -> str:
    """Describes a type in words, such as "two integers" or "a DatasetInfo"."""
    kind = typing.get_origin(hint) or hint
    if kind in (tuple, Sequence):
        item, *more = _list_item_types(hint)
        name = _describe_items(item)
        return name if ... in more else f"{_COUNTS[1 + len(more)]} {name}"
    scalar = _find_scalar(hint)
    if scalar:
        return scalar.singular
    if kind in _DESCRIPTIONS:
        return _DESCRIPTIONS[kind]
    article = "an" if _name_class(kind)[0] in "AEIOU" else "a"
    return f"{article} {_name_class(kind)}"


def _describe_items(hint: Any) -> str:
    """Describes the items of a tuple or sequence, in the plural."""
    scalar = _find_scalar(hint)
    if scalar:
        return scalar.plural
    if typing.get_origin(hint) is tuple:
        return f"tuples of {_describe_type(hint)}"
    return f"{_name_class(hint)} objects"


def _name_class(kind: Any) -> str:
    return "keras.Model" if kind.__name__ == "Model" else kind.__name__


def _suggest_replacement(
    name: str, value: Any, hint: Any, accepted: Accepted | tuple[str, ...] | None
) -> str:
    """Suggests a replacement for a value of the wrong type; "" if there is none."""
    for kind in _list_members(hint):
        if typing.get_origin(kind) in (tuple, Sequence):
            return _suggest_tuple(name, value, _list_item_types(kind), accepted)
        expected = getattr(kind, "__name__", "")
        if isinstance(value, str | os.PathLike) and expected in _FROM_STRING:
            return f"; use {_FROM_STRING[expected].format(os.fspath(value))}"
        if isinstance(value, dict) and dataclasses.is_dataclass(kind):
            return f"; use {expected}(**{name})"
        if expected == "Model" and type(value).__name__ == "ModelConfig":
            return "; use build_model(config)"
    return ""


def _suggest_tuple(
    name: str,
    value: Any,
    hints: tuple,
    accepted: Accepted | tuple[str, ...] | None,
) -> str:
    """Suggests a tuple for a single item; "" if the item is not accepted."""
    try:
        item = _convert(hints[0], value)
    except TypeError:
        return ""
    if not (isinstance(item, int | float | str) and _is_accepted(accepted, item)):
        return ""
    items = (item,) if ... in hints else (item,) * len(hints)
    return f"; use {name}={items}"
