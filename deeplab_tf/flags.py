"""absl flags with the official DeepLab names -> configs.

Every program keeps its flags in its own `FlagValues`, so that several can be
imported into one process. Lists are read as `513,513` and as a repeated flag.
"""

import dataclasses
import sys
import typing
from collections.abc import Callable, Iterable

from absl import flags

from deeplab_tf import strict_json
from deeplab_tf.config import (
    MODEL_FLAGS,
    DataConfig,
    ModelConfig,
    parse_numbers,
    parse_size,
    parsed,
)
from deeplab_tf.config.checks import Dataclass
from deeplab_tf.errors import UserError
from deeplab_tf.presets import Preset, find_preset

# name, kind, official default, help. "list" flags are parsed by the config.
_MODEL = (
    ("model_variant", "string", "mobilenet_v2", "Backbone."),
    ("atrous_rates", "list", None, "Atrous rates of the ASPP; none: no 3x3 branch."),
    (
        "output_stride",
        "integer",
        16,
        "Image pixels per feature cell: 8, 16 or 32; a cascade goes up to 256.",
    ),
    ("depth_multiplier", "float", 1.0, "Width of a MobileNet."),
    ("divisible_by", "integer", None, "Channels are a multiple of this (MobileNetV2)."),
    ("image_pyramid", "list", None, "Scales merged inside the model."),
    ("merge_method", "string", "max", "max or avg of the logits over image_pyramid."),
    ("add_image_level_feature", "boolean", True, "Image-level features in the ASPP."),
    ("image_pooling_crop_size", "list", None, "Window of image pooling, in pixels."),
    ("image_pooling_stride", "list", "1,1", "Steps of image pooling, in cells."),
    ("aspp_with_separable_conv", "boolean", True, "Separable ASPP convolutions."),
    ("aspp_convs_filters", "integer", 256, "Depth of the ASPP."),
    ("decoder_output_stride", "list", None, "Strides of the decoder, such as 4."),
    ("decoder_filters", "integer", 256, "Depth of the decoder."),
    ("decoder_use_separable_conv", "boolean", True, "Separable decoder convolutions."),
    ("multi_grid", "list", None, "Unit rates of the last block, such as 1,2,4."),
    ("logits_kernel_size", "integer", 1, "Kernel of the logits layer."),
    (
        "aspp_with_batch_norm",
        "boolean",
        True,
        "False: logits of the backbone, without ASPP.",
    ),
    ("aspp_with_concat_projection", "boolean", True, "The ASPP ends in a projection."),
    ("aspp_with_squeeze_and_excitation", "boolean", False, "LR-ASPP."),
    ("decoder_use_sum_merge", "boolean", False, "The decoder adds instead of joining."),
    ("decoder_output_is_logits", "boolean", False, "The decoder gives the logits."),
    ("image_se_uses_qsigmoid", "boolean", False, "Hard sigmoid in LR-ASPP."),
    ("use_bounded_activation", "boolean", False, "ReLU6, for quantisation."),
    (
        "dense_prediction_cell_json",
        "string",
        "",
        "File of a dense prediction cell, or the name of the released one.",
    ),
    ("prediction_with_upsampled_logits", "boolean", True, "Resize before argmax."),
    ("cascade_blocks", "integer", 0, "Ours: replicas of a ResNet's block4, up to 3."),
    (
        "depthwise_activation",
        "boolean",
        False,
        "Ours: the ReLU after each depthwise convolution of Xception in the paper.",
    ),
    ("decoder_projection_filters", "integer", 48, "Ours: depth of low-level features."),
    ("decoder_convolutions", "integer", 2, "Ours: number of decoder convolutions."),
    ("decoder_kernel_size", "integer", 3, "Ours: kernel of decoder convolutions."),
    (
        "batch_norm_momentum",
        "float",
        None,
        "Ours: decay of all moving statistics; the default is the official constant "
        "of each part, too slow for runs of some hundred steps from scratch.",
    ),
)

