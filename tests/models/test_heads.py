"""The heads: ASPP and its relatives, decoders, dense prediction cell, pooling windows.

What a model computes is compared with its branches written out one by one, in plain
TensorFlow, from the official description of the graph.
"""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import FOLDER, value

from deeplab_tf import UserError
from deeplab_tf.config import (
    RELEASED_CELL,
    CellBranch,
    ContextConfig,
    DecoderConfig,
    ModelConfig,
)
from deeplab_tf.models.backbones import BACKBONES, xception
from deeplab_tf.models.deeplab import at_image_scale, build_model
from deeplab_tf.models.dense_prediction_cell import dense_prediction_cell
from deeplab_tf.models.layers import head_style
from deeplab_tf.models.resampling import WindowMean
from deeplab_tf.models.variables import (
    dropout_seeds,
    leaf_layers,
    official_variables,
)

NARROW = {
    "num_classes": 3,
    "atrous_rates": [2, 3],
    "aspp_convs_filters": 8,
    "decoder_filters": 6,
}
# 5 x 7 cells at output stride 16, 17 x 25 at the decoder's stride 4.
BLOCKS_OF_8 = np.random.RandomState(0).uniform(60, 255, (1, 9, 13, 3))
IMAGE = BLOCKS_OF_8.repeat(8, 1).repeat(8, 2)[:, :65, :97].astype("float32")
DEPTHS = {"high_level": 32, 4: 16, 8: 24, 16: 28}


def strided_backbone(image, output_stride, **_):
    """Returns features as a backbone would, each by one convolution."""
    strides = {"high_level": output_stride, 4: 4, 8: 8, 16: 16}
    return {
        key: keras.layers.Conv2D(
            DEPTHS[key],
            3,
            strides=stride,
            padding="same",
            use_bias=False,
            name=f"backbone.{key}",
        )(image)
        for key, stride in strides.items()
    }


@pytest.fixture(autouse=True, scope="module")
def quick_backbone():
    """Puts one layer in the place of fifty: the heads are tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "mobilenet_v2", strided_backbone)
        yield


def build(scale_of=lambda name: 1.0, **flags):
    """Returns a narrow model, and the values of its variables by official name."""
    config = ModelConfig.from_official_flags(NARROW | flags)
    return filled(build_model(config), scale_of)


def filled(model, scale_of=lambda name: 1.0):
    variables = official_variables(model)
    w = {n: np.float32(scale_of(n)) * value(n, v.shape) for n, v in variables.items()}
    for name, variable in variables.items():
        variable.assign(w[name])
    return model, w


def features(model):
    """Returns high-level, then low-level features of the image."""
    found = model.get_layer("backbone")(model.get_layer("normalize")(IMAGE))
    return found if isinstance(found, list) else [found]  # Keras unpacks a single one


def logits(model, image=IMAGE):
    return keras.Model(model.input, model.get_layer("logits").output)(image)


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.std(expected))


def linear(x):
    return x


def norm(x, w, scope, epsilon):
    gamma, beta, mean, variance = (
        w[f"{scope}/BatchNorm/{leaf}"]
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return (x - mean) * gamma / np.sqrt(variance + epsilon) + beta


def conv(x, w, scope, rate=1, act=tf.nn.relu, *, strides=1, epsilon=1.001e-5):
    """Returns a convolution and what follows it: a bias, or batch normalisation."""
    kernel = w[f"{scope}/weights"]
    x = tf.nn.conv2d(x, kernel, strides, "SAME", dilations=rate)
    if f"{scope}/biases" in w:
        return act(x + w[f"{scope}/biases"])
    return act(norm(x, w, scope, epsilon))


def separable(x, w, scope, rate=1, act=tf.nn.relu):
    """Returns the two halves of a head's convolution, the activation after both."""
    kernel, rates = w[f"{scope}_depthwise/depthwise_weights"], np.broadcast_to(rate, 2)
    x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME", dilations=rates)
    x = act(norm(x, w, f"{scope}_depthwise", 1.001e-5))
    return conv(x, w, f"{scope}_pointwise", act=act)


def image_level_of_windows(x, w):
    # ceil(33 / 16) = 3 and ceil(49 / 16) = 4 cells at a time: 3 x 2 means.
    pooled = means(x.numpy(), (3, 4), (1, 2))
    return resized(conv(pooled, w, "image_pooling"), x)


def image_level(x, w, act=tf.nn.relu):
    mean = tf.reduce_mean(x, axis=(1, 2), keepdims=True)
    return conv(mean, w, "image_pooling", act=act) * tf.ones_like(x[..., :1])


