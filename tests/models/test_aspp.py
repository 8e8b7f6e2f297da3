"""ASPP, LR-ASPP and models without them, compared branch by branch."""

import numpy as np
import pytest
import tensorflow as tf
from reference_heads import (
    LEVEL,
    assert_same,
    branches,
    build,
    conv,
    decode,
    features,
    hard_sigmoid,
    image_level,
    linear,
    logits,
    project,
    windowed_image_level,
)

from deeplab_tf.models.variables import dropout_seeds

pytestmark = pytest.mark.usefixtures("stub_backbone")


SQUEEZE = {"aspp_with_squeeze_and_excitation": True}
LITE = SQUEEZE | {"aspp_with_concat_projection": False, "atrous_rates": []}
CONTEXTS = {
    "complete": ({}, lambda x, w: project([image_level(x, w), *branches(x, w)], w)),
    "windows": (
        {"image_pooling_crop_size": "33,49", "image_pooling_stride": "1,2"},
        lambda x, w: project([windowed_image_level(x, w), *branches(x, w)], w),
    ),
    "no_image_level": (
        {"add_image_level_feature": False},
        lambda x, w: project(branches(x, w), w),
    ),
    "no_image_level_dense": (
        {"add_image_level_feature": False, "aspp_with_separable_conv": False},
        lambda x, w: project(branches(x, w, conv), w),
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
        lambda x, w: project(branches(x, w), w) * image_level(x, w, tf.sigmoid),
    ),
    "hard_gate": (
        SQUEEZE | {"image_se_uses_qsigmoid": True},
        lambda x, w: project(branches(x, w), w) * image_level(x, w, hard_sigmoid),
    ),
    "gate_without_image_level": (
        SQUEEZE | {"add_image_level_feature": False},
        lambda x, w: project(branches(x, w), w),
    ),
    "lite": (LITE, lambda x, w: conv(x, w, "aspp0") * image_level(x, w, tf.sigmoid)),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_context_equals_reference_branches(name):
    flags, expected = CONTEXTS[name]
    model, w = build(**flags)
    (x,) = features(model)
    context = model.get_layer("context")(x)
    assert np.std(context) > 0.05
    assert_same(context, expected(x, w))


@pytest.mark.parametrize(
    ("flags", "depths"),
    [
        # 4 branches of 8 with the image level, else 3; logits read 8 or all channels.
        ({}, {"image_pooling": 32, "concat_projection": 32, "logits/semantic": 8}),
        (
            {"add_image_level_feature": False},
            {"concat_projection": 24, "logits/semantic": 8},
        ),
        (
            {"aspp_with_concat_projection": False},
            {"image_pooling": 32, "logits/semantic": 32},
        ),
        # The gate is not concatenated: 24, not 32.
        (SQUEEZE, {"image_pooling": 32, "concat_projection": 24, "logits/semantic": 8}),
        (LITE, {"image_pooling": 32, "logits/semantic": 8}),
    ],
)
def test_context_depths_follow_the_concatenated_branches(flags, depths):
    model, w = build(**flags)
    excluded = ("backbone/", "aspp")
    found = {
        name.removesuffix("/weights"): array.shape[2]
        for name, array in w.items()
        if name.endswith("/weights") and not name.startswith(excluded)
    }
    assert found == depths  # the context has 32 input channels
    # Dropout follows the projection.
    assert bool(dropout_seeds(model)) == ("concat_projection" in depths)


def test_gate_has_bias_and_image_level_branch_has_batch_norm():
    def image_pooling(**flags):
        return {n.split("/", 1)[1] for n in build(**flags)[1] if "image_pool" in n}

    assert image_pooling(**SQUEEZE) == {"weights", "biases"}
    leaves = ("gamma", "beta", "moving_mean", "moving_variance")
    assert image_pooling() == {"weights"} | {f"BatchNorm/{leaf}" for leaf in leaves}


def sum_logits(x, w, rates):
    return sum(
        conv(x, w, "logits/semantic" + (f"_{i}" if i else ""), rate, linear)
        for i, rate in enumerate(rates)
    )


@pytest.mark.parametrize(
    ("rates", "kernel_size", "count"), [([2, 3], 3, 2), ([1, 2, 4], 1, 3), ([], 1, 1)]
)
def test_logits_without_aspp_sum_one_convolution_per_rate(rates, kernel_size, count):
    model, w = build(
        aspp_with_batch_norm=False, atrous_rates=rates, logits_kernel_size=kernel_size
    )
    shapes = {n: a.shape for n, a in w.items() if not n.startswith("backbone/")}
    scopes = ["logits/semantic", *(f"logits/semantic_{i}" for i in range(1, count))]
    assert shapes == {
        f"{s}/weights": (kernel_size, kernel_size, 32, 3) for s in scopes
    } | {f"{s}/biases": (3,) for s in scopes}
    (x,) = features(model)
    assert_same(logits(model), sum_logits(x, w, rates or [1]))


def test_decoder_without_aspp_reads_backbone():
    model, w = build(
        aspp_with_batch_norm=False, logits_kernel_size=3, decoder_output_stride=4
    )
    x, low = features(model)
    assert w["decoder/decoder_conv0_depthwise/depthwise_weights"].shape[2] == 32 + 48
    x = decode(x, [low], w, [LEVEL])
    assert_same(logits(model), sum_logits(x, w, (2, 3)))
