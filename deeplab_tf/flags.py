"""Defines absl flags with the official DeepLab names, and reads configs from them.

Each program has its own `FlagValues`, so several can be imported into one process.
Lists are given as `513,513` or by repeating the flag.
"""

import dataclasses
import functools
import operator
import sys
import typing
from collections.abc import Callable, Collection, Mapping

from absl import flags

from deeplab_tf import strict_json
from deeplab_tf.arguments import join_choices
from deeplab_tf.config import (
    MODEL_FLAGS,
    DataConfig,
    ModelConfig,
    parse,
    parse_numbers,
    parse_option,
    parse_size,
)
from deeplab_tf.config.official_flags import DEAD_FLAGS
from deeplab_tf.config.options import (
    DATA,
    HARDWARE,
    MODEL,
    OUTPUT,
    START,
    WITHOUT_EFFECT,
    Dataclass,
    flag_default,
    flag_name,
    flagged_fields,
    option_of,
    type_of,
)
from deeplab_tf.errors import UserError, suggest_similar
from deeplab_tf.presets import Preset, find_preset

_Config = typing.TypeVar("_Config", bound=Dataclass)

# Kinds of flags for the tables passed to `define_flags`.
BOOLEAN, INTEGER, FLOAT = flags.DEFINE_boolean, flags.DEFINE_integer, flags.DEFINE_float
STRING, STRINGS = flags.DEFINE_string, flags.DEFINE_list
REPEATED = flags.DEFINE_multi_string


def at_least(bound: int) -> Callable:
    """Returns a function that defines an integer flag with a lower bound."""
    return functools.partial(flags.DEFINE_integer, lower_bound=bound)


def one_of(*choices: str) -> Callable:
    """Returns a function that defines a string flag with a fixed set of choices."""
    serializer: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
    return functools.partial(flags.DEFINE, _Choices(choices), serializer=serializer)


class _Choices(flags.ArgumentParser):
    """Accepts some strings only."""

    def __init__(self, choices: tuple[str, ...]):
        self.enum_values = choices

    def parse(self, argument: str) -> str:
        """Returns the argument; the error suggests a similar one."""
        if argument not in self.enum_values:
            similar = suggest_similar(argument, self.enum_values)
            raise ValueError(f"{similar}it must be {join_choices(self.enum_values)}")
        return argument

    def flag_type(self) -> str:
        """Returns the name of the type."""
        return "string enum"


def required_string(
    name: str, default: None, text: str, flag_values: flags.FlagValues
) -> None:
    """Defines a string flag that must be given; for the rows of `define_flags`."""
    flags.DEFINE_string(name, default, text, flag_values=flag_values)
    require_flags(flag_values, name)


def require_flags(values: flags.FlagValues, *names: str) -> None:
    """Makes flags required; `run_program` refuses a command line without them."""
    for name in names:
        vars(values[name])["is_required"] = True


def is_required(flag: flags.Flag) -> bool:
    """Returns whether a flag must be given."""
    return getattr(flag, "is_required", False)


def define_flags(
    values: flags.FlagValues, rows: Mapping[str, tuple], group: str = START
) -> None:
    """Defines flags from a table of `{name: (kind, default, help)}`.

    `group` is the member of `GROUPS` that lists them.
    """
    for name, (define, default, text) in rows.items():
        define(name, default, text, flag_values=values)
        values.register_flag_by_module(group, values[name])


_CELL = "dense_prediction_cell_json"
# The number of classes comes from the data or the checkpoint.
_MODEL_FLAGS = tuple(name for name in MODEL_FLAGS if name != "num_classes")
# The inference protocol of a checkpoint; that of an exported model is fixed.
INFERENCE = (
    *("eval_scales", "add_flipped_images", "eval_crop_size", "window_size"),
    *("memory_limit_mb", "prediction_with_upsampled_logits"),
)
RESIZING = ("min_resize_value", "max_resize_value", "resize_factor")


_PRESET = {
    "preset": (
        *(STRING, None),
        "Ours: named experiment that sets every flag you do not give (in an export, "
        "every model flag); python -m deeplab_tf.presets lists the names.",
    ),
}
_PRECISION = {
    "precision": (
        *(one_of("float32", "bfloat16", "float16"), "float32"),
        "Ours: precision of convolutions; weights, logits and losses stay float32.",
    ),
}
_QUANTIZED = {
    "quantize_delay_step": (
        INTEGER,
        None,
        "0 or more uses a quantisation-aware checkpoint with the rounding of 8-bit "
        "inference, -1 without. Default: as trained (in an export, only with "
        "--quantize=int8).",
    ),
}