def branches(x, w, atrous=separable, act=tf.nn.relu):
    """Returns the branches beside the image-level one; their rates are 2 and 3."""
    return [conv(x, w, "aspp0", act=act)] + [
        atrous(x, w, f"aspp{i}", rate, act) for i, rate in ((1, 2), (2, 3))
    ]


def projected(parts, w, act=tf.nn.relu):
    return conv(tf.concat(parts, -1), w, "concat_projection", act=act)


def hard_sigmoid(x):
    return tf.nn.relu6(x + 3.0) * 0.16667


SQUEEZE = {"aspp_with_squeeze_and_excitation": True}
LITE = SQUEEZE | {"aspp_with_concat_projection": False, "atrous_rates": []}
CONTEXTS = {
    "complete": ({}, lambda x, w: projected([image_level(x, w), *branches(x, w)], w)),
    "windows": (
        {"image_pooling_crop_size": "33,49", "image_pooling_stride": "1,2"},
        lambda x, w: projected([image_level_of_windows(x, w), *branches(x, w)], w),
    ),
    "no_image_level": (
        {"add_image_level_feature": False},
        lambda x, w: projected(branches(x, w), w),
    ),
    "no_image_level_dense": (
        {"add_image_level_feature": False, "aspp_with_separable_conv": False},
        lambda x, w: projected(branches(x, w, conv), w),
    ),
    "no_projection": (
        {"aspp_with_concat_projection": False},
        lambda x, w: tf.concat([image_level(x, w), *branches(x, w)], -1),
    ),
    "one_branch": (
        LITE | {"aspp_with_squeeze_and_excitation": 0, "add_image_level_feature": 0},
        lambda x, w: conv(x, w, "aspp0"),
    ),
    "gate": (
        SQUEEZE,
        lambda x, w: projected(branches(x, w), w) * image_level(x, w, tf.sigmoid),
    ),
    "hard_gate": (
        SQUEEZE | {"image_se_uses_qsigmoid": True},
        lambda x, w: projected(branches(x, w), w) * image_level(x, w, hard_sigmoid),
    ),
    "lite": (LITE, lambda x, w: conv(x, w, "aspp0") * image_level(x, w, tf.sigmoid)),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_context_is_its_branches_one_by_one(name):
    flags, expected = CONTEXTS[name]
    model, w = build(**flags)
    (x,) = features(model)
    context = model.get_layer("context")(x)
    assert np.std(context) > 0.05
    assert_same(context, expected(x, w))


@pytest.mark.parametrize(
    ("flags", "depths"),
    [
        # 4 branches of 8 with the image level, else 3; logits see 8, or all of them.
        ({}, {"image_pooling": 32, "concat_projection": 32, "logits/semantic": 8}),
        (
            {"add_image_level_feature": False},
            {"concat_projection": 24, "logits/semantic": 8},
        ),
        (
            {"aspp_with_concat_projection": False},
            {"image_pooling": 32, "logits/semantic": 32},
        ),
        # The gate joins no branch: 24, not 32.
        (SQUEEZE, {"image_pooling": 32, "concat_projection": 24, "logits/semantic": 8}),
        (LITE, {"image_pooling": 32, "logits/semantic": 8}),
    ],
)
def test_the_depths_of_the_context_tell_who_joined(flags, depths):
    model, w = build(**flags)
    others = ("backbone/", "aspp")
    found = {
        name.removesuffix("/weights"): array.shape[2]
        for name, array in w.items()
        if name.endswith("/weights") and not name.startswith(others)
    }
    assert found == depths  # 32 channels come in
    # The dropout goes with the projection.
    assert bool(dropout_seeds(model)) == ("concat_projection" in depths)


def test_the_gate_has_a_bias_and_the_image_level_branch_a_normalisation():
    def image_pooling(**flags):
        return {n.split("/", 1)[1] for n in build(**flags)[1] if "image_pool" in n}

    assert image_pooling(**SQUEEZE) == {"weights", "biases"}
    leaves = ("gamma", "beta", "moving_mean", "moving_variance")
    assert image_pooling() == {"weights"} | {f"BatchNorm/{leaf}" for leaf in leaves}


def summed_logits(x, w, rates):
    return sum(
        conv(x, w, "logits/semantic" + (f"_{i}" if i else ""), rate, linear)
        for i, rate in enumerate(rates)
    )


@pytest.mark.parametrize(
    ("rates", "kernel_size", "count"), [([2, 3], 3, 2), ([1, 2, 4], 1, 3), ([], 1, 1)]
)
def test_without_an_aspp_the_logits_are_the_sum_of_one_convolution_per_rate(
    rates, kernel_size, count
):
    model, w = build(
        aspp_with_batch_norm=False, atrous_rates=rates, logits_kernel_size=kernel_size
    )
    shapes = {n: a.shape for n, a in w.items() if not n.startswith("backbone/")}
    scopes = ["logits/semantic", *(f"logits/semantic_{i}" for i in range(1, count))]
    assert shapes == {
        f"{s}/weights": (kernel_size, kernel_size, 32, 3) for s in scopes
    } | {f"{s}/biases": (3,) for s in scopes}
    (x,) = features(model)
    assert_same(logits(model), summed_logits(x, w, rates or [1]))


def test_without_an_aspp_the_decoder_takes_the_backbone():
    model, w = build(
        aspp_with_batch_norm=False, logits_kernel_size=3, decoder_output_stride=4
    )
    x, low = features(model)
    assert w["decoder/decoder_conv0_depthwise/depthwise_weights"].shape[2] == 32 + 48
    x = decoded(x, [low], w, [LEVEL])
    assert_same(logits(model), summed_logits(x, w, (2, 3)))


def resized(x, like):
    """Returns `x` at the size of another tensor by TensorFlow's own op."""
    return tf.raw_ops.ResizeBilinear(images=x, size=like.shape[1:3], align_corners=True)


def decoded(x, low_level, w, levels, add=False, act=tf.nn.relu):
    """Returns the decoder's output, level by level.

    Args:
        levels: Scopes of each level: the projection's, then the convolutions'.
        add: Whether the low-level features are added, behind the convolution.
        act: The activation.
    """
    for low, (projection, *scopes) in zip(low_level, levels, strict=True):
        reduced = conv(low, w, f"decoder/{projection}", act=act)
        x = resized(x, reduced)
        if not add:
            x = tf.concat([x, reduced], -1)
        for scope in scopes:
            one = conv if f"decoder/{scope}/weights" in w else separable
            x = one(x, w, f"decoder/{scope}", act=act)
        if add:
            x = x + reduced
    return x


DENSE = {"decoder_use_separable_conv": False}
SUM = {"decoder_use_sum_merge": True}
SCORES = {"decoder_output_is_logits": True, "decoder_filters": 3}
LEVEL = ("feature_projection0", "decoder_conv0", "decoder_conv1")
DENSE_LEVEL = (LEVEL[0], *(f"decoder_conv0/decoder_conv0_{i}" for i in (1, 2)))
DECODERS = {
    "one": ({"decoder_convolutions": 1}, [LEVEL[:2]]),
    "three": ({"decoder_convolutions": 3}, [(*LEVEL, "decoder_conv2")]),
    "dense": (DENSE, [DENSE_LEVEL]),
    "dense_three": (
        DENSE | {"decoder_convolutions": 3},
        [(*DENSE_LEVEL, "decoder_conv0/decoder_conv0_3")],
    ),
    # A 1x1 convolution has no depthwise half.
    "pointwise": (
        {"decoder_kernel_size": 1, "decoder_convolutions": 1},
        [DENSE_LEVEL[:2]],
    ),
    "dense_two_levels": (
        DENSE | {"decoder_output_stride": [8, 4]},
        [
            DENSE_LEVEL,
            (
                "feature_projection0_1",
                *(f"decoder_conv0_1/decoder_conv0_1_{i}" for i in (1, 2)),
            ),
        ],
    ),
    "sum": (SUM, [(LEVEL[0], "decoder_split_sep_conv0")]),
    "sum_dense": (SUM | DENSE, [LEVEL[:2]]),
    "sum_two_levels": (
        SUM | {"decoder_output_stride": [16, 4]},
        [
            (LEVEL[0], "decoder_split_sep_conv0"),
            ("feature_projection0_1", "decoder_split_sep_conv0_1"),
        ],
    ),
    "sum_logits": (SUM | SCORES, [LEVEL[:2]]),
    "logits": (SCORES, [DENSE_LEVEL]),
}


@pytest.mark.parametrize("name", DECODERS)
def test_the_decoder_is_its_levels_one_by_one(name):
    flags, levels = DECODERS[name]
    model, w = build(**{"decoder_output_stride": 4} | flags)
    scopes = {
        n.split("/BatchNorm")[0].rsplit("/", 1)[0] for n in w if "BatchN" not in n
    }
    halves = ("_depthwise", "_pointwise")
    found = {functools.reduce(str.removesuffix, halves, scope) for scope in scopes}
    expected = {f"decoder/{scope}" for level in levels for scope in level}
    assert {scope for scope in found if scope.startswith("decoder/")} == expected
    x, *low_level = features(model)
    context = model.get_layer("context")(x)
    act = linear if "logits" in name else tf.nn.relu
    output = decoded(context, low_level, w, levels, "sum" in name, act)
    assert np.std(output) > 0.1
    assert_same(model.get_layer("decoder")([context, *low_level]), output)
    if "logits" in name:
        assert not any(n.startswith("logits/") for n in w)
        assert_same(logits(model), output)


def kernels_of(flags):
    """Returns the shapes of the dense decoder's kernels, in order."""
    _, w = build(**{"decoder_output_stride": 4, "decoder_filters": 256} | DENSE | flags)
    return [a.shape for n, a in w.items() if "decoder/" in n and n.endswith("/weights")]


@pytest.mark.parametrize("depth", [8, 16, 32, 48, 64])
def test_table_1_of_deeplabv3plus_reduces_the_low_level_features(depth):
    # The low-level features of stride 4 have 16 channels, the context 8.
    one = {"decoder_convolutions": 1, "decoder_projection_filters": depth}
    assert kernels_of(one) == [(1, 1, 16, depth), (3, 3, 8 + depth, 256)]


@pytest.mark.parametrize(
    ("flags", "kernels"),
    [
        ({"decoder_convolutions": 1}, [(3, 3, 56, 256)]),
        ({"decoder_convolutions": 2}, [(3, 3, 56, 256), (3, 3, 256, 256)]),
        ({"decoder_convolutions": 3}, [(3, 3, 56, 256), *2 * [(3, 3, 256, 256)]]),
        ({"decoder_convolutions": 1, "decoder_filters": 128}, [(3, 3, 56, 128)]),
        ({"decoder_convolutions": 1, "decoder_kernel_size": 1}, [(1, 1, 56, 256)]),
    ],
)
def test_table_2_of_deeplabv3plus_varies_the_convolutions(flags, kernels):
    assert kernels_of(flags) == [(1, 1, 16, 48), *kernels]  # 8 + 48 = 56


def test_table_2_of_deeplabv3plus_takes_two_levels():
    both = {"decoder_convolutions": 1, "decoder_output_stride": [8, 4]}
    # Stride 8 comes first, with 24 channels.
    assert kernels_of(both) == [
        *((1, 1, 24, 48), (3, 3, 8 + 48, 256)),
        *((1, 1, 16, 48), (3, 3, 256 + 48, 256)),
    ]


def test_the_kernels_of_a_decoder_of_logits_follow_its_merge():
    flags = {"decoder_filters": 3, "decoder_output_is_logits": True}
    # Added: one 1x1 convolution of each, as deep as there are classes.
    assert kernels_of(flags | SUM) == [(1, 1, 16, 3), (1, 1, 8, 3)]
    # Joined: the usual two 3x3 convolutions, though without activation.
    assert kernels_of(flags) == [(1, 1, 16, 48), (3, 3, 56, 3), (3, 3, 3, 3)]


def test_bounded_activations_stop_heads_at_6_but_not_the_image_level_branch():
    def loud(name):
        """Returns a factor that makes the normalised features of heads large."""
        head = not name.startswith(("backbone", "logits"))
        return 30.0 if head and name.endswith("gamma") else 1.0

    model, w = build(loud, use_bounded_activation=True, decoder_output_stride=4)
    x, low = features(model)
    relu6 = tf.nn.relu6
    image, parts = image_level(x, w), branches(x, w, act=relu6)
    assert np.max(image) > 7.0 and all(np.max(part) == 6.0 for part in parts)
    context = projected([image, *parts], w, relu6)
    assert_same(model.get_layer("context")(x), context)
    output = decoded(context, [low], w, [LEVEL], act=relu6)
    assert np.max(output) == 6.0
    assert_same(model.get_layer("decoder")([context, low]), output)
    unbounded, _ = build(loud, decoder_output_stride=4)
    assert np.max(unbounded.get_layer("context")(x)) > 6.0


# An Xception in small: one block of each kind.
BLOCKS = (
    xception.Block("entry_flow.block1", (4, 4, 6), "conv", 2),
    xception.Block("entry_flow.block2", (6, 6, 8), "conv", 2),
    xception.Block("middle_flow.block1", (8, 8, 8), "sum", 1),
    xception.Block("exit_flow.block2", (8, 10, 12), "none", 1),
)


@pytest.fixture
def tiny_xception(monkeypatch):
    """Returns a function that builds one, loud enough to be clipped."""
    monkeypatch.setitem(xception._NETWORKS, "tiny", BLOCKS)
    tiny = functools.partial(xception.xception, name="tiny")
    monkeypatch.setitem(BACKBONES, "xception_41", tiny)

    def build(**options):
        context, decoder = ContextConfig(aspp=False), DecoderConfig(output_strides=())
        heads = {"context": context, "decoder": decoder}
        config = ModelConfig("xception_41", 3, output_stride=8, **heads, **options)
        return filled(build_model(config), lambda n: 1.0 + 4.0 * n.endswith("gamma"))

    return build


def with_border(x):
    """Returns `x` within a pixel of zeros: the fixed padding of a 3x3 kernel."""
    return tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])


