"""Validates every field of a config dataclass."""

import dataclasses
import functools

from deeplab_tf.arguments import format_value, require_type
from deeplab_tf.config.options import Dataclass, flag_name, option_of
from deeplab_tf.errors import UserError

_INTEGER_LIMIT = 2**32


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)


def check_fields(config: Dataclass, of: str = "") -> None:
    """Checks the type, range and choices of every field of a frozen dataclass.

    Call it in `__post_init__`. Lists become tuples; NumPy scalars and integers become
    the type of their field. `of` is text after the field name in messages.

    Raises:
        UserError: for the first invalid value; names the field, its flag, the accepted
            values and the value received.
    """
    for field in dataclasses.fields(config):
        received, accepted = getattr(config, field.name), option_of(field).accepts
        title = _name_with_flag(field, of)
        value = require_type(field.name, received, field.type, accepted, title)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) >= _INTEGER_LIMIT:
                raise UserError(
                    f"{title} must be below 2^32; received {format_value(received)}"
                )
        object.__setattr__(config, field.name, value)


def name_option(config: Dataclass | type[Dataclass], field: str) -> str:
    """Returns the name of a field for messages, with its flag if that differs."""
    fields = {f.name: f for f in dataclasses.fields(config)}
    return _name_with_flag(fields[field])


@functools.cache
def _name_with_flag(field: dataclasses.Field, of: str = "") -> str:
    export_flag, flag = option_of(field).export_flag, flag_name(field)
    if export_flag:
        return f"{field.name}{of} (--{export_flag} of an export)"
    has_own_flag = flag not in ("", field.name)
    return f"{field.name}{of}" + (f" (--{flag})" if has_own_flag else "")
