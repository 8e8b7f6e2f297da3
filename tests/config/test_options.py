"""Types and ranges of all config fields."""

import dataclasses
import json
import math
import pathlib
import typing

import numpy as np
import pytest

from deeplab_tf import UserError
from deeplab_tf.config import (
    MODEL_FLAGS,
    CellBranch,
    ContextConfig,
    ConventionsConfig,
    DataConfig,
    DecoderConfig,
    EvalConfig,
    Experiment,
    ModelConfig,
    TrainConfig,
)

CONFIGS = (DataConfig, TrainConfig, EvalConfig, ModelConfig)
PARTS = (ContextConfig, DecoderConfig, ConventionsConfig, CellBranch)
REQUIRED = {CellBranch: {"op": "conv"}}
FIELDS = [
    pytest.param(config, field, id=f"{config.__name__}-{field.name}")
    for config in (*CONFIGS, *PARTS)
    for field in dataclasses.fields(config)
]


def get_error_message(config, **values):
    """Returns the one-line message of the error about invalid values."""
    with pytest.raises(UserError) as error:
        config(**REQUIRED.get(config, {}) | values)
    assert "\n" not in str(error.value)
    return str(error.value)


def item_type(field):
    """Returns the type of a field or of its items, and the kind of tuple.

    The kind is 0 for no tuple, 1 for one of any length and 2 for a pair.
    """
    hint = field.type
    if type(None) in typing.get_args(hint):
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is not tuple:
        return hint, 0
    item, *more = typing.get_args(hint)
    return item, 1 if ... in more else 2


INVALID_VALUES = {
    int: (1.5, True, "1", math.nan, math.inf, 2**32, -(2**32), 10**5000, np.array(1)),
    float: (math.nan, math.inf, -math.inf, True, "0.5", 10**400, 1e-300, 1j, [0.5]),
    bool: (0, 1, "true", math.nan, np.array([True])),
    str: (3, b"poly", True, math.nan),
}


@pytest.mark.parametrize(("config", "field"), FIELDS)
def test_fields_refuse_other_types(config, field):
    kind, count = item_type(field)
    values = INVALID_VALUES.get(kind, (3, "context", {}))
    if count:
        values = [(value,) * count for value in values]
        values += ["1,2", 5, {1, 2}, b"12", np.array(3)]
        values += [(1,), (1, 2, 3)] if count == 2 else []
    if type(None) not in typing.get_args(field.type):
        values = [*values, None]
    for value in values:
        message = get_error_message(config, **{field.name: value})
        assert message.startswith(f"{field.name} "), message
        assert " must be " in message and "; received " in message, message
        assert len(message) < 400, message