def xception_module(x, w, scope, block, bounded, depthwise_activation):
    """Returns a module written out (reference, section 1.1)."""
    relu, last = tf.nn.relu6 if bounded else tf.nn.relu, block.shortcut == "none"
    nothing = functools.partial(tf.clip_by_value, clip_value_min=-6, clip_value_max=6)
    nothing = nothing if bounded else linear
    y = x
    for i in (1, 2, 3):
        y = y if last else relu(y)
        stride = block.stride if i == 3 else 1
        fixed = stride > 1 and not bounded
        y = tf.nn.depthwise_conv2d(
            with_border(y) if fixed else y,
            w[f"{scope}/separable_conv{i}_depthwise/depthwise_weights"],
            [1, stride, stride, 1],
            "VALID" if fixed else "SAME",
        )
        y = norm(y, w, f"{scope}/separable_conv{i}_depthwise", 1e-3)
        y = relu(y) if last or depthwise_activation else nothing(y)
        act = relu if last else nothing
        y = conv(y, w, f"{scope}/separable_conv{i}_pointwise", act=act, epsilon=1e-3)
    if last:
        return y
    if block.shortcut == "conv":
        options = {"strides": block.stride, "epsilon": 1e-3}
        x = conv(x, w, f"{scope}/shortcut", act=linear, **options)
    y = y + nothing(x)
    return relu(y) if bounded else y


