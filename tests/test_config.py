"""Configs: the papers' rates, the official flags, JSON and refusals."""

import dataclasses
import json

import pytest
from golden_case import FOLDER, GoldenCase

from deeplab_tf import UserError
from deeplab_tf.config import (
    ContextConfig,
    DataConfig,
    DecoderConfig,
    EvalConfig,
    Experiment,
    ModelConfig,
    TrainConfig,
    parse_numbers,
    parse_size,
)
from deeplab_tf.data.info import DatasetInfo

GOLDEN = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize(
    ("output_stride", "rates"), [(8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))]
)
def test_paper_rates_follow_the_output_stride(output_stride, rates):
    assert ModelConfig(output_stride=output_stride).context.rates == rates


@pytest.mark.parametrize(
    ("old", "rates", "new", "scaled"),
    [
        (16, (6, 12, 18), 8, (12, 24, 36)),
        (8, (12, 24, 36), 32, (3, 6, 9)),
        (16, (2, 4), 32, (1, 2)),
        (16, (1, 5), 16, (1, 5)),
        (32, (), 8, ()),
    ],
)
def test_rates_scale_with_the_output_stride(old, rates, new, scaled):
    config = ModelConfig(
        output_stride=old,
        num_classes=5,
        context=ContextConfig(rates, filters=64, dropout=0.0),
    )
    dense = config.at_output_stride(new)
    assert dense.context == ContextConfig(scaled, filters=64, dropout=0.0)
    assert dense == dataclasses.replace(
        config, output_stride=new, context=dense.context
    )


def test_rates_without_a_whole_counterpart_are_refused():
    config = ModelConfig(context=ContextConfig((6, 12, 15)))  # 15 * 16 / 32 = 7.5
    with pytest.raises(UserError, match=r"\[6, 12, 15\] of output_stride 16.*32"):
        config.at_output_stride(32)


def test_an_output_stride_names_the_choices():
    message = r"^output_stride must be 8, 16 or 32; received 12$"
    for make in (
        lambda: ModelConfig(output_stride=12),
        lambda: ModelConfig().at_output_stride(12),
        lambda: ModelConfig.from_official_flags({"output_stride": "12"}),
    ):
        with pytest.raises(UserError, match=message):
            make()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_flags_of_a_golden_case_are_read_as_they_stand(name):
    flags = GoldenCase.load(name).flags
    config = ModelConfig.from_official_flags(flags)
    assert config.backbone == flags["model_variant"]
    assert config.num_classes == flags["num_classes"]
    assert config.output_stride == flags["output_stride"]
    assert config.depth_multiplier == flags["depth_multiplier"]
    assert config.image_pyramid == tuple(flags["image_pyramid"] or [1.0])
    assert config.merge_method == flags["merge_method"]
    assert config.context.rates == tuple(map(int, flags["atrous_rates"] or []))
    strides = tuple(map(int, flags["decoder_output_stride"] or []))
    assert config.decoder.output_strides == strides


def test_official_defaults_have_no_rates_and_no_decoder():
    config = ModelConfig.from_official_flags({})
    assert config.context.rates == ()
    assert config.decoder.output_strides == ()
    ours = ModelConfig()
    assert ours.decoder.output_strides == (4,)
    assert config == dataclasses.replace(
        ours, context=config.context, decoder=config.decoder
    )


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("atrous_rates", ["6", "12", "18"], "context.rates", (6, 12, 18)),
        ("atrous_rates", "6,12,18", "context.rates", (6, 12, 18)),
        ("atrous_rates", ("6, 12", 18), "context.rates", (6, 12, 18)),
        ("atrous_rates", "", "context.rates", ()),
        ("decoder_output_stride", "4", "decoder.output_strides", (4,)),
        ("decoder_output_stride", 4, "decoder.output_strides", (4,)),
        ("decoder_output_stride", "", "decoder.output_strides", ()),
        (
            "image_pooling_crop_size",
            "513,769",
            "context.image_pooling_crop_size",
            (513, 769),
        ),
        ("image_pooling_stride", ["4", "5"], "context.image_pooling_stride", (4, 5)),
        ("image_pyramid", "0.5,1", "image_pyramid", (0.5, 1.0)),
        ("image_pyramid", None, "image_pyramid", (1.0,)),
        ("num_classes", "19", "num_classes", 19),
        ("depth_multiplier", "0.5", "depth_multiplier", 0.5),
        ("divisible_by", None, "divisible_by", None),
        ("divisible_by", "8", "divisible_by", 8),
        ("add_image_level_feature", "False", "context.image_level", False),
        ("add_image_level_feature", 1, "context.image_level", True),
        ("aspp_with_separable_conv", False, "context.separable", False),
    ],
)
def test_values_may_be_strings_and_lists(name, value, field, expected):
    config = ModelConfig.from_official_flags({name: value})
    for part in field.split("."):
        config = getattr(config, part)
    assert config == expected
    assert type(config) is type(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", "many"),
        ("atrous_rates", "6,x"),
        ("image_pooling_crop_size", "513"),
        ("crop_size", "513,513,3"),
        ("add_image_level_feature", "maybe"),
    ],
)
def test_a_value_that_cannot_be_read_is_named(name, value):
    with pytest.raises(UserError, match=f"^{name} cannot be '{value}'"):
        ModelConfig.from_official_flags({name: value})