AT_LEAST_1 = "at least 1"
SIDE = "two integers, each at least 1 and at most 65536"
SCALE = "at least 0.01 and at most 16"
CHANNELS = "at least 1 and at most 65536"
FRACTION = "at least 0 and below 1"
NOT_NEGATIVE = "at least 0"
COUNTS = ("training_number_of_steps", "log_steps", "accumulate_steps")
NOT_NEGATIVES = (
    *("base_learning_rate", "end_learning_rate", "learning_power", "decay_steps"),
    *("learning_rate_decay_step", "slow_start_step", "slow_start_learning_rate"),
    *("adam_learning_rate", "weight_decay", "last_layer_gradient_multiplier"),
    *("hard_example_mining_step", "save_interval_secs", "save_interval_steps"),
    *("region_loss_weight", "teacher_weight"),
    *("focal_gamma", "eval_interval_steps", "early_stop_evals"),
)
SIDES = {
    DataConfig: ("crop_size",),
    EvalConfig: ("eval_crop_size", "window_size"),
    ContextConfig: ("image_pooling_crop_size", "image_pooling_stride"),
    CellBranch: ("rate", "grid_size"),
}
RESIZING = ("min_resize_value", "max_resize_value", "resize_factor")
# Config, field, accepted range, and values that are refused.
ROWS = [
    *((TrainConfig, name, AT_LEAST_1, (0, -1)) for name in COUNTS),
    *((TrainConfig, name, NOT_NEGATIVE, (-1, -3)) for name in NOT_NEGATIVES),
    *((TrainConfig, name, FRACTION, (-0.1, 1, 1.5)) for name in ("momentum",)),
    (TrainConfig, "quantize_delay_step", "at least -1", (-2, -100)),
    (TrainConfig, "relaxed_border", NOT_NEGATIVE, (-1, -3)),
    (
        *(TrainConfig, "teacher_scales", f"finite numbers, each {SCALE}"),
        ((0,), (1, -1), (17,)),
    ),
    (TrainConfig, "ema_decay", FRACTION, (-0.1, 1.0, 2)),
    (TrainConfig, "learning_rate_decay_factor", "above 0 and at most 1", (0, -1, 1.1)),
    (TrainConfig, "adam_epsilon", "above 0", (0, 0.0, -1e-8)),
    (TrainConfig, "top_k_percent_pixels", "above 0 and at most 1", (0.0, 20, -1)),
    (TrainConfig, "steps_per_call", "at least 0 and at most 1000000", (-1, 10**7)),
    (
        *(TrainConfig, "label_weights", "finite numbers, each at least 0"),
        ((1, -1.0), (-1,)),
    ),
    (TrainConfig, "optimizer", "momentum, nesterov, adam or adamw", ("sgd", "", 3)),
    (TrainConfig, "learning_policy", "poly or step", ("cosine",)),
    (TrainConfig, "batch_norm", "auto, train, sync or freeze", ("off",)),
    (TrainConfig, "jit", "auto, on or off", ("yes",)),
    (DataConfig, "batch_size", "at least 1 and at most 1000000", (0, -1, 10**7)),
    *((DataConfig, name, CHANNELS, (0, -1, 65537)) for name in RESIZING),
    *((DataConfig, f"{m}_scale_factor", SCALE, (0, -1, 17)) for m in ("min", "max")),
    (DataConfig, "scale_factor_step_size", "at least 0 and at most 16", (-0.1, 17)),
    (
        *(DataConfig, "mean_pixel", "finite numbers, each at least 0 and at most 255"),
        ((127.5, -1, 127.5), (256, 0, 0)),
    ),
    *(
        (DataConfig, name, "at least 0 and at most 1", (-0.1, 1.5))
        for name in (
            *("photometric_jitter", "uniform_class_crops", "copy_paste", "cutmix"),
        )
    ),
    (DataConfig, "seed", "at least 0", (-1,)),
    (
        EvalConfig,
        "eval_scales",
        f"finite numbers, each {SCALE}",
        ((0,), (1, -1), (17,)),
    ),
    (EvalConfig, "eval_batch_size", "at least 1 and at most 1000000", (0, -1)),
    (EvalConfig, "memory_limit_mb", AT_LEAST_1, (0, -5)),
    *((c, n, SIDE, ((0, 3), (3, -1), (65537, 1))) for c in SIDES for n in SIDES[c]),
    (ModelConfig, "num_classes", CHANNELS, (0, -1, 65537)),
    (ModelConfig, "channels", "at least 1 and at most 4096", (0, 4097)),
    (ModelConfig, "depth_multiplier", "above 0 and at most 16", (0.0, -0.5, 17)),
    (ModelConfig, "divisible_by", "at least 1 and at most 1024", (0, -8)),
    (ModelConfig, "logits_kernel_size", "at least 1 and at most 99", (0, 100)),
    (ModelConfig, "image_pyramid", f"finite numbers, each {SCALE}", ((0,), (1, -1))),
    (ModelConfig, "merge_method", "max or avg", ("sum",)),
    (ModelConfig, "batch_norm_momentum", FRACTION, (-0.1, 1.0)),
    (ContextConfig, "rates", f"integers, each {CHANNELS}", ((6, 0), (-6,))),
    (ContextConfig, "filters", CHANNELS, (0, -1)),
    (ContextConfig, "dropout", FRACTION, (-0.1, 1.0)),
    (ContextConfig, "projection_kernel_size", "at least 1 and at most 99", (0, 100)),
    (ContextConfig, "convolutions", "at least 0 and at most 100", (-1, 101)),
    (ConventionsConfig, "strided_convolution", "at least 1 and at most 2", (0, 3)),
    (ConventionsConfig, "batch_norm_epsilon", "above 0 and at most 1", (0.0, 1.5)),
    (
        ConventionsConfig,
        "pixel_mean",
        "finite numbers, each at least -65536.0 and at most 65536.0",
        ((-1e5,),),
    ),
    (
        ConventionsConfig,
        "pixel_deviation",
        "finite numbers, each above 0 and at most 65536",
        ((0.0,),),
    ),
    (DecoderConfig, "filters", CHANNELS, (0,)),
    (DecoderConfig, "projection_filters", CHANNELS, (-1,)),
    (DecoderConfig, "convolutions", "at least 1 and at most 100", (0, 101)),
    (DecoderConfig, "kernel_size", "at least 1 and at most 99", (0, 100)),
    (CellBranch, "op", "conv or pyramid_pooling", ("max",)),
]


@pytest.mark.parametrize(
    ("config", "name", "accepted", "value"),
    [
        pytest.param(*row[:3], value, id=f"{row[0].__name__}-{row[1]}={value}")
        for row in ROWS
        for value in row[3]
    ],
)
def test_out_of_range_error_names_the_range(config, name, accepted, value):
    message = get_error_message(config, **{name: value})
    assert message.startswith(name)
    assert message.endswith(f" must be {accepted}; received {value!r}")