def xception_features(image, w, bounded=False, depthwise_activation=False):
    relu = tf.nn.relu6 if bounded else tf.nn.relu
    # The first convolution is padded by one all around, whatever its activation.
    kernel = w["tiny/entry_flow/conv1_1/weights"]
    x = tf.nn.conv2d(with_border(image), kernel, 2, "VALID")
    x = relu(norm(x, w, "tiny/entry_flow/conv1_1", 1e-3))
    x = conv(x, w, "tiny/entry_flow/conv1_2", act=relu, epsilon=1e-3)
    for block in BLOCKS:
        scope = f"tiny/{block.scope.replace('.', '/')}/unit_1/xception_module"
        x = xception_module(x, w, scope, block, bounded, depthwise_activation)
    return x


# Even sizes, where fixed padding and TensorFlow's differ.
EVEN = np.random.RandomState(1).uniform(-1, 1, (1, 48, 34, 3)).astype("float32")


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("depthwise_activation", [False, True])
def test_xception_has_its_activations_where_they_belong(
    tiny_xception, bounded, depthwise_activation
):
    options = (bounded, depthwise_activation)
    model, w = tiny_xception(
        bounded_activation=bounded, depthwise_activation=depthwise_activation
    )
    found = model.get_layer("backbone")(EVEN)
    assert found.shape == (1, 6, 5, 12)
    assert_same(found, xception_features(EVEN, w, *options))
    # The other three networks of the same weights give something else.
    for other in {(a, b) for a in (False, True) for b in (False, True)} - {options}:
        difference = found - xception_features(EVEN, w, *other)
        assert np.abs(difference).max() > 0.1 * np.std(found)


