"""Atrous convolutions in cascade: block4's replicas, their strides and their rates."""

import functools
import re

import keras
import numpy as np
import pytest
from golden_case import value
from shallow_network import narrow_network

from deeplab_tf import UserError
from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.models.backbones import BACKBONES
from deeplab_tf.models.cascade import Block, replicate_last_block
from deeplab_tf.models.complexity import build_uninitialized
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables

# (stride of the last unit, rate) of block1 to block7 (DeepLabv3, Fig. 3): until the
# features are coarse enough blocks end with their stride (Fig. 3a); the strides lost
# from there on double the rates of the blocks after them (Fig. 3b).
STRIDED = (2, 1)
STEPS = {
    8: [STRIDED, (1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32)],
    16: [STRIDED, STRIDED, (1, 1), (1, 2), (1, 4), (1, 8), (1, 16)],
    32: [*3 * [STRIDED], (1, 1), (1, 2), (1, 4), (1, 8)],
    64: [*4 * [STRIDED], (1, 1), (1, 2), (1, 4)],
    128: [*5 * [STRIDED], (1, 1), (1, 2)],
    256: [*6 * [STRIDED], (1, 1)],
}
UNITS = (3, 4, 6, 3, 3, 3, 3)  # of ResNet-50


@functools.cache
def build_features(backbone="resnet_v1_50_beta", **options):
    """Builds a model for 257x513 images without initialising its variables."""

    def build():
        image = keras.Input((257, 513, 3))
        return keras.Model(image, BACKBONES[backbone](image, **options))

    return build_uninitialized(build)


def unit_layers(model, name):
    """Returns the layers with a given name as `{(block, unit): layer}`."""
    layers = {}
    for layer in model.layers:
        found = re.fullmatch(rf".*\.block(\d)\.unit_(\d)\..*\.{name}", layer.name)
        if found:
            layers[int(found[1]), int(found[2])] = layer
    return layers


@pytest.mark.parametrize(
    ("output_stride", "grid"), [*((stride, (1, 2, 1)) for stride in STEPS), (16, ())]
)
def test_strides_and_rates_of_figure_3(output_stride, grid):
    model = build_features(
        output_stride=output_stride, multi_grid=grid, cascade_blocks=3
    )
    expected = {}
    for block, (units, (stride, rate)) in enumerate(
        zip(UNITS, STEPS[output_stride], strict=True), 1
    ):
        for unit in range(1, units + 1):
            unit_rate = grid[unit - 1] if grid and block >= 4 else 1
            last = stride if unit == units else 1
            expected[block, unit] = (last, last), 2 * (rate * unit_rate,)
    found = {
        unit: (layer.strides, layer.dilation_rate)
        for unit, layer in unit_layers(model, "conv2").items()
    }
    assert found == expected
    # 1x1 convolutions have neither strides nor rates, except strided shortcuts.
    for name in ("conv1", "conv3"):
        ones = unit_layers(model, name).values()
        assert {x.strides + x.dilation_rate for x in ones} == {(1, 1, 1, 1)}
    shapes = {key: x.shape[1:] for key, x in model.output.items()}
    cells = (-(-257 // output_stride), -(-513 // output_stride))
    # The decoder's inputs do not change: block1 (65 x 129 cells) to block3.
    assert shapes["high_level"] == (*cells, 2048)
    assert shapes[4] == (65, 129, 256)
    assert (shapes[8][-1], shapes[16][-1], len(shapes)) == (512, 1024, 4)


def test_multi_grid_multiplies_rates_of_cascaded_blocks():
    model = build_features(output_stride=16, multi_grid=(1, 2, 4), cascade_blocks=3)
    convolutions = unit_layers(model, "conv2")
    rates = [
        tuple(convolutions[block, unit].dilation_rate[0] for unit in (1, 2, 3))
        for block in (3, 4, 5, 6, 7)
    ]
    # 2, 4, 8 and 16 times (1, 2, 4); block3 has no grid.
    assert rates == [(1, 1, 1), (2, 4, 8), (4, 8, 16), (8, 16, 32), (16, 32, 64)]


def test_block4_replicas_are_named_block5_to_block7():
    model = build_features(output_stride=16, multi_grid=(), cascade_blocks=3)
    scopes = []
    for name in official_variables(model):
        scope = "/".join(name.split("/")[1:3])
        if scope.startswith("block") and scope not in scopes:
            scopes.append(scope)
    units = zip(range(1, 8), UNITS, strict=True)
    expected = [f"block{b}/unit_{u}" for b, n in units for u in range(1, n + 1)]
    assert scopes == expected


def test_replica_has_kernels_of_block4_without_shortcut():
    model = build_features(output_stride=16, multi_grid=(), cascade_blocks=3)

    def kernels(block):
        prefix = f"resnet_v1_50/block{block}/"
        return {
            name.removeprefix(prefix): tuple(v.shape)
            for name, v in official_variables(model).items()
            if name.startswith(prefix) and name.endswith("/weights")
        }

    first = "unit_1/bottleneck_v1/"
    block4 = kernels(4)
    # block4 widens 1024 to 2048 channels; its replicas keep 2048.
    assert block4.pop(f"{first}shortcut/weights") == (1, 1, 1024, 2048)
    assert block4.pop(f"{first}conv1/weights") == (1, 1, 1024, 512)
    for block in (5, 6, 7):
        replica = kernels(block)
        assert replica.pop(f"{first}conv1/weights") == (1, 1, 2048, 512)
        assert replica == block4


def test_strided_unit_with_multi_grid_subsamples_dense_output():
    # No backend supports strides and rates together.
    model = build_features(output_stride=64, multi_grid=(1, 2, 4), cascade_blocks=1)
    last = unit_layers(model, "conv2")[4, 3]
    assert (last.strides, last.dilation_rate) == ((1, 1), (4, 4))
    assert unit_layers(model, "conv2.subsample")[4, 3].strides == (2, 2)
    replica = unit_layers(model, "conv2")[5, 3]
    assert (replica.strides, replica.dilation_rate) == ((1, 1), (4, 4))
    assert model.output["high_level"].shape[1:] == (5, 9, 2048)


def test_only_last_cascaded_block_has_no_stride():
    blocks = (Block(64, 3, 2), Block(512, 5, 1))
    assert replicate_last_block(blocks, 0) == blocks
    assert replicate_last_block(blocks, 2) == (
        Block(64, 3, 2),
        *(Block(512, 5, 2), Block(512, 5, 2)),
        Block(512, 5, 1),
    )


def test_rates_double_along_the_cascade_of_resnet_18():
    model = build_features(
        "resnet_v1_18_beta", output_stride=16, multi_grid=(1, 2), cascade_blocks=2
    )
    for name in ("conv1", "conv2"):  # both are 3x3 and atrous
        convolutions = unit_layers(model, name)
        rates = [convolutions[b, u].dilation_rate[0] for b in (4, 5, 6) for u in (1, 2)]
        assert rates == [2, 4, 4, 8, 8, 16]
    assert model.output["high_level"].shape[1:] == (17, 33, 512)


NO_HEADS = {
    "context": ContextConfig(aspp=False),
    "decoder": DecoderConfig(output_strides=()),
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"output_stride": 64},
            "must be 4, 8, 16 or 32; received 64; 64 needs cascade_blocks=1$",
        ),
        (
            {"output_stride": 256, "cascade_blocks": 2},
            "must be 4, 8, .* 64 or 128; received 256; 256 needs cascade_blocks=3$",
        ),
        (
            {"output_stride": 512, "cascade_blocks": 3},
            "must be 4, 8, 16, 32, 64, 128 or 256; received 512$",
        ),
        ({"cascade_blocks": 4}, r"cascade_blocks must be 0, 1, 2 or 3 .*received 4"),
        ({"cascade_blocks": -1}, r"cascade_blocks must be 0, 1, 2 or 3 .*received -1"),
        (
            {"backbone": "xception_65", "cascade_blocks": 1},
            r"cascade_blocks is not supported by xception_65; leave it at 0 \(received "
            r"1\), or set backbone \(--model_variant\) to one of resnet_v1_18, "
            "resnet_v1_18_beta, resnet_v1_34, .*, resnet_v1c_101$",
        ),
        (
            {"backbone": "mobilenet_v2", "cascade_blocks": 2},
            "cascade_blocks is not supported by mobilenet_v2",
        ),
    ],
)
def test_invalid_cascade_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**{"backbone": "resnet_v1_50_beta"} | NO_HEADS | options)