def test_an_unknown_flag_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"'atrous_rate'.*atrous_rates.*output_stride"):
        ModelConfig.from_official_flags({"atrous_rate": 6})


def test_labels_of_logits_that_are_not_resized_are_refused_so_far():
    with pytest.raises(UserError, match=r"^prediction_with_upsampled"):
        ModelConfig.from_official_flags({"prediction_with_upsampled_logits": False})


def test_rates_scale_along_unless_they_are_given():
    config = ModelConfig(context=ContextConfig((6, 12, 18), dropout=0.0))
    dense = config.with_official_flags({"output_stride": "8", "num_classes": "3"})
    assert dense.context == ContextConfig((12, 24, 36), dropout=0.0)
    assert (dense.output_stride, dense.num_classes) == (8, 3)
    given = {"output_stride": 8, "atrous_rates": "6,12,18"}
    assert config.with_official_flags(given).context.rates == (6, 12, 18)
    assert config.with_official_flags({}) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(num_classes=0), "num_classes .* received 0"),
        (lambda: ModelConfig(depth_multiplier=0.0), "depth_multiplier .* 0.0"),
        (lambda: ModelConfig(image_pyramid=()), "image_pyramid"),
        (lambda: ModelConfig(image_pyramid=(1.0, -1.0)), "image_pyramid .*-1.0"),
        (lambda: ModelConfig(merge_method="sum"), "max or avg; received 'sum'"),
        (lambda: ModelConfig(batch_norm_momentum=1.0), "batch_norm_momentum .*1.0"),
        (lambda: ContextConfig(rates=(6, 0)), "atrous_rates .*0"),
        (lambda: ContextConfig(dropout=1.0), "dropout .*1.0"),
        (lambda: DecoderConfig((4, 8)), r"descending order; received \[4, 8\]"),
        (lambda: DecoderConfig((2,)), r"received \[2\]"),
        (
            lambda: ModelConfig(output_stride=8, decoder=DecoderConfig((16,))),
            r"\[16\] must not exceed output_stride 8",
        ),
        (lambda: DataConfig(crop_size=(0, 513)), "crop size"),
        (lambda: DataConfig(batch_size=0), "batch size"),
        (lambda: DataConfig(min_scale_factor=3.0), "received 3.0 and 2.0"),
        (lambda: DataConfig(scale_factor_step_size=-0.1), "scale_factor_step_size"),
        (lambda: DataConfig(max_resize_value=513), "need min_resize_value"),
        (lambda: EvalConfig(eval_scales=()), "eval_scales"),
        (lambda: EvalConfig(eval_crop_size=(513, 0)), "eval_crop_size"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_an_experiment_survives_its_json():
    info = DatasetInfo("toy", ("a", "b"), 254, split_sizes={"train": 3})
    experiment = Experiment(
        ModelConfig(
            num_classes=2,
            image_pyramid=(0.5, 1.0),
            context=ContextConfig(image_pooling_crop_size=(65, 97)),
            decoder=DecoderConfig((8, 4)),
        ),
        DataConfig(dataset_dir="records", crop_size=(65, 97), min_resize_value=60),
        TrainConfig(label_weights=(1.0, 0.5), train_logdir="logs"),
        "train_aug",
        info,
    )
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert Experiment.from_json(Experiment().to_json()) == Experiment()
    assert Experiment.from_json("{}") == Experiment()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("null", ""),
        ("3", ""),
        ("[1]", ""),
        (json.dumps({"modle": {}}), "modle"),
        (json.dumps({"model": {"num_clases": 2}}), "num_clases"),
        (json.dumps({"model": 3}), ""),
        (json.dumps({"model": {"image_pyramid": 1.0}}), ""),
        (json.dumps({"model": {"output_stride": 12}}), "must be 8, 16 or 32"),
        (json.dumps({"info": {"name": "toy", "class_names": []}}), "names no class"),
    ],
)
def test_a_text_that_is_no_experiment_is_named(text, reason):
    with pytest.raises(UserError, match=f"^logs/experiment.json .*{reason}"):
        Experiment.from_json(text, source="logs/experiment.json")


def test_the_mean_pixel_is_what_the_backbone_sees_as_nothing():
    # 127.5 * 2 / 255 - 1 = 0; the two original ResNets subtract a mean instead.
    for backbone in ("mobilenet_v2", "xception_65", "resnet_v1_101_beta"):
        assert ModelConfig(backbone=backbone).mean_pixel == (127.5, 127.5, 127.5)
    for backbone in ("resnet_v1_50", "resnet_v1_101"):
        assert ModelConfig(backbone=backbone).mean_pixel == (123.15, 115.90, 103.06)


def test_sizes_and_numbers_are_read_in_every_official_spelling():
    for spelling in ("513,769", ["513", "769"], [513, 769], "513, 769"):
        assert parse_size(spelling) == (513, 769)
    assert parse_size(None) is None
    assert parse_numbers(["0.5,1", 2], float) == (0.5, 1.0, 2.0)