def test_the_activations_of_xception_have_no_variables(tiny_xception):
    names = [
        list(tiny_xception(**options)[1])
        for options in (
            {},
            {"depthwise_activation": True},
            {"bounded_activation": True},
        )
    ]
    assert names[0] == names[1] == names[2]


def cell_model(branches, output_stride=16, window=None):
    x = keras.Input((None, None, 4))
    y = dense_prediction_cell(x, branches, output_stride, window, **head_style())
    return keras.Model(x, y)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_the_rates_of_a_cell_grow_as_the_output_stride_shrinks(output_stride):
    model = cell_model(RELEASED_CELL, output_stride)
    rates = [
        model.get_layer(f"meta_architecture.branch{i}_depthwise").dilation_rate
        for i in range(5)
    ]
    at_16 = [(1, 6), (18, 15), (6, 3), (1, 1), (6, 21)]
    at_8 = [(2, 12), (36, 30), (12, 6), (2, 2), (12, 42)]
    assert rates == {16: at_16, 8: at_8}[output_stride]


CELL = (
    CellBranch("conv", -1, (3, 3), (1, 2)),
    CellBranch("pyramid_pooling", -1, grid_size=(2, 3)),
    CellBranch("conv", 0),
)


def test_a_cell_is_its_branches_one_by_one():
    model, w = filled(cell_model(CELL, output_stride=8))
    x = np.random.RandomState(0).standard_normal((2, 7, 9, 4)).astype("float32")
    scope = "meta_architecture/branch"
    dilated = separable(x, w, f"{scope}0", (2, 4))  # 16 // 8 times (1, 2)
    # ceil(7 / 2) x ceil(9 / 3) cells are averaged, at 4 x 7 places.
    pooled = conv(means(x, (4, 3), (1, 1)), w, f"{scope}1")
    assert pooled.shape == (2, 4, 7, 256)
    parts = [dilated, resized(pooled, x), conv(dilated, w, f"{scope}2")]
    expected = conv(tf.concat(parts, -1), w, "meta_architecture/concat_projection")
    assert_same(model(x), expected)