_DEFINE: dict[str, Callable] = {
    "string": flags.DEFINE_string,
    "integer": flags.DEFINE_integer,
    "float": flags.DEFINE_float,
    "boolean": flags.DEFINE_boolean,
    "list": flags.DEFINE_multi_string,
}

_LOGGING = "logging goes to the terminal"
_DISTRIBUTION = "TF_CONFIG names the workers, see --distribution_strategy"
_ONLY_TRAINING = {"label_weights": ("list", "they weigh the training loss")}
# Flags of the official scripts that mean nothing here, and what replaces them.
_DEAD = {
    "common": {
        "logtostderr": ("boolean", _LOGGING),
        "alsologtostderr": ("boolean", _LOGGING),
        "verbosity": ("string", _LOGGING),
        "master": ("string", _DISTRIBUTION),
        "batch_norm_decay": (
            "string",
            "the official code never read it; --batch_norm_momentum sets the decay",
        ),
        "keep_aspect_ratio": ("boolean", "the aspect ratio is always kept"),
        "nas_stem_output_num_conv_filters": ("string", "there are no NAS backbones"),
        "nas_use_classification_head": ("boolean", "there are no NAS backbones"),
        "nas_remove_os32_stride": ("boolean", "there are no NAS backbones"),
    },
    "train": {
        "num_replicas": ("string", _DISTRIBUTION),
        "startup_delay_steps": ("string", _DISTRIBUTION),
        "num_ps_tasks": ("string", _DISTRIBUTION),
        "task": ("string", _DISTRIBUTION),
        "profile_logdir": ("string", "tf.profiler replaces tfprof"),
        "drop_path_keep_prob": ("string", "there are no NAS backbones"),
        "save_summaries_secs": ("string", "summaries come with every --log_steps"),
        "save_summaries_images": (
            "boolean",
            "images are shown at every --eval_interval_steps",
        ),
    },
    "eval": _ONLY_TRAINING,
    "predict": _ONLY_TRAINING,
    "export": {
        "save_inference_graph": ("boolean", "a SavedModel holds its graph"),
        **_ONLY_TRAINING,
    },
}
_PRECISIONS = ("float32", "bfloat16", "float16")
_CELL = "dense_prediction_cell_json"
RESIZING = ("min_resize_value", "max_resize_value", "resize_factor")


def define_model_flags(values: flags.FlagValues, program: str) -> None:
    """Defines the official model flags and the dead ones of a program.

    Args:
        values: Where to define them.
        program: "train", "eval", "export" or "predict".
    """
    for name, kind, default, text in _MODEL:
        _DEFINE[kind](name, default, text, flag_values=values)
    flags.DEFINE_string(
        "preset",
        None,
        "Ours: row of a paper or of the model zoo that stands for all flags not given, "
        "in an export for those of the model; python -m deeplab_tf.presets lists them.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        _PRECISIONS,
        "Ours: of convolutions; weights, logits and losses are float32.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "quantize_delay_step",
        -1,
        "Quantisation-aware: not offered.",
        flag_values=values,
    )
    for name, (kind, text) in (_DEAD["common"] | _DEAD[program]).items():
        _DEFINE[kind](name, None, f"Without effect: {text}.", flag_values=values)


def define_dataset_location(values: flags.FlagValues) -> None:
    """Defines where the records are."""
    flags.DEFINE_string(
        "dataset",
        None,
        "Name of the dataset, or tfds:NAME[:image_key:label_key] for one of "
        "tensorflow-datasets; default: the dataset_info.json beside the records, else "
        "pascal_voc_seg.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "dataset_dir",
        None,
        "Folder of the TFRecords, or of tensorflow-datasets.",
        flag_values=values,
    )


def define_dataset_flags(values: flags.FlagValues, split_flag: str, split: str) -> None:
    """Defines where the records are and how they are resized."""
    define_dataset_location(values)
    flags.DEFINE_string(split_flag, split, "Split to read.", flag_values=values)
    for name in RESIZING:
        flags.DEFINE_integer(name, None, "Resizing of every image.", flag_values=values)


def define_overwrite(values: flags.FlagValues) -> None:
    """Defines the flag that permits replacing files of somebody else."""
    flags.DEFINE_boolean(
        "overwrite",
        False,
        "Ours: also replace files that are not earlier output of this program.",
        flag_values=values,
    )


