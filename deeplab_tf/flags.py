"""absl flags with the official DeepLab names -> configs.

Every program keeps its flags in its own `FlagValues`, so that several can be
imported into one process. Lists are read as `513,513` and as a repeated flag.
"""

import dataclasses
import functools
import sys
import typing
from collections.abc import Callable, Collection, Mapping

from absl import flags

from deeplab_tf import strict_json
from deeplab_tf.config import (
    MODEL_FLAGS,
    DataConfig,
    ModelConfig,
    parse,
    parse_numbers,
    parse_option,
    parse_size,
)
from deeplab_tf.config.options import (
    Dataclass,
    flag_default,
    flag_name,
    flagged_fields,
    option_of,
    type_of,
)
from deeplab_tf.errors import UserError
from deeplab_tf.presets import Preset, find_preset

_Config = typing.TypeVar("_Config", bound=Dataclass)

# Kinds of the flags that programs have besides those of the configs.
BOOLEAN, INTEGER, FLOAT = flags.DEFINE_boolean, flags.DEFINE_integer, flags.DEFINE_float
STRING, STRINGS = flags.DEFINE_string, flags.DEFINE_list


def at_least(bound: int) -> Callable:
    """Returns the kind of an integer with a smallest value."""
    return functools.partial(flags.DEFINE_integer, lower_bound=bound)


def one_of(*choices: str) -> Callable:
    """Returns the kind of a string among some choices."""

    def define(
        name: str, default: str | None, text: str, **options: typing.Any
    ) -> None:
        flags.DEFINE_enum(name, default, choices, text, **options)

    return define


def define_flags(values: flags.FlagValues, rows: Mapping[str, tuple]) -> None:
    """Defines the flags of a table.

    Args:
        values: Where to define them.
        rows: Names to kind, default and help.
    """
    for name, (define, default, text) in rows.items():
        define(name, default, text, flag_values=values)


_LOGGING = "logging goes to the terminal"
_DISTRIBUTION = "TF_CONFIG names the workers, see --distribution_strategy"
_ONLY_TRAINING: dict[str, tuple[type, str]] = {
    "label_weights": (list, "they weigh the training loss")
}
# Flags of the official scripts that mean nothing here, and what replaces them.
_DEAD: dict[str, dict[str, tuple[type, str]]] = {
    "common": {
        "logtostderr": (bool, _LOGGING),
        "alsologtostderr": (bool, _LOGGING),
        "verbosity": (str, _LOGGING),
        "master": (str, _DISTRIBUTION),
        "batch_norm_decay": (
            str,
            "the official code never read it; --batch_norm_momentum sets the decay",
        ),
        "keep_aspect_ratio": (bool, "the aspect ratio is always kept"),
        "nas_stem_output_num_conv_filters": (str, "there are no NAS backbones"),
        "nas_use_classification_head": (bool, "there are no NAS backbones"),
        "nas_remove_os32_stride": (bool, "there are no NAS backbones"),
    },
    "train": {
        "num_replicas": (str, _DISTRIBUTION),
        "startup_delay_steps": (str, _DISTRIBUTION),
        "num_ps_tasks": (str, _DISTRIBUTION),
        "task": (str, _DISTRIBUTION),
        "profile_logdir": (str, "tf.profiler replaces tfprof"),
        "drop_path_keep_prob": (str, "there are no NAS backbones"),
        "save_summaries_secs": (str, "summaries come with every --log_steps"),
        "save_summaries_images": (
            bool,
            "images are shown at every --eval_interval_steps",
        ),
    },
    "eval": _ONLY_TRAINING,
    "predict": _ONLY_TRAINING,
    "export": {
        "save_inference_graph": (bool, "a SavedModel holds its graph"),
        **_ONLY_TRAINING,
    },
}
_CELL = "dense_prediction_cell_json"
_UPSAMPLED = "prediction_with_upsampled_logits"
# The data or the checkpoint know it.
_MODEL_FLAGS = tuple(name for name in MODEL_FLAGS if name != "num_classes")
# How a checkpoint predicts an image; an exported model has its own way.
INFERENCE = (
    *("eval_scales", "add_flipped_images", "eval_crop_size", "window_size"),
    "memory_limit_mb",
)
RESIZING = ("min_resize_value", "max_resize_value", "resize_factor")


