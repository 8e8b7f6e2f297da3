"""An option is one dataclass field: name, type, default, range, help and flag."""

import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol, TypeVar

_Class = TypeVar("_Class", bound=type)
_OPTION = "option"


class Dataclass(Protocol):
    """Any dataclass, to type checkers."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]


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
# Sides of images, crops and windows, in pixels or in feature cells.
SIDE = Range(at_least=1, at_most=2**16)


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of a field besides its name, type and default.

    Attributes:
        help: Meaning, unit and the paper's value, for `--help` and `help()`.
        accepts: Range of the number, or of each number of a tuple; or the accepted
            strings. None accepts all values of the type.
        flag: Name of the flag where it is not the field's; "" is no flag.
        export_flag: Name of the flag in export.py where it has another one there.
        flag_default: Default of the flag; `...` is the field's.
        parse: Reads the value of the flag; None reads it by the field's type.
        is_ours: Whether the official programs lack the flag.
    """

    help: str = ""
    accepts: Range | tuple[str, ...] | None = None
    flag: str | None = None
    export_flag: str = ""
    flag_default: Any = ...
    parse: Callable | None = None
    is_ours: bool = False


def option(
    default: Any = dataclasses.MISSING,
    accepts: Range | tuple[str, ...] | None = None,
    help: str = "",
    **details: Any,
) -> Any:
    """Returns a dataclass field that is an option.

    Args:
        default: Default value; without one the field must be given.
        accepts: As in `Option`.
        help: As in `Option`.
        **details: The other attributes of `Option`.
    """
    metadata = {_OPTION: Option(help, accepts, **details)}
    return dataclasses.field(default=default, metadata=metadata)


# An option that the official programs lack.
ours = functools.partial(option, is_ours=True)


def option_of(field: dataclasses.Field) -> Option:
    """Returns the option that a field is; an empty one for a plain field."""
    return field.metadata.get(_OPTION, Option(flag=""))


def flag_name(field: dataclasses.Field) -> str:
    """Returns the name of a field's flag, "" if it has none."""
    flag = option_of(field).flag
    return field.name if flag is None else flag


def export_flag_name(field: dataclasses.Field) -> str:
    """Returns the name of a field's flag in export.py."""
    return option_of(field).export_flag or flag_name(field)


def flag_default(field: dataclasses.Field) -> Any:
    """Returns the default of a field's flag."""
    default = option_of(field).flag_default
    return field.default if default is ... else default


def flagged_fields(config: type[Dataclass]) -> Iterator[dataclasses.Field]:
    """Yields the fields of a config that have a flag."""
    return filter(flag_name, dataclasses.fields(config))


def type_of(field: dataclasses.Field) -> tuple[Any, bool]:
    """Returns the type of a field without `None`, and whether `None` is accepted."""
    members = typing.get_args(field.type)
    if type(None) not in members:
        return field.type, False
    return next(member for member in members if member is not type(None)), True


def document_fields(cls: _Class) -> _Class:
    """Adds the help of every option to the docstring of a config."""
    lines = [
        textwrap.fill(
            f"{field.name}: {option_of(field).help}",
            width=84,
            initial_indent=4 * " ",
            subsequent_indent=8 * " ",
        )
        for field in dataclasses.fields(cls)
    ]
    attributes = "\n".join(["Attributes:", *lines])
    summary, *others = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    cls.__doc__ = "\n\n".join([summary, attributes, *others])
    return cls