def test_pyramid_pooling_by_hand():
    model = cell_model([CellBranch("pyramid_pooling", grid_size=(2, 1))])
    kernel = np.zeros((1, 1, 4, 256), np.float32)
    kernel[0, 0, 0, 0] = 1.0  # the first channel passes
    model.get_layer("meta_architecture.branch0").set_weights([kernel])
    branch = keras.Model(
        model.input, model.get_layer("meta_architecture.branch0.resize").output
    )
    rows = np.array([0.0, 2.0, 4.0, 12.0], np.float32)
    x = rows[None, :, None, None] * np.ones((1, 4, 5, 4), np.float32)
    # Two rows of four make 1, 3 and 8; spread over four rows, with the corners kept,
    # they are met at 0, 2/3, 4/3 and 2: 1, 1 + 2/3 * 2, 3 + 1/3 * 5, 8.
    expected = np.array([1.0, 7 / 3, 14 / 3, 8.0])
    found = branch(x)
    assert found.shape == (1, 4, 5, 256)
    for column in range(5):  # one part, and it is the whole width
        np.testing.assert_allclose(found[0, :, column, 0], expected, rtol=1e-4)
    np.testing.assert_array_equal(found[..., 1:], 0.0)


def test_the_window_of_a_model_reaches_its_cell():
    config = ModelConfig(
        output_stride=8,
        context=ContextConfig(
            dense_prediction_cell=(CellBranch("pyramid_pooling", grid_size=(2, 1)),),
            image_pooling_crop_size=(65, 33),
        ),
    )
    (layer,) = (
        x for x in leaf_layers(build_model(config)) if isinstance(x, WindowMean)
    )
    # ceil(65 / 8) = 9 and ceil(33 / 8) = 5 cells; two parts of 9 are of 5.
    assert layer.window((20, 20)) == [5, 5]


CELL_FILE = FOLDER / "cells/dense_prediction_cell.json"


@pytest.mark.parametrize(
    "form",
    [
        json.loads(CELL_FILE.read_text()),
        CELL_FILE.read_text(),
        str(CELL_FILE),
        "deeplab/core/dense_prediction_cell_branch5_top1_cityscapes.json",
    ],
    ids=["list", "text", "path", "official_name"],
)
def test_a_cell_is_read_in_every_form(form):
    config = ModelConfig.from_official_flags({"dense_prediction_cell_json": form})
    assert config.context.dense_prediction_cell == RELEASED_CELL


def test_a_file_of_the_official_name_is_read_if_it_is_there(tmp_path):
    path = tmp_path / "dense_prediction_cell_branch5_top1_cityscapes.json"
    path.write_text('[{"op": "pyramid_pooling", "grid_size": [4, 2], "input": -1}]')
    config = ModelConfig.from_official_flags({"dense_prediction_cell_json": str(path)})
    only = CellBranch("pyramid_pooling", grid_size=(4, 2))
    assert config.context.dense_prediction_cell == (only,)