def test_range_table_covers_all_numeric_fields():
    unbounded = {
        *("ignore_label", "output_stride", "multi_grid", "cascade_blocks"),
        # These have checks of their own, which name the choices.
        *("input", "kernel", "output_strides"),
    }
    rows = {(config, name) for config, name, *_ in ROWS}
    for param in FIELDS:
        config, field = param.values
        if item_type(field)[0] in (int, float) and field.name not in unbounded:
            assert (config, field.name) in rows, field.name


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (TrainConfig, {"label_weights": (0, 0.0)}, "label_weights must not all be 0"),
        (
            TrainConfig,
            {"learning_policy": "step", "learning_rate_decay_step": 0},
            "learning_rate_decay_step must be at least 1 with learning_policy=step; "
            "received 0",
        ),
        (
            DataConfig,
            {"scale_factor_step_size": 1e-9},
            "scale_factor_step_size must be 0 (continuous) or at least 0.001; "
            "received 1e-09",
        ),
        (
            DataConfig,
            {"batch_size": 1.5},
            "batch_size (--train_batch_size) must be an integer, at least 1 "
            "and at most 1000000; received 1.5",
        ),
        (
            TrainConfig,
            {"momentum": np.float32("nan")},
            "momentum must be a finite number, at least 0 and below 1; received nan",
        ),
        (
            EvalConfig,
            {"eval_scales": (1.0, math.inf)},
            "eval_scales (--inference_scales of an export) must be finite numbers, "
            "each at least 0.01 and at most 16; received (1.0, inf)",
        ),
    ],
)
def test_messages_name_field_flag_range_and_value(config, values, message):
    assert get_error_message(config, **values).startswith(message)


@pytest.mark.parametrize(
    ("config", "values", "advice"),
    [
        (DataConfig, {"crop_size": 513}, "crop_size=(513, 513)"),
        (EvalConfig, {"eval_crop_size": np.int32(65)}, "eval_crop_size=(65, 65)"),
        (EvalConfig, {"window_size": 97}, "window_size=(97, 97)"),
        (EvalConfig, {"eval_scales": 1}, "eval_scales=(1.0,)"),
        (ModelConfig, {"image_pyramid": 0.5}, "image_pyramid=(0.5,)"),
        (ContextConfig, {"rates": 6}, "rates=(6,)"),
        (ContextConfig, {"image_pooling_stride": 4}, "image_pooling_stride=(4, 4)"),
        (ModelConfig, {"context": {"rates": (6,)}}, "ContextConfig(**context)"),
        (Experiment, {"model": "xception_65"}, "ModelConfig(backbone='xception_65')"),
        (Experiment, {"data": "records"}, "DataConfig(dataset_dir='records')"),
        (Experiment, {"info": "camvid"}, "dataset_info('camvid')"),
    ],
)
def test_messages_say_what_to_write_instead(config, values, advice):
    message = get_error_message(config, **values)
    assert message.endswith(f"; use {advice}")


@pytest.mark.parametrize("value", [0, 1.5, -3, "513", "513,513", True])
def test_advice_is_always_valid(value):
    assert "; use" not in get_error_message(DataConfig, crop_size=value)


def test_numpy_values_and_paths_are_converted():
    train = TrainConfig(
        log_steps=np.int64(3),
        momentum=np.float32(0.5),
        weight_decay=0,
        recompute=np.bool_(True),
        label_weights=np.array([1, 2.5]),
        train_logdir=pathlib.Path("logs"),
    )
    experiment = Experiment(train=train, data=DataConfig(crop_size=[np.int32(65), 97]))
    assert (
        experiment.to_json()
        == dataclasses.replace(
            Experiment(data=DataConfig(crop_size=(65, 97))),
            train=TrainConfig(
                log_steps=3,
                momentum=0.5,
                weight_decay=0.0,
                recompute=True,
                label_weights=(1.0, 2.5),
                train_logdir="logs",
            ),
        ).to_json()
    )


@pytest.mark.parametrize("zero", [0, 0.0])
def test_zero_that_disables_a_feature_is_accepted(zero):
    names = [n for n in NOT_NEGATIVES if "step" not in n and n != "early_stop_evals"]
    config = TrainConfig(**dict.fromkeys([*names, "momentum", "ema_decay"], zero))
    assert config.weight_decay == config.save_interval_secs == 0


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"train": {"momentum": 1.5}}, "train: momentum must be at least 0 and below"),
        ({"data": {"seed": -1}}, "data: seed must be at least 0"),
        ({"model": {"num_classes": 0}}, "model: num_classes must be at least"),
    ],
)
def test_values_of_an_experiment_are_validated(part, reason):
    text = json.dumps({"format_version": 1, "model": {}} | part)
    with pytest.raises(UserError, match=f"^experiment.json: {reason}"):
        Experiment.from_json(text)


@pytest.mark.parametrize("flag", MODEL_FLAGS)
def test_messages_name_command_line_flags(flag):
    parts = {"": ModelConfig, "context": ContextConfig, "decoder": DecoderConfig}
    part, _, name = MODEL_FLAGS[flag].path.rpartition(".")
    named = name if name == flag else f"{name} (--{flag})"
    assert get_error_message(parts[part], **{name: object()}).startswith(
        f"{named} must be "
    )


@pytest.mark.parametrize("value", [1.5, True, math.nan, "1.5"])
def test_flags_are_never_rounded_to_integers(value):
    with pytest.raises(UserError, match=r"^num_classes cannot be"):
        ModelConfig.from_official_flags({"num_classes": value})