# Flags of a model that are no field of its config.
_MODEL_ROWS = {
    _UPSAMPLED: (BOOLEAN, True, "Resize before argmax."),
    "preset": (
        *(STRING, None),
        "Ours: row of a paper or of the model zoo that sets every flag you do not "
        "give, in an export those of the model; python -m deeplab_tf.presets lists "
        "all.",
    ),
    "precision": (
        *(one_of("float32", "bfloat16", "float16"), "float32"),
        "Ours: precision of convolutions; weights, logits and losses are float32.",
    ),
    "quantize_delay_step": (INTEGER, -1, "Quantisation-aware: not offered."),
}


def define_model_flags(values: flags.FlagValues, program: str) -> None:
    """Defines the official model flags and the dead ones of a program.

    Args:
        values: Where to define them.
        program: "train", "eval", "export" or "predict".
    """
    for name in _MODEL_FLAGS:
        _define(values, name, MODEL_FLAGS[name].field)
    define_flags(values, _MODEL_ROWS)
    for name, (kind, text) in (_DEAD["common"] | _DEAD[program]).items():
        define = flags.DEFINE_multi_string if kind is list else _KINDS[kind]
        define(name, None, f"Without effect: {text}.", flag_values=values)


def define_precision(values: flags.FlagValues) -> None:
    """Defines the precision alone of the model flags."""
    define_flags(values, {"precision": _MODEL_ROWS["precision"]})


def define_dataset_location(values: flags.FlagValues) -> None:
    """Defines where the records are."""
    define_options(values, DataConfig, ("dataset", "dataset_dir"))


def define_dataset_flags(values: flags.FlagValues, split_flag: str, split: str) -> None:
    """Defines where the records are and how they are resized."""
    define_dataset_location(values)
    flags.DEFINE_string(split_flag, split, "Split to read.", flag_values=values)
    define_options(values, DataConfig, RESIZING)


def define_overwrite(values: flags.FlagValues) -> None:
    """Defines the flag that permits replacing files that we did not write."""
    text = "Ours: also replace files that are not earlier output of this program."
    define_flags(values, {"overwrite": (BOOLEAN, False, text)})


def require_dataset_dir(dataset: str | None, dataset_dir: str | None) -> None:
    """Refuses a command line without a location of the records.

    Raises:
        UserError: naming the flag.
    """
    if not dataset_dir and not (dataset or "").startswith("tfds:"):
        raise UserError("--dataset_dir is needed: the folder of the TFRecords")


_KINDS: dict[typing.Any, Callable] = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}
# Lists of numbers are parsed by the config.
_LIST_KINDS: dict[typing.Any, Callable] = {
    int: flags.DEFINE_multi_string,
    float: flags.DEFINE_multi_string,
    str: flags.DEFINE_list,
}


def define_options(
    values: flags.FlagValues,
    config: type[Dataclass],
    names: Collection[str] | None = None,
    spell: Callable[[dataclasses.Field], str] = flag_name,
) -> None:
    """Defines the flags of a config.

    Args:
        values: Where to define them.
        config: A config dataclass.
        names: Fields whose flags to define; None is all that have one.
        spell: Returns the name of the flag of a field.
    """
    for field in flagged_fields(config):
        if names is None or field.name in names:
            _define(values, spell(field), field)


def _define(values: flags.FlagValues, name: str, field: dataclasses.Field) -> None:
    hint, _ = type_of(field)
    if typing.get_origin(hint) is tuple:
        define = _LIST_KINDS.get(typing.get_args(hint)[0], flags.DEFINE_string)
    else:
        define = _KINDS[hint]
    default, text = flag_default(field), option_of(field).help
    if isinstance(default, tuple):
        default = ",".join(map(str, default)) or None
    if option_of(field).is_ours:
        text = f"Ours: {text[0].lower()}{text[1:]}"
    define(name, default, text, flag_values=values)


def read_options(
    values: flags.FlagValues,
    config: type[_Config],
    base: _Config | None = None,
    spell: Callable[[dataclasses.Field], str] = flag_name,
    **fields: typing.Any,
) -> _Config:
    """Returns a config with the values of its flags.

    Args:
        values: Parsed flags.
        config: A config dataclass; fields whose flags are not defined keep the base's
            value, else their default.
        base: A preset's config, for the flags which were not given.
        spell: As in `define_options`.
        **fields: Values of fields, whatever their flags say.

    Raises:
        UserError: for an impossible value; names flag or field.
    """
    for field in flagged_fields(config):
        name = spell(field)
        if field.name in fields or name not in values:
            continue
        if base is None or values[name].present:
            fields[field.name] = parse_option(field, f"--{name}", values[name].value)
    return dataclasses.replace(config() if base is None else base, **fields)