def test_no_cell_is_the_aspp():
    for nothing in ("", None):
        flags = {"dense_prediction_cell_json": nothing}
        config = ModelConfig.from_official_flags(flags)
        assert config == ModelConfig.from_official_flags({})


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([{"op": "pool"}], "op of a cell must be conv or pyramid_pooling; .*'pool'"),
        ([{"op": "conv", "kernel": 5}], r"kernel of a cell must be 1 or 3; .*\(5, 5\)"),
        ([{"op": "conv", "kernel": [1, 3]}], r"must be 1 or 3; received \(1, 3\)"),
        ([{"op": "conv", "kernel": 3, "rate": 0}], r"rate .*positive.*\(0, 0\)"),
        ([{"op": "conv", "kernel": 3, "rate": [1.5, 1]}], r"rate .*whole.*\(1.5, 1\)"),
        ([{"op": "pyramid_pooling", "grid_size": [1, 0]}], r"grid_size .*\(1, 0\)"),
        ([{"op": "conv", "input": "0"}], "input of a cell .*received '0'"),
        ("[]", "holds no branches"),
        ([{"op": "conv", "stride": 2}], "unexpected keyword argument 'stride'"),
        ([{"kernel": 3}], "missing .*'op'"),
        (["conv"], ""),
        ("[{", "Expecting"),
        ("nowhere/cell.json", "No such file"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(cell, message):
    flags = {"dense_prediction_cell_json": cell}
    with pytest.raises(UserError, match=f"^dense_prediction_cell_json .*{message}"):
        ModelConfig.from_official_flags(flags)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([0], r"branch 0 of the dense prediction cell takes input -1; received 0"),
        ([-1, -1, 2], r"branch 2 .* takes input -1 to 1; received 2"),
        ([-1, -2], r"branch 1 .* takes input -1 to 0; received -2"),
    ],
)
def test_a_branch_of_a_cell_continues_an_earlier_one(inputs, message):
    branches = [{"op": "conv", "kernel": 1, "input": source} for source in inputs]
    with pytest.raises(UserError, match=message):
        ModelConfig.from_official_flags({"dense_prediction_cell_json": branches})


def means(x, window, strides):
    """Returns the mean of every window that lies within `x`, one by one."""
    (height, width), (rows, columns) = x.shape[1:3], window
    return np.stack(
        [
            np.stack(
                [
                    x[:, i : i + rows, j : j + columns].mean((1, 2))
                    for j in range(0, width - columns + 1, strides[1])
                ],
                axis=1,
            )
            for i in range(0, height - rows + 1, strides[0])
        ],
        axis=1,
    )


WINDOWS = [
    # (cells, arguments, window): ceil(33 / 8) = 5 and ceil(49 / 8) = 7 cells.
    ((10, 14), {"crop_size": (33, 49), "output_stride": 8}, (5, 7)),
    ((9, 13), {"crop_size": (33, 49), "output_stride": 8, "strides": (4, 5)}, (5, 7)),
    # The whole map, at 65 x 97 pixels.
    ((9, 13), {"crop_size": (65, 97), "output_stride": 8}, (9, 13)),
    # Rounded up: ceil(66 / 8) = 9 and ceil(98 / 16) = 7.
    ((12, 14), {"crop_size": (66, 98), "output_stride": 8}, (9, 13)),
    ((12, 14), {"crop_size": (66, 98), "output_stride": 16}, (5, 7)),
    # Parts of 5 and 7 cells: ceil(5 / 2) = 3 and ceil(7 / 3) = 3; of 10 in four: 3.
    (
        (9, 8),
        {"crop_size": (33, 49), "output_stride": 8, "grid_size": (2, 3)},
        (3, 3),
    ),
    ((10, 7), {"grid_size": (4, 1)}, (3, 7)),
    ((7, 10), {"grid_size": (2, 2), "strides": (3, 2)}, (4, 5)),
    # At half the scale 33 and 49 pixels are 17 and 25: 3 and 4 cells; at 1.5 times
    # int(32 * 1.5 + 1) = 49 and int(48 * 1.5 + 1) = 73: 7 and 10 cells.
    (
        (8, 9),
        {"crop_size": (33, 49), "output_stride": 8, "image_scale": 0.5},
        (3, 4),
    ),
    (
        (13, 12),
        {"crop_size": (33, 49), "output_stride": 8, "image_scale": 1.5},
        (7, 10),
    ),
    # Larger than the map on one side, and on both.
    ((4, 14), {"crop_size": (65, 49), "output_stride": 8}, (4, 7)),
    ((4, 5), {"crop_size": (769, 769), "output_stride": 8, "strides": (4, 5)}, (4, 5)),
    # No window: everything, whatever the strides.
    ((4, 5), {}, (4, 5)),
    ((7, 6), {"strides": (2, 2), "image_scale": 0.5}, (7, 6)),
    # MobileNetV3 at 1025 x 2049 (reference, section 2.5): 25 x 25 -> 3 x 9.
    (
        (33, 65),
        {"crop_size": (769, 769), "output_stride": 32, "strides": (4, 5)},
        (25, 25),
    ),
]


