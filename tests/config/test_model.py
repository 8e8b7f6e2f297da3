"""Model configs: atrous rates, official flags, JSON and validation."""

import dataclasses
import json

import pytest
from golden_case import FOLDER, GoldenCase

from deeplab_tf import UserError
from deeplab_tf.config import (
    BACKBONES,
    MODEL_FLAGS,
    RELEASED_CELL,
    CellBranch,
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
    ("output_stride", "rates"),
    [(4, (24, 48, 72)), (8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))],
)
def test_default_rates_follow_the_output_stride(output_stride, rates):
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


def test_rates_that_scale_to_fractions_are_refused():
    config = ModelConfig(context=ContextConfig((6, 12, 15)))  # 15 * 16 / 32 = 7.5
    with pytest.raises(UserError, match=r"\[6, 12, 15\] of output_stride 16.*32"):
        config.at_output_stride(32)


def test_invalid_output_stride_error_names_the_choices():
    message = r"^output_stride must be 2, 4, 8, 16 or 32; received 12$"
    for make in (
        lambda: ModelConfig(output_stride=12),
        lambda: ModelConfig().at_output_stride(12),
        lambda: ModelConfig.from_official_flags({"output_stride": "12"}),
    ):
        with pytest.raises(UserError, match=message):
            make()


@pytest.mark.parametrize("name", GOLDEN)
def test_model_config_is_built_from_golden_flags(name):
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
    assert config.context.rates == config.atrous_rates == ()
    assert config.decoder.output_strides == config.decoder_output_strides == ()
    ours = ModelConfig()
    assert ours.decoder.output_strides == ours.decoder_output_strides == (4,)
    assert ours.context.rates == ours.atrous_rates == (6, 12, 18)
    assert config == dataclasses.replace(
        ours, context=config.context, decoder=config.decoder
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("atrous_rates", ["6", "12", "18"], (6, 12, 18)),
        ("atrous_rates", "6,12,18", (6, 12, 18)),
        ("atrous_rates", ("6, 12", 18), (6, 12, 18)),
        ("atrous_rates", "", ()),
        ("decoder_output_stride", "4", (4,)),
        ("decoder_output_stride", 4, (4,)),
        ("decoder_output_stride", "", ()),
        ("image_pooling_crop_size", "513,769", (513, 769)),
        ("image_pooling_stride", ["4", "5"], (4, 5)),
        ("image_pooling_stride", None, (1, 1)),
        ("image_pyramid", "0.5,1", (0.5, 1.0)),
        ("image_pyramid", None, (1.0,)),
        ("num_classes", "19", 19),
        ("depth_multiplier", "0.5", 0.5),
        ("divisible_by", None, None),
        ("divisible_by", "8", 8),
        ("add_image_level_feature", "False", False),
        ("add_image_level_feature", 1, True),
        ("aspp_with_separable_conv", False, False),
    ],
)
def test_flag_values_may_be_strings_or_lists(name, value, expected):
    config = ModelConfig.from_official_flags({name: value})
    found = field(config, MODEL_FLAGS[name].path)
    assert found == expected
    assert type(found) is type(expected)


XCEPTION = {"model_variant": "xception_41"}
RESNET = {"model_variant": "resnet_v1_50"}
DECODER = {"decoder_output_stride": 8}
# Each flag: the flags it needs, a value other than the default, the field's value.
FLAGS = {
    "model_variant": ({}, "xception_71", "xception_71"),
    "num_classes": ({}, "19", 19),
    "output_stride": ({}, "8", 8),
    "multi_grid": (RESNET, ["1", "2", "4"], (1, 2, 4)),
    "use_bounded_activation": (RESNET, "true", True),
    "depth_multiplier": ({}, "0.5", 0.5),
    "divisible_by": ({}, "8", 8),
    "logits_kernel_size": (
        {"aspp_with_batch_norm": False, "atrous_rates": "6,12"},
        "3",
        3,
    ),
    "image_pyramid": ({}, "0.5,1", (0.5, 1.0)),
    "merge_method": ({}, "avg", "avg"),
    "aspp_with_batch_norm": ({}, "false", False),
    "atrous_rates": ({}, "6,12,18", (6, 12, 18)),
    "aspp_convs_filters": ({}, "128", 128),
    "aspp_with_separable_conv": ({}, "0", False),
    "aspp_with_concat_projection": ({}, "0", False),
    "add_image_level_feature": ({}, "0", False),
    "image_pooling_crop_size": ({}, "769,769", (769, 769)),
    "image_pooling_stride": ({}, "4,5", (4, 5)),
    "aspp_with_squeeze_and_excitation": ({}, "1", True),
    "image_se_uses_qsigmoid": ({}, "1", True),
    "dense_prediction_cell_json": ({}, '[{"op": "conv"}]', (CellBranch("conv"),)),
    "decoder_output_stride": ({}, "8,4", (8, 4)),
    "decoder_filters": (DECODER, "128", 128),
    "decoder_use_separable_conv": (DECODER, "0", False),
    "decoder_use_sum_merge": (DECODER, "1", True),
    "decoder_output_is_logits": (DECODER | {"decoder_filters": 21}, "1", True),
    "cascade_blocks": (RESNET, "3", 3),
    "depthwise_activation": (XCEPTION, "1", True),
    "decoder_projection_filters": (DECODER, "32", 32),
    "decoder_convolutions": (DECODER, "1", 1),
    "decoder_kernel_size": (DECODER, "1", 1),
    "batch_norm_momentum": ({}, "0.9", 0.9),
}


