"""Refusing what cannot be, before any work starts."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar, Protocol

from deeplab_tf.errors import UserError


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


def freeze_lists(config: Dataclass) -> None:
    """Turns the lists among the fields of a frozen dataclass into tuples."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list):
            object.__setattr__(config, field.name, tuple(value))
