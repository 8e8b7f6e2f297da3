"""The decoders and their ablations, convolution by convolution."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from reference_heads import (
    LEVEL,
    assert_same,
    branches,
    build,
    decode,
    features,
    image_level,
    linear,
    logits,
    project,
)

pytestmark = pytest.mark.usefixtures("stub_backbone")


DENSE = {"decoder_use_separable_conv": False}
SUM = {"decoder_use_sum_merge": True}
SCORES = {"decoder_output_is_logits": True, "decoder_filters": 3}
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
def test_decoder_matches_reference(name):
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
    output = decode(context, low_level, w, levels, "sum" in name, act)
    assert np.std(output) > 0.1
    assert_same(model.get_layer("decoder")([context, *low_level]), output)
    if "logits" in name:
        assert not any(n.startswith("logits/") for n in w)
        assert_same(logits(model), output)


@pytest.mark.parametrize(
    ("flags", "levels", "sizes"),
    # The image is 65x97: 33x49 cells at stride 2, 17x25 at 4, 9x13 at 8, 5x7 at 16.
    [
        ({"output_stride": 8, "decoder_output_stride": 16}, [LEVEL], [(5, 7)]),
        (
            {"output_stride": 2, "decoder_output_stride": [16, 4]} | SUM,
            DECODERS["sum_two_levels"][1],
            [(5, 7), (17, 25)],
        ),
    ],
)
def test_decoder_stride_may_exceed_the_output_stride(flags, levels, sizes):
    model, w = build(**flags)
    x, *low_level = features(model)
    cells = (9, 13) if flags["output_stride"] == 8 else (33, 49)
    assert [tuple(low.shape[1:3]) for low in low_level] == len(sizes) * [cells]
    context = model.get_layer("context")(x)
    add = "decoder_use_sum_merge" in flags
    output = decode(context, low_level, w, levels, add, sizes=sizes)
    assert output.shape[1:3] == sizes[-1]
    assert np.std(output) > 0.05
    assert_same(model.get_layer("decoder")([context, *low_level]), output)
    # Logits also have the stride of the decoder, as in the official graph.
    assert logits(model).shape[1:3] == sizes[-1]
    assert model.model_config.logits_stride == {5: 16, 17: 4}[sizes[-1][0]]


def kernels_of(flags):
    """Returns the shapes of the dense decoder's kernels, in order."""
    _, w = build(**{"decoder_output_stride": 4, "decoder_filters": 256} | DENSE | flags)
    return [a.shape for n, a in w.items() if "decoder/" in n and n.endswith("/weights")]


@pytest.mark.parametrize("depth", [8, 16, 32, 48, 64])
def test_projection_depths_match_deeplabv3plus_table_1(depth):
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
def test_convolutions_match_deeplabv3plus_table_2(flags, kernels):
    assert kernels_of(flags) == [(1, 1, 16, 48), *kernels]  # 8 + 48 = 56


def test_two_levels_match_deeplabv3plus_table_2():
    both = {"decoder_convolutions": 1, "decoder_output_stride": [8, 4]}
    # Stride 8 comes first, with 24 channels.
    assert kernels_of(both) == [
        *((1, 1, 24, 48), (3, 3, 8 + 48, 256)),
        *((1, 1, 16, 48), (3, 3, 256 + 48, 256)),
    ]


def test_logits_decoder_kernels_depend_on_merge_method():
    flags = {"decoder_filters": 3, "decoder_output_is_logits": True}
    # Added: one 1x1 convolution each, with one channel per class.
    assert kernels_of(flags | SUM) == [(1, 1, 16, 3), (1, 1, 8, 3)]
    # Joined: the usual two 3x3 convolutions, without activation.
    assert kernels_of(flags) == [(1, 1, 16, 48), (3, 3, 56, 3), (3, 3, 3, 3)]


def test_bounded_activations_clip_all_but_image_level_branch():
    gain = 30.0

    def amplify(name):
        """Returns a factor that makes the normalised features of the heads large."""
        head = not name.startswith(("backbone", "logits"))
        return gain if head and name.endswith("gamma") else 1.0

    model, w = build(amplify, use_bounded_activation=True, decoder_output_stride=4)
    x, low = features(model)
    relu6 = tf.nn.relu6
    image, rest = image_level(x, w), branches(x, w, act=relu6)
    assert np.max(image) > 7.0 and all(np.max(part) == 6.0 for part in rest)
    context = project([image, *rest], w, relu6)
    assert_same(model.get_layer("context")(x), context, gain)
    output = decode(context, [low], w, [LEVEL], act=relu6)
    assert np.max(output) == 6.0
    assert_same(model.get_layer("decoder")([context, low]), output, gain)
    unbounded, _ = build(amplify, decoder_output_stride=4)
    assert np.max(unbounded.get_layer("context")(x)) > 6.0