def chosen_preset(values: flags.FlagValues) -> Preset | None:
    """Returns the preset that `--preset` names, if it was given."""
    return find_preset(values.preset) if values.preset else None


def split_value(values: flags.FlagValues, name: str, preset: Preset | None) -> str:
    """Returns the value of a split flag, else the preset's split of that name."""
    if preset is None or values[name].present:
        return getattr(values, name)
    return getattr(preset, name)


def size_value(values: flags.FlagValues, name: str) -> tuple[int, int] | None:
    """Returns height and width of a size flag."""
    return parse(f"--{name}", values[name].value, parse_size)


def whole_numbers_value(values: flags.FlagValues, name: str) -> tuple[int, ...]:
    """Returns the whole numbers of a list flag."""
    return parse(f"--{name}", values[name].value, lambda v: parse_numbers(v, int))


def check_flags(values: flags.FlagValues, program: str) -> None:
    """Warns of flags without effect and refuses what is not offered."""
    for name, (_, text) in (_DEAD["common"] | _DEAD[program]).items():
        if values[name].present:
            print(f"warning: --{name} has no effect: {text}", file=sys.stderr)
    delay = values.quantize_delay_step
    if delay >= 0:
        raise UserError(
            f"--quantize_delay_step={delay}: quantisation-aware training is not "
            "offered; it must be -1"
        )


def model_config(
    values: flags.FlagValues,
    base: ModelConfig | None = None,
    source: str = "",
    num_classes: int | None = None,
) -> ModelConfig:
    """Returns the model that the flags describe.

    Args:
        values: Parsed flags.
        base: The model of a preset or an `experiment.json`; flags given explicitly
            override it, and each change is printed. None starts from the official
            defaults.
        source: Name of the base in these notes; "" prints none.
        num_classes: Number of classes, where the data or the checkpoint know it.

    Raises:
        UserError: for impossible values.
    """
    given: dict = {
        name: values[name].value
        for name in (*_MODEL_FLAGS, _UPSAMPLED)
        if values[name].present
    }
    if given.get(_CELL):
        given[_CELL] = _content_or_name(given[_CELL])
    if num_classes is not None:
        given["num_classes"] = num_classes
    if base is None:
        # The one default that differs between the official programs.
        stride = {"output_stride": values.output_stride}
        return ModelConfig.from_official_flags(stride | given)
    config = base.with_official_flags(given)
    if source:
        _print_changes(given, config, base, source)
    return config


def _print_changes(
    given: Collection[str], config: ModelConfig, base: ModelConfig, source: str
) -> None:
    for name in filter(MODEL_FLAGS.get, given):
        new, old = (_field(c, MODEL_FLAGS[name].path) for c in (config, base))
        if new != old:
            print(f"note: {name} is {new}, not {old} as in {source}")


def _content_or_name(path: str) -> str:
    """Returns the content of a file; the path itself if there is no such file."""
    # Here, because the dataset programs start without TensorFlow.
    import tensorflow as tf

    from deeplab_tf.files import text_files

    if not tf.io.gfile.exists(path):
        return path
    # "[]" is what an empty file means; the config refuses it.
    return strict_json.decode(text_files.read_content(path), path) or "[]"


def _field(config: object, path: str) -> object:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def data_config(
    values: flags.FlagValues,
    model: ModelConfig,
    base: DataConfig | None,
    **fields: typing.Any,
) -> DataConfig:
    """Returns the data config of the flags, padded as the model needs it.

    Args:
        values: Parsed flags.
        model: The model, which tells the value of the padding.
        base: A preset's, for the flags which were not given.
        **fields: Values of fields, whatever their flags say.
    """
    return read_options(values, DataConfig, base, mean_pixel=model.mean_pixel, **fields)


def dataset_fallback(preset: Preset | None) -> str:
    """Returns the dataset where neither a flag nor the records name it."""
    return (preset and preset.data.dataset) or "pascal_voc_seg"