@pytest.mark.parametrize(("cells", "options", "window"), WINDOWS)
def test_a_window_is_averaged_wherever_it_fits(cells, options, window):
    layer = WindowMean(**options)
    x = np.random.RandomState(0).standard_normal((2, *cells, 3)).astype("float32")
    expected = means(x, window, options.get("strides", (1, 1)))
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)
    open_sizes = tf.function(
        layer, input_signature=[tf.TensorSpec([None, None, None, 3])]
    )
    np.testing.assert_allclose(open_sizes(x), expected, atol=1e-6)
    known = layer(keras.Input((*cells, 3)))
    assert known.shape == (None, *expected.shape[1:])
    whole = not {"crop_size", "grid_size"} & set(options)
    opened = layer(keras.Input((None, cells[1], 3)))
    assert opened.shape[1:] == ((1, 1, 3) if whole else (None, None, 3))
    saved = WindowMean.from_config(layer.get_config())
    np.testing.assert_array_equal(saved(x), layer(x))


def test_mobilenetv3_pools_to_3_by_9():
    cells, options, window = WINDOWS[-1]
    shape = WindowMean(**options)(keras.Input((*cells, 1))).shape
    assert (window, shape) == ((25, 25), (None, 3, 9, 1))


CROP = {"image_pooling_crop_size": "33,49"}


def windows(model):
    """Returns the pooling windows of a model, for features without end."""
    layers = [x for x in leaf_layers(model) if isinstance(x, WindowMean)]
    return [layer.window((99, 99)) for layer in layers]


def test_a_network_for_another_scale_shares_every_variable():
    model, _ = build(output_stride=8, **CROP)
    half = at_image_scale(model, 0.5)
    assert {id(v) for v in half.variables} == {id(v) for v in model.variables}
    # ceil(33 / 8) and ceil(49 / 8); int(32 / 2 + 1) = 17 and 25 pixels at half.
    assert (windows(model), windows(half)) == ([[5, 7]], [[3, 4]])
    # 1.5 of a half: int(32 * 0.75 + 1) = 25 and int(48 * 0.75 + 1) = 37.
    assert windows(at_image_scale(half, 1.5)) == [[4, 5]]
    assert at_image_scale(model, 1.0) is model
    whole, _ = build()
    assert at_image_scale(whole, 0.5) is whole


def test_a_network_for_another_scale_is_the_one_of_the_scaled_window():
    model, w = build(**CROP)
    other, _ = build(image_pooling_crop_size="17,25")
    assert list(official_variables(other)) == list(w)
    assert_same(at_image_scale(model, 0.5)(IMAGE), other(IMAGE))
    difference = model(IMAGE) - other(IMAGE)
    assert np.abs(difference).max() > 1e-2 * np.std(other(IMAGE))


@pytest.mark.parametrize("method", ["avg", "max"])
def test_an_image_pyramid_scales_the_pooling_window_along(method):
    model, w = build(image_pyramid="0.5,1", merge_method=method, **CROP)
    whole, one = build(**CROP)
    assert list(w) == list(one)
    # The half image of 33 x 49 pixels, seen through half the window.
    half, _ = build(image_pooling_crop_size="17,25")
    small = tf.raw_ops.ResizeBilinear(images=IMAGE, size=(33, 49), align_corners=True)
    first, second = resized(logits(half, small), logits(whole)), logits(whole)
    merge = {"avg": lambda a, b: (a + b) / 2, "max": tf.maximum}[method]
    assert_same(logits(model), merge(first, second))
    # An unscaled window would have told on itself.
    unscaled = resized(logits(whole, small), second)
    assert np.abs(unscaled - first).max() > 1e-2 * np.std(first)