def define_model_flags(values: flags.FlagValues, program: str) -> None:
    """Defines the model flags and the official flags that have no effect.

    `program` is "train", "eval", "vis", "export" or "predict".
    """
    for name in _MODEL_FLAGS:
        _define_option(values, name, MODEL_FLAGS[name].field, MODEL)
    define_flags(values, _PRESET)
    define_precision(values)
    if program != "train":
        define_flags(values, _QUANTIZED, MODEL)
    for name, (kind, text) in (DEAD_FLAGS["common"] | DEAD_FLAGS[program]).items():
        define = flags.DEFINE_multi_string if kind is list else _KINDS[kind]
        row = {name: (define, None, f"{WITHOUT_EFFECT}: {text}.")}
        define_flags(values, row, WITHOUT_EFFECT)


def define_precision(values: flags.FlagValues) -> None:
    """Defines only --precision of the model flags."""
    define_flags(values, _PRECISION, HARDWARE)


def define_dataset_location(values: flags.FlagValues) -> None:
    """Defines --dataset and --dataset_dir."""
    define_options(values, DataConfig, DATA, ("dataset", "dataset_dir"))


def define_dataset_flags(values: flags.FlagValues, split_flag: str, split: str) -> None:
    """Defines the flags for location, split and resizing of a dataset."""
    define_dataset_location(values)
    define_flags(values, {split_flag: (STRING, split, "Split to read.")}, DATA)
    define_options(values, DataConfig, DATA, RESIZING)


def define_overwrite(values: flags.FlagValues) -> None:
    """Defines --overwrite."""
    text = "Ours: also replace files that this program did not write."
    define_flags(values, {"overwrite": (BOOLEAN, False, text)}, OUTPUT)


def has_records(dataset: str | None, dataset_dir: str | None) -> bool:
    """Returns whether the flags name records, or a dataset that needs no folder."""
    return bool(dataset_dir) or (dataset or "").startswith("tfds:")


def require_dataset_dir(dataset: str | None, dataset_dir: str | None) -> None:
    """Raises UserError if --dataset_dir is missing but needed."""
    if not has_records(dataset, dataset_dir):
        raise UserError("--dataset_dir is required: the folder of the TFRecords")


_KINDS: dict[typing.Any, Callable] = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}
# Lists of numbers are parsed later, by the config.
_LIST_KINDS: dict[typing.Any, Callable] = {
    int: flags.DEFINE_multi_string,
    float: flags.DEFINE_multi_string,
    str: flags.DEFINE_list,
}


def define_options(
    values: flags.FlagValues,
    config: type[Dataclass],
    group: str = START,
    names: Collection[str] | None = None,
    get_name: Callable[[dataclasses.Field], str] = flag_name,
) -> None:
    """Defines the flags of a config dataclass.

    Args:
        values: Where to define them.
        config: A config dataclass.
        group: Member of `GROUPS` for fields that do not name theirs.
        names: Fields whose flags to define; None defines all.
        get_name: Function from a field to its flag name.
    """
    for field in flagged_fields(config):
        if names is None or field.name in names:
            _define_option(values, get_name(field), field, group)


def _define_option(
    values: flags.FlagValues, name: str, field: dataclasses.Field, group: str
) -> None:
    """Defines the flag of a config field, with its default and help."""
    (hint, _), option = type_of(field), option_of(field)
    if typing.get_origin(hint) is tuple:
        define = _LIST_KINDS.get(typing.get_args(hint)[0], flags.DEFINE_string)
    elif isinstance(option.accepts, tuple):
        define = one_of(*option.accepts)
    else:
        define = _KINDS[hint]
    default, text = flag_default(field), option.help
    if isinstance(default, tuple):
        default = ",".join(map(str, default)) or None
    if option.is_ours:
        text = f"Ours: {text[0].lower()}{text[1:]}"
    define_flags(values, {name: (define, default, text)}, option.group or group)
    if typing.get_args(hint) == (int, int):
        vars(values[name])["placeholder"] = "HEIGHT,WIDTH"