def field(config, path):
    for part in path.split("."):
        config = getattr(config, part)
    return config


def test_model_flags_set_distinct_fields():
    assert set(FLAGS) == set(MODEL_FLAGS)
    paths = [path for path, _ in MODEL_FLAGS.values()]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", FLAGS)
def test_model_flag_changes_only_its_field(name):
    required, value, expected = FLAGS[name]
    before = ModelConfig.from_official_flags(required)
    after = ModelConfig.from_official_flags(required | {name: value})
    changed = [
        path
        for path, _ in MODEL_FLAGS.values()
        if field(before, path) != field(after, path)
    ]
    assert changed == [MODEL_FLAGS[name][0]]
    assert field(after, *changed) == expected
    assert type(field(after, *changed)) is type(expected)


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
def test_error_names_unparsable_value(name, value):
    with pytest.raises(UserError, match=f"^{name} cannot be '{value}'"):
        ModelConfig.from_official_flags({name: value})


def test_unknown_flag_error_names_the_known_flags():
    with pytest.raises(UserError, match=r"'atrous_rate'.*atrous_rates.*output_stride"):
        ModelConfig.from_official_flags({"atrous_rate": 6})


def test_upsampling_of_logits_is_not_part_of_the_model():
    name = "prediction_with_upsampled_logits"
    assert ModelConfig.from_official_flags({name: "0"}) == (
        ModelConfig.from_official_flags({})
    )
    with pytest.raises(UserError, match=f"^{name} cannot be 'maybe'"):
        ModelConfig.from_official_flags({name: "maybe"})


def test_rates_scale_unless_set_by_flag():
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
        (lambda: ModelConfig(image_pyramid=()), "image_pyramid"),
        (lambda: ModelConfig(image_pyramid=(1.0, -1.0)), "image_pyramid .*-1.0"),
        (
            lambda: ModelConfig(image_pyramid=(0.5, 0.5)),
            r"no duplicates; .*\(0.5, 0.5\)",
        ),
        (
            lambda: DecoderConfig(convolutions=3, sum_merge=True),
            r"^convolutions \(.*\) is not .* sum_merge \(.*\); .* at 2 \(received 3\)$",
        ),
        (
            lambda: DecoderConfig(projection_filters=8, sum_merge=True),
            r"^projection_filters \(.*\) is not .*sum_merge.* at 48 \(received 8\)$",
        ),
        (
            lambda: DecoderConfig(kernel_size=1, sum_merge=True, outputs_logits=True),
            r"^kernel_size \(.*\) is not .*outputs_logits.* at 3 \(received 1\)$",
        ),
        (lambda: ContextConfig(rates=(6, 0)), "atrous_rates.* each at least 1 .*0"),
        (lambda: DecoderConfig((4, 8)), r"descending order; received \[4, 8\]"),
        (lambda: DecoderConfig((2,)), r"received \[2\]"),
        (lambda: DataConfig(min_scale_factor=3.0), "received 3.0 and 2.0"),
        (lambda: DataConfig(max_resize_value=513), "need min_resize_value"),
        (
            lambda: EvalConfig(
                window_size=(9, 9), prediction_with_upsampled_logits=False
            ),
            "^window_size and memory_limit_mb need prediction_with_upsampled_logits",
        ),
        (
            lambda: EvalConfig(eval_scales=()),
            "^eval_scales must have at least one",
        ),
        (
            lambda: ContextConfig(aspp=False, dense_prediction_cell=RELEASED_CELL),
            "^a dense prediction cell replaces the ASPP",
        ),
        (
            lambda: ModelConfig(
                context=ContextConfig(
                    (6,), projection=False, squeeze_and_excitation=True
                )
            ),
            r"^squeeze_and_excitation \(.*\) needs projection \(.*\[6\]$",
        ),
        (
            lambda: ContextConfig(dense_prediction_cell=(CellBranch("conv", 0),)),
            "^branch 0 of the dense prediction cell needs an input of -1; received 0$",
        ),
        (lambda: CellBranch("max"), "^op of a cell must be .*; received 'max'$"),
        (lambda: CellBranch("conv", kernel=(3, 1)), r"^kernel of a cell .*\(3, 1\)$"),
        (lambda: DecoderConfig((4, 4)), r"descending order; received \[4, 4\]$"),
        (
            lambda: DecoderConfig((), outputs_logits=True),
            r"^outputs_logits \(.*_is_logits\) needs output_strides \(--decoder_.*\)$",
        ),
        (
            lambda: ModelConfig(logits_kernel_size=3),
            r"^logits_kernel_size must be 1 unless aspp \(.*\) is False .* 3$",
        ),
        (
            lambda: ModelConfig(
                logits_kernel_size=3, context=ContextConfig((), aspp=False)
            ),
            r"^logits_kernel_size must be 1 .* rates \(--atrous_rates\) are .* 3$",
        ),
        (
            lambda: ModelConfig(
                output_stride=32,
                context=ContextConfig(dense_prediction_cell=RELEASED_CELL),
            ),
            "^a dense prediction cell needs an output_stride of at most 16; .* 32$",
        ),
    ],
)
def test_invalid_values_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


