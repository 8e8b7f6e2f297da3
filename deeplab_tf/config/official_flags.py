"""Maps the official model flags to config fields."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from deeplab_tf.config.options import Dataclass, flag_name
from deeplab_tf.config.parsing import parse, parse_bool, parse_option, parse_size
from deeplab_tf.errors import UserError


class ModelFlag(NamedTuple):
    """A model flag, official or ours, and the path of its field in `ModelConfig`."""

    path: str
    field: dataclasses.Field


def collect_flags(config: type[Dataclass], prefix: str = "") -> dict[str, ModelFlag]:
    """Returns the flags of a config and its nested configs by name.

    `prefix` is the path from the outermost config to this one, ending with a dot.
    """
    flags: dict[str, ModelFlag] = {}
    for field in dataclasses.fields(config):
        path = prefix + field.name
        if dataclasses.is_dataclass(field.type):
            flags |= collect_flags(field.type, f"{path}.")  # type: ignore[arg-type]
        elif flag_name(field):
            flags[flag_name(field)] = ModelFlag(path, field)
    return flags


def _check_upsampled(value: object) -> None:
    if not parse_bool(value):
        raise ValueError("labels are only computed from upsampled logits")


# Official flags that are not part of the model, with their checks. `crop_size` is only
# checked: the official graph has a fixed input size, ours adapts to its input.
_CHECKED_FLAGS = {
    "crop_size": parse_size,
    "prediction_with_upsampled_logits": _check_upsampled,
}


def parse_model_flags(
    flags: Mapping[str, object], known: Mapping[str, ModelFlag]
) -> dict:
    """Returns the values of official flags by field path.

    Numbers may be strings or lists; `known` are the model flags by name. Raises
    UserError for an unknown name or a value that cannot be parsed.
    """
    fields = {}
    for name, value in flags.items():
        if name in known:
            path, field = known[name]
            fields[path] = parse_option(field, name, value)
        elif name in _CHECKED_FLAGS:
            parse(name, value, _CHECKED_FLAGS[name])
        else:
            names = ", ".join(sorted([*known, *_CHECKED_FLAGS]))
            raise UserError(f"unknown model flag {name!r}; it must be one of {names}")
    return fields
