"""Options: dataclass fields that carry their range, help text and flag."""

import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol, TypeVar

_Class = TypeVar("_Class", bound=type)
_OPTION = "option"

# Groups of flags in `--help` and docs/flags.md.
START, DATA, MODEL = "Start here", "Data", "Model"
OPTIMISATION, HARDWARE, EVALUATION = "Optimisation", "Hardware", "Evaluation"
OUTPUT = "Output"
WITHOUT_EFFECT = "Without effect"
GROUPS = (
    *(START, DATA, MODEL, OPTIMISATION, HARDWARE, EVALUATION, OUTPUT),
    WITHOUT_EFFECT,
)


class Dataclass(Protocol):
    """Type of any dataclass instance."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]


@dataclasses.dataclass(frozen=True)
class Range:
    """A numeric range; a bound of `None` means no bound.

    Attributes:
        at_least: Inclusive lower bound.
        above: Exclusive lower bound.
        at_most: Inclusive upper bound.
        below: Exclusive upper bound.
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
# Image scales. The papers use 0.5 to 2.
SCALES = Range(at_least=0.01, at_most=16)
# Sides of images, crops and windows, in pixels or feature cells.
SIDE = Range(at_least=1, at_most=2**16)


@dataclasses.dataclass(frozen=True)
class Option:
    """Metadata of a config field.

    Attributes:
        help: Meaning, unit and the paper's value, for `--help` and `help()`.
        accepts: Range of the number (or of each number in a tuple), or the accepted
            strings. None accepts every value of the type.
        flag: Flag name if it differs from the field name; "" defines no flag.
        export_flag: Flag name in export.py if it differs there.
        vis_flag: Flag name in vis.py if it differs there.
        flag_default: Default of the flag; `...` uses the field's default.
        parse: Parses the flag value; None parses by the field's type.
        is_ours: Whether the flag is missing from the official programs.
        group: Member of `GROUPS` that lists the flag; default: that of its config.
    """

    help: str = ""
    accepts: Range | tuple[str, ...] | None = None
    flag: str | None = None
    export_flag: str = ""
    vis_flag: str = ""
    flag_default: Any = ...
    parse: Callable | None = None
    is_ours: bool = False
    group: str = ""


def option(
    default: Any = dataclasses.MISSING,
    accepts: Range | tuple[str, ...] | None = None,
    help: str = "",
    **details: Any,
) -> Any:
    """Returns a dataclass field that carries an `Option` with these attributes.

    Without a default, the field is required.
    """
    metadata = {_OPTION: Option(help, accepts, **details)}
    return dataclasses.field(default=default, metadata=metadata)


# For options that the official programs do not have.
ours = functools.partial(option, is_ours=True)


@functools.cache
def option_of(field: dataclasses.Field) -> Option:
    """Returns the `Option` of a field; for a plain field, an empty one."""
    return field.metadata.get(_OPTION, Option(flag=""))


def flag_name(field: dataclasses.Field) -> str:
    """Returns the flag name of a field, or "" if it has no flag."""
    flag = option_of(field).flag
    return field.name if flag is None else flag


def export_flag_name(field: dataclasses.Field) -> str:
    """Returns the flag name of a field in export.py."""
    return option_of(field).export_flag or flag_name(field)


def vis_flag_name(field: dataclasses.Field) -> str:
    """Returns the flag name of a field in vis.py."""
    return option_of(field).vis_flag or flag_name(field)


def flag_default(field: dataclasses.Field) -> Any:
    """Returns the default of a field's flag."""
    default = option_of(field).flag_default
    return field.default if default is ... else default


def flagged_fields(config: type[Dataclass]) -> Iterator[dataclasses.Field]:
    """Returns the fields of a config that have a flag."""
    return filter(flag_name, dataclasses.fields(config))


def type_of(field: dataclasses.Field) -> tuple[Any, bool]:
    """Returns the type of a field without `None`, and whether it is optional."""
    members = typing.get_args(field.type)
    if type(None) not in members:
        return field.type, False
    return next(member for member in members if member is not type(None)), True


def document_fields(cls: _Class) -> _Class:
    """Adds an Attributes section, with the help of every option, to a docstring."""
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
    summary, *rest = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    cls.__doc__ = "\n\n".join([summary, attributes, *rest])
    return cls