SUPPORTED = ", ".join(
    [
        *("resnet_v1_18", "resnet_v1_18_beta", "resnet_v1_34", "resnet_v1_50"),
        *("resnet_v1_50_beta", "resnet_v1_101", "resnet_v1_101_beta"),
        *("resnet_v1_152", "resnet_v1c_50", "resnet_v1c_101"),
        *("xception_41", "xception_65", "xception_71"),
    ]
)
NO_DECODER = DecoderConfig(output_strides=())


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        (
            "resnet_v1_200",
            {},
            r"^there is no backbone \(--model_variant\) 'resnet_v1_200'; similar: "
            "resnet_v1_50, .*; it must be one of mobilenet_v2, .*, xception_71$",
        ),
        (
            "resnet50",
            {},
            r"^there is no backbone \(.*\) 'resnet50'; similar: resnet_v1_50, ",
        ),
        (
            "nas_hnasnet",
            {},
            r"^backbone \(.*\) 'nas_hnasnet' is not supported because it has no ",
        ),
        (
            "mobilenet_v2",
            {"multi_grid": (1, 2, 4)},
            r"^multi_grid is not supported by mobilenet_v2; leave it at \(\) "
            r"\(received \(1, 2, 4\)\), or set backbone \(--model_variant\) to one of "
            f"{SUPPORTED}$",
        ),
        (
            "xception_65",
            {"depth_multiplier": 0.5},
            r"^depth_multiplier is not supported by xception_65; leave it at 1.0 "
            r"\(received 0.5\), or set backbone \(.*\) to one of mobilenet_v2, "
            "mobilenet_v2_classifier, mobilenet_v3_large_seg, "
            "mobilenet_v3_large_classifier, mobilenet_v3_small_seg, mobilenet_edgetpu$",
        ),
        (
            "mobilenet_v3_large_seg",
            {"divisible_by": 8},
            "^divisible_by is not supported by mobilenet_v3_large_seg; leave it at "
            r"None .*, or set backbone \(.*\) to one of mobilenet_v2, "
            "mobilenet_v2_classifier$",
        ),
        (
            "resnet_v1_50",
            {"depthwise_activation": True},
            "^depthwise_activation is not supported by resnet_v1_50; .* xception_41, ",
        ),
        # Pooling already has stride 4; a fused block of EdgeTPU keeps its stride.
        (
            "resnet_v1_50",
            {"output_stride": 2},
            "^output_stride must be 4, 8, 16 or 32; received 2$",
        ),
        (
            "mobilenet_edgetpu",
            {"output_stride": 4},
            "^output_stride must be 8, 16 or 32; received 4$",
        ),
        # The last block of ResNet-18 has two units; all others have three.
        (
            "resnet_v1_18",
            {"multi_grid": (1, 2, 4)},
            r"^multi_grid of resnet_v1_18 needs 2 positive rates.*\[1, 2, 4\]$",
        ),
        (
            "resnet_v1_50_beta",
            {"multi_grid": (1, 2)},
            r"^multi_grid of resnet_v1_50_beta needs 3 positive rates.*\[1, 2\]$",
        ),
        (
            "xception_71",
            {"multi_grid": (1, 2, 4, 8)},
            r"^multi_grid of xception_71 needs 3 positive rates.*\[1, 2, 4, 8\]$",
        ),
        (
            "resnet_v1_101",
            {"multi_grid": (1, 0, 1)},
            r"^multi_grid of resnet_v1_101 needs 3 positive rates.*\[1, 0, 1\]$",
        ),
        (
            "mobilenet_edgetpu",
            {"decoder": DecoderConfig((4,))},
            r"^mobilenet_edgetpu has low-level features at the strides \[\]; "
            r"received output_strides \(.*\) \[4\]$",
        ),
        (
            "resnet_v1_50",
            {"output_stride": 12},
            "^output_stride must be 4, 8, 16 or 32; received 12$",
        ),
        (
            "resnet_v1_50",
            {"output_stride": 64},
            "^output_stride must be 4, .*; received 64; 64 needs cascade_blocks=1$",
        ),
    ],
)
def test_backbone_refuses_unsupported_options(backbone, options, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(backbone, **options)


def test_backbones_accept_supported_options():
    for backbone, traits in BACKBONES.items():
        decoder = DecoderConfig(traits.decoder_strides[::-1])  # 16, 8, 4
        grid = tuple(range(1, traits.multi_grid + 1))
        given = {"depth_multiplier": 0.5, "divisible_by": 4, "cascade_blocks": 3}
        given |= {"depthwise_activation": True, "bounded_activation": True}
        options = {k: v for k, v in given.items() if k in traits.options}
        config = ModelConfig(backbone, multi_grid=grid, decoder=decoder, **options)
        assert config.traits is traits
        # Any backbone supports bounded heads.
        bounded = dataclasses.replace(config, bounded_activation=True)
        assert bounded.bounded_activation


def test_prediction_cell_needs_output_stride_8_or_16():
    context = ContextConfig(dense_prediction_cell=RELEASED_CELL)
    config = ModelConfig("xception_71", context=context)
    assert config.context.rates == ()  # the cell replaces the ASPP
    assert config.at_output_stride(8).context == config.context
    with pytest.raises(
        UserError, match="needs an output_stride of at most 16; received 32"
    ):
        config.at_output_stride(32)


def test_default_rates_are_empty_without_an_aspp():
    assert ModelConfig(context=ContextConfig(aspp=False)).context.rates == ()
    given = ModelConfig(
        context=ContextConfig((6, 12), aspp=False), logits_kernel_size=3
    )
    assert given.at_output_stride(8).context.rates == (12, 24)


@pytest.mark.parametrize("rates", [(), (6,), (6, 12), (6, 12, 18, 24), (12, 6, 6)])
def test_any_number_of_rates_is_accepted(rates):
    assert ModelConfig(context=ContextConfig(rates)).context.rates == rates


def test_lists_become_tuples():
    given = ModelConfig(
        "resnet_v1_50",
        multi_grid=[1, 2, 4],
        image_pyramid=[0.5, 1.0],
        context=ContextConfig([6, 12], image_pooling_crop_size=[65, 97]),
        decoder=DecoderConfig([8, 4]),
    )
    assert given == ModelConfig(
        "resnet_v1_50",
        multi_grid=(1, 2, 4),
        image_pyramid=(0.5, 1.0),
        context=ContextConfig((6, 12), image_pooling_crop_size=(65, 97)),
        decoder=DecoderConfig((8, 4)),
    )
    hash(given)  # counting multiply-adds needs a hash


def test_logits_decoder_has_one_filter_per_class():
    flags = {"decoder_output_stride": 8, "decoder_output_is_logits": True}
    flags["num_classes"] = 19
    message = r"^with outputs_logits .* filters \(.*\) must be .* 19; received 256$"
    with pytest.raises(UserError, match=message):
        ModelConfig.from_official_flags(flags | {"decoder_filters": "256"})
    given = ModelConfig.from_official_flags(flags | {"decoder_filters": "19"})
    assert given == ModelConfig.from_official_flags(flags)
    assert given.decoder.filters == 19
    # The default is the number of classes, and follows it.
    decoder = DecoderConfig((8,), outputs_logits=True)
    config = ModelConfig(num_classes=5, decoder=decoder)
    assert config.decoder.filters == 5
    assert config.with_official_flags({"num_classes": 7}).decoder.filters == 7


def test_experiment_with_a_cell_round_trips_through_json():
    pooling = CellBranch("pyramid_pooling", 2, grid_size=(4, 8))
    experiment = Experiment(
        ModelConfig(
            "xception_71",
            num_classes=19,
            channels=4,
            multi_grid=(1, 2, 1),
            depthwise_activation=True,
            context=ContextConfig(dense_prediction_cell=(*RELEASED_CELL, pooling)),
            decoder=DecoderConfig((8, 4), projection_filters=32, convolutions=1),
        ),
        DataConfig(mean_pixel=4 * (127.5,)),
    )
    read = Experiment.from_json(experiment.to_json())
    assert read == experiment
    assert isinstance(read.model.context.dense_prediction_cell[0], CellBranch)
    assert read.model.context.dense_prediction_cell[-1].grid_size == (4, 8)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([{"op": "pool"}], r"dense_prediction_cell\[0\]: op of a cell must be"),
        ([{"op": "conv", "size": 3}], r'cell\[0\]: unknown key "size"'),
        ([{"op": "conv", "input": 1}], "branch 0 .* received 1"),
    ],
)
def test_invalid_cell_in_experiment_json_is_refused(cell, reason):
    text = json.dumps({"model": {"context": {"dense_prediction_cell": cell}}})
    with pytest.raises(UserError, match=f"^experiment.json: model.context.*{reason}"):
        Experiment.from_json(text)


