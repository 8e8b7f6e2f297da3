"""Maps the official model flags to config fields, and lists those without effect."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from deeplab_tf.config.options import Dataclass, flag_name
from deeplab_tf.config.parsing import parse, parse_bool, parse_option, parse_size
from deeplab_tf.errors import UserError

_LOGGING = "logging goes to the terminal"
_DISTRIBUTION = "workers are set by TF_CONFIG, see --distribution_strategy"
_NO_NAS = "NAS backbones are not supported"
_ONLY_TRAINING: dict[str, tuple[type, str]] = {
    "label_weights": (list, "it only affects the training loss")
}
# Flags of the official scripts that have no effect here, and why.
DEAD_FLAGS: dict[str, dict[str, tuple[type, str]]] = {
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
        "nas_stem_output_num_conv_filters": (str, _NO_NAS),
        "nas_use_classification_head": (bool, _NO_NAS),
        "nas_remove_os32_stride": (bool, _NO_NAS),
    },
    "train": {
        "prediction_with_upsampled_logits": (bool, "it only affects predictions"),
        "num_replicas": (str, _DISTRIBUTION),
        "startup_delay_steps": (str, _DISTRIBUTION),
        "num_ps_tasks": (str, _DISTRIBUTION),
        "task": (str, _DISTRIBUTION),
        "profile_logdir": (str, "use tf.profiler instead of tfprof"),
        "drop_path_keep_prob": (str, _NO_NAS),
        "save_summaries_secs": (str, "summaries are written every --log_steps"),
        "save_summaries_images": (
            bool,
            "images are written every --eval_interval_steps",
        ),
    },
    "eval": _ONLY_TRAINING,
    "predict": _ONLY_TRAINING,
    "vis": _ONLY_TRAINING,
    "export": {
        "save_inference_graph": (bool, "a SavedModel contains its graph"),
        **_ONLY_TRAINING,
    },
}


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


# Official flags that are not part of the model, with their checks: the official graph
# has a fixed input size, ours adapts to its input; labels are `EvalConfig`'s concern.
_CHECKED_FLAGS = {
    "crop_size": parse_size,
    "prediction_with_upsampled_logits": parse_bool,
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