def test_cascade_limits_output_stride_changes():
    config = ModelConfig("resnet_v1_18_beta", cascade_blocks=2, **NO_HEADS)
    assert config.at_output_stride(128).output_stride == 128
    with pytest.raises(UserError, match="256 needs cascade_blocks=3"):
        config.at_output_stride(256)
    # 6 * 16 / 64 = 1.5
    aspp = ModelConfig("resnet_v1_18_beta", cascade_blocks=2)
    with pytest.raises(
        UserError, match=r"\[6, 12, 18\] .* not integers at output_stride 64"
    ):
        aspp.at_output_stride(64)


def test_aspp_reads_last_copy_of_block4(monkeypatch):
    narrow = narrow_network("resnet_v1_18_beta")
    backbone = functools.partial(BACKBONES["resnet_v1_18_beta"], network=narrow)
    monkeypatch.setitem(BACKBONES, "resnet_v1_18_beta", backbone)
    config = ModelConfig(
        "resnet_v1_18_beta",
        num_classes=2,
        cascade_blocks=1,
        context=ContextConfig((1, 2), filters=8),
        decoder=DecoderConfig(output_strides=()),
    )
    model = build_model(config)
    variables = official_variables(model)
    for name, variable in variables.items():
        variable.assign(value(name, variable.shape))
    assert variables["aspp0/weights"].shape == (1, 1, 32, 8)
    scopes = [n.split("/")[1] for n in variables if n.startswith("resnet_v1_18/")]
    assert scopes[-1] == "block5"
    image = np.random.RandomState(0).uniform(0, 255, (1, 33, 49, 3)).astype("float32")
    backbone, x = model.get_layer("backbone"), model.get_layer("normalize")(image)
    before = np.array(model(image))
    assert backbone(x).shape == (1, 3, 4, 32) and before.shape == (1, 33, 49, 2)
    # Without residuals, block5 returns the output of block4.
    for name, variable in variables.items():
        residual = "block5" in name and "conv2/BatchNorm/" in name
        if residual and name.endswith(("gamma", "beta")):
            variable.assign(0 * variable)
    block4 = backbone.get_layer("resnet_v1_18.block4.unit_2.lite_bottleneck_v1.relu")
    features = keras.Model(backbone.inputs, block4.output)(x)
    assert np.std(features) > 0.1
    np.testing.assert_allclose(backbone(x), features, rtol=1e-5)
    assert np.abs(model(image) - before).max() > 0.1 * np.std(before)