def test_experiment_round_trips_through_json():
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
    assert Experiment.from_json('{"format_version": 1, "model": {}}') == Experiment()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", " is empty"),
        ("{", ": line 1, column 2: Expecting property name"),
        ("null", " must be a JSON object; received null"),
        ("3", " must be a JSON object; received 3"),
        ("[1]", " must be a JSON object; received a list"),
        ("{}", ': the key "format_version" is missing'),
        (json.dumps({"modle": {}}), ': unknown key "modle"; did you mean "model"'),
        (json.dumps({"model": {"num_clases": 2}}), ': model: unknown key "num_clases"'),
        (json.dumps({"model": 3}), ": model must be an object; received 3"),
        (
            json.dumps({"model": {"image_pyramid": 1.0}}),
            ": model.image_pyramid must be a list; received 1.0",
        ),
        (
            json.dumps({"model": {"output_stride": 12}}),
            ": model: output_stride must be 2, 4, 8, 16 or 32",
        ),
        (
            json.dumps({"info": {"name": "toy", "class_names": []}}),
            ": info: dataset 'toy' has no classes; class_names must have",
        ),
    ],
)
def test_error_names_invalid_experiment_file(text, reason):
    with pytest.raises(UserError, match=f"^logs/experiment.json{reason}"):
        Experiment.from_json(text, source="logs/experiment.json")