def require_dataset_dir(dataset: str | None, dataset_dir: str | None) -> None:
    """Refuses a command line that says nothing of where the records are.

    Raises:
        UserError: naming the flag.
    """
    if not dataset_dir and not (dataset or "").startswith("tfds:"):
        raise UserError("--dataset_dir is needed: the folder of the TFRecords")


def define_fields(
    values: flags.FlagValues,
    config: type[Dataclass],
    help_of: dict[str, str],
    prefix: str = "",
) -> None:
    """Defines one flag per named field of a config, with the field's default.

    Args:
        values: Where to define them.
        config: A config dataclass with defaults.
        help_of: Field name to help text.
        prefix: Of the flags, such as "train_".
    """
    fields = {f.name: f for f in dataclasses.fields(config)}
    for name, text in help_of.items():
        default = fields[name].default
        if isinstance(default, tuple) or (default is None and "size" in name):
            default = ",".join(map(str, default)) if default else None
            kind = "list"
        elif int in typing.get_args(fields[name].type):
            kind = "integer"
        elif default is None or isinstance(default, str):
            kind = "string"
        else:
            kind = {bool: "boolean", int: "integer", float: "float"}[type(default)]
        _DEFINE[kind](prefix + name, default, text, flag_values=values)


def field_values(
    values: flags.FlagValues,
    names: Iterable[str],
    base: Dataclass | None = None,
    prefix: str = "",
) -> dict:
    """Returns the values of such flags, lists as tuples of numbers.

    Args:
        values: Parsed flags.
        names: The fields.
        base: A config that stands for the flags which were not given.
        prefix: Of the flags, such as "train_".
    """
    parsed = {}
    for name in names:
        flag = values[prefix + name]
        if base is not None and not flag.present:
            parsed[name] = getattr(base, name)
        elif not isinstance(flag, flags.MultiFlag):
            parsed[name] = flag.value
        elif "size" in name:
            parsed[name] = size_value(values, flag.name)
        else:
            parsed[name] = numbers_value(values, flag.name)
    return parsed


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
    return parsed(f"--{name}", values[name].value, parse_size)


def numbers_value(values: flags.FlagValues, name: str) -> tuple[float, ...]:
    """Returns the numbers of a list flag."""
    return parsed(f"--{name}", values[name].value, lambda v: parse_numbers(v, float))


def whole_numbers_value(values: flags.FlagValues, name: str) -> tuple[int, ...]:
    """Returns the whole numbers of a list flag."""
    return parsed(f"--{name}", values[name].value, lambda v: parse_numbers(v, int))


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
        base: The model of a preset or an `experiment.json`; flags given
            explicitly are laid over it, and what they change is printed. None
            starts from the official defaults.
        source: What to call the base in these notes; "" prints none.
        num_classes: Number of classes, where it is known besides.

    Raises:
        UserError: for values that cannot be.
    """
    given: dict = {
        name: values[name].value for name, *_ in _MODEL if values[name].present
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
    for name in given:
        field = MODEL_FLAGS.get(name, ("",))[0]
        if source and field and _field(config, field) != _field(base, field):
            print(
                f"note: {name} is {_field(config, field)}, not {_field(base, field)} "
                f"as in {source}"
            )
    return config


def _content_or_name(path: str) -> str:
    """Returns what a file holds; the path itself if there is none."""
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
    """Returns the data config of the dataset flags, with other fields given.

    Args:
        values: Parsed flags.
        model: The model, for what it takes as padding.
        base: A preset's, for the flags which were not given.
        **fields: Fields of the config.
    """
    own = {"dataset_dir": values.dataset_dir or "", "dataset": values.dataset}
    own |= field_values(values, RESIZING, base)
    return DataConfig(mean_pixel=model.mean_pixel, **own | fields)


def dataset_fallback(preset: Preset | None) -> str:
    """Returns the dataset where neither flag nor records tell it."""
    return (preset and preset.data.dataset) or "pascal_voc_seg"