def read_options(
    values: flags.FlagValues,
    config: type[_Config],
    base: _Config | None = None,
    get_name: Callable[[dataclasses.Field], str] = flag_name,
    **fields: typing.Any,
) -> _Config:
    """Builds a config from its flags.

    Args:
        values: Parsed flags.
        config: A config dataclass. Fields without a flag take their value from `base`
            or their default.
        base: Config, such as a preset's, that provides the values of flags that were
            not given.
        get_name: See `define_options`.
        **fields: Values that override those of the flags.

    Raises:
        UserError: for an invalid value; names the flag or field.
    """
    for field in flagged_fields(config):
        name = get_name(field)
        if field.name in fields or name not in values:
            continue
        if base is None or values[name].present:
            fields[field.name] = parse_option(field, f"--{name}", values[name].value)
    return dataclasses.replace(config() if base is None else base, **fields)


def read_preset(values: flags.FlagValues) -> Preset | None:
    """Returns the preset given by --preset, if any."""
    return find_preset(values.preset) if values.preset else None


def read_split(values: flags.FlagValues, name: str, preset: Preset | None) -> str:
    """Returns the value of a split flag if given, else the preset's split."""
    if preset is None or values[name].present:
        return getattr(values, name)
    return getattr(preset, name)


def read_size(values: flags.FlagValues, name: str) -> tuple[int, int] | None:
    """Returns height and width from a size flag."""
    return parse(f"--{name}", values[name].value, parse_size)


def read_integers(values: flags.FlagValues, name: str) -> tuple[int, ...]:
    """Returns the integers of a list flag."""
    return parse(f"--{name}", values[name].value, lambda v: parse_numbers(v, int))


def check_flags(values: flags.FlagValues, program: str) -> None:
    """Prints a warning for each given flag that has no effect in a program."""
    for name, (_, text) in (DEAD_FLAGS["common"] | DEAD_FLAGS[program]).items():
        if values[name].present:
            print(f"warning: --{name} has no effect: {text}", file=sys.stderr)


def read_model_config(
    values: flags.FlagValues,
    base: ModelConfig | None = None,
    source: str = "",
    num_classes: int | None = None,
) -> ModelConfig:
    """Returns the model config that the flags describe.

    Args:
        values: Parsed flags.
        base: The model of a preset or an `experiment.json`, which explicit flags
            override. None starts from the official defaults.
        source: Name of the base in printed notes about overrides; "" prints no notes.
        num_classes: Number of classes of the data or the checkpoint, if known.

    Raises:
        UserError: for invalid values.
    """
    given: dict = {
        name: values[name].value for name in _MODEL_FLAGS if values[name].present
    }
    if given.get(_CELL):
        given[_CELL] = _read_cell(given[_CELL])
    if num_classes is not None:
        given["num_classes"] = num_classes
    if base is None:
        # Its default differs between the official programs.
        stride = {"output_stride": values.output_stride}
        return ModelConfig.from_official_flags(stride | given)
    config = base.with_official_flags(given)
    if source:
        _print_overrides(given, config, base, source)
    return config


def _print_overrides(
    given: Collection[str], config: ModelConfig, base: ModelConfig, source: str
) -> None:
    """Prints a note for each given flag that differs from the base config."""
    for name in filter(MODEL_FLAGS.get, given):
        get = operator.attrgetter(MODEL_FLAGS[name].path)
        new, old = get(config), get(base)
        if new != old:
            print(f"note: {name} is {new}, not {old} as in {source}")


def _read_cell(path: str) -> str:
    """Returns the content of a file, or the path itself if there is no such file."""
    # Imported here because the dataset programs start without TensorFlow.
    import tensorflow as tf

    from deeplab_tf.files import text_files

    if not tf.io.gfile.exists(path):
        return path
    # The config refuses "[]", but would treat an empty file, "", as no cell.
    return strict_json.decode_utf8(text_files.read_content(path), path) or "[]"


def read_data_config(
    values: flags.FlagValues,
    model: ModelConfig,
    base: DataConfig | None,
    **fields: typing.Any,
) -> DataConfig:
    """Returns the data config of the flags, with the padding value of the model.

    See `read_options` for `base`; `fields` override the flags.
    """
    return read_options(values, DataConfig, base, mean_pixel=model.mean_pixel, **fields)


def default_dataset(preset: Preset | None) -> str:
    """Returns the dataset to assume if neither a flag nor the records name one."""
    return (preset and preset.data.dataset) or "pascal_voc_seg"