MEAN = (123.15, 115.90, 103.06)


@pytest.mark.parametrize(
    ("channels", "scaled", "subtracted"),
    [
        # (123.15 + 115.90 + 103.06) / 3 = 342.11 / 3
        (1, (127.5,), (342.11 / 3,)),
        (2, 2 * (127.5,), 2 * (342.11 / 3,)),
        (3, 3 * (127.5,), MEAN),
        (5, 5 * (127.5,), (*MEAN, 0.0, 0.0)),
    ],
)
def test_mean_pixel_is_zero_after_preprocessing(channels, scaled, subtracted):
    # 127.5 * 2 / 255 - 1 = 0; ResNets with the original root subtract a mean instead.
    for backbone in BACKBONES:
        original = backbone in {f"resnet_v1_{n}" for n in (18, 34, 50, 101, 152)}
        config = ModelConfig(backbone, channels=channels, decoder=NO_DECODER)
        expected = subtracted if original else scaled
        assert config.mean_pixel == pytest.approx(expected, abs=1e-9), backbone


def test_official_spellings_of_sizes_and_numbers_are_parsed():
    for spelling in ("513,769", ["513", "769"], [513, 769], "513, 769"):
        assert parse_size(spelling) == (513, 769)
    assert parse_size(None) is None
    assert parse_numbers(["0.5,1", 2], float) == (0.5, 1.0, 2.0)


def test_decoder_depth_is_restored_without_logits_output():
    decoder = DecoderConfig((8,), sum_merge=True, outputs_logits=True)
    config = ModelConfig(num_classes=5, decoder=decoder)
    assert config.decoder.filters == 5
    changed = config.with_official_flags({"decoder_output_is_logits": "false"})
    assert changed.decoder == DecoderConfig((8,), filters=256, sum_merge=True)


def test_default_decoder_needs_low_level_features():
    for backbone, traits in BACKBONES.items():
        strides = ModelConfig(backbone).decoder.output_strides
        assert strides == ((4,) if traits.decoder_strides else ())
