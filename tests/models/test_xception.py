"""Xception: the positions of its activations."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from reference_heads import assert_same, conv, fill_variables, linear, norm

from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.config.backbones.xception import Block, Xception
from deeplab_tf.models.backbones import BACKBONES
from deeplab_tf.models.deeplab import build_model

# A tiny Xception with one block of each kind.
BLOCKS = (
    Block("entry_flow.block1", (4, 4, 6), "conv", 2),
    Block("entry_flow.block2", (6, 6, 8), "conv", 2),
    Block("middle_flow.block1", (8, 8, 8), "sum", 1),
    Block("exit_flow.block2", (8, 10, 12), "none", 1),
)


@pytest.fixture
def tiny_xception(monkeypatch):
    """A function that builds a tiny Xception, with features that get clipped."""
    network = Xception("tiny", BLOCKS)
    tiny = functools.partial(BACKBONES["xception_41"], network=network)
    monkeypatch.setitem(BACKBONES, "xception_41", tiny)

    def build(**options):
        context, decoder = ContextConfig(aspp=False), DecoderConfig(output_strides=())
        heads = {"context": context, "decoder": decoder}
        config = ModelConfig("xception_41", 3, output_stride=8, **heads, **options)
        return fill_variables(
            build_model(config), lambda n: 1.0 + 4.0 * n.endswith("gamma")
        )

    return build


def pad_border(x):
    """Adds one pixel of zeros on each side: the fixed padding of a 3x3 kernel."""
    return tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])


def xception_module(x, w, scope, block, bounded, depthwise_activation):
    """Computes an Xception module in plain TensorFlow (reference, section 1.1)."""
    relu, last = tf.nn.relu6 if bounded else tf.nn.relu, block.shortcut == "none"
    identity = functools.partial(tf.clip_by_value, clip_value_min=-6, clip_value_max=6)
    identity = identity if bounded else linear
    y = x
    for i in (1, 2, 3):
        y = y if last else relu(y)
        stride = block.stride if i == 3 else 1
        fixed = stride > 1 and not bounded
        y = tf.nn.depthwise_conv2d(
            pad_border(y) if fixed else y,
            w[f"{scope}/separable_conv{i}_depthwise/depthwise_weights"],
            [1, stride, stride, 1],
            "VALID" if fixed else "SAME",
        )
        y = norm(y, w, f"{scope}/separable_conv{i}_depthwise", 1e-3)
        y = relu(y) if last or depthwise_activation else identity(y)
        act = relu if last else identity
        y = conv(y, w, f"{scope}/separable_conv{i}_pointwise", act=act, epsilon=1e-3)
    if last:
        return y
    if block.shortcut == "conv":
        options = {"strides": block.stride, "epsilon": 1e-3}
        x = conv(x, w, f"{scope}/shortcut", act=linear, **options)
    y = y + identity(x)
    return relu(y) if bounded else y


def xception_features(image, w, bounded=False, depthwise_activation=False):
    relu = tf.nn.relu6 if bounded else tf.nn.relu
    # The first convolution always has fixed padding of one pixel.
    kernel = w["tiny/entry_flow/conv1_1/weights"]
    x = tf.nn.conv2d(pad_border(image), kernel, 2, "VALID")
    x = relu(norm(x, w, "tiny/entry_flow/conv1_1", 1e-3))
    x = conv(x, w, "tiny/entry_flow/conv1_2", act=relu, epsilon=1e-3)
    for block in BLOCKS:
        scope = f"tiny/{block.scope.replace('.', '/')}/unit_1/xception_module"
        x = xception_module(x, w, scope, block, bounded, depthwise_activation)
    return x


# Even sizes, for which fixed and SAME padding differ.
EVEN = np.random.RandomState(1).uniform(-1, 1, (1, 48, 34, 3)).astype("float32")


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("depthwise_activation", [False, True])
def test_xception_activations_equal_reference(
    tiny_xception, bounded, depthwise_activation
):
    options = (bounded, depthwise_activation)
    model, w = tiny_xception(
        bounded_activation=bounded, depthwise_activation=depthwise_activation
    )
    found = model.get_layer("backbone")(EVEN)
    assert found.shape == (1, 6, 5, 12)
    assert_same(found, xception_features(EVEN, w, *options))
    # Each of the three other option pairs gives different features.
    for rejected in {(a, b) for a in (False, True) for b in (False, True)} - {options}:
        difference = found - xception_features(EVEN, w, *rejected)
        assert np.abs(difference).max() > 0.1 * np.std(found)


def test_activation_options_add_no_variables(tiny_xception):
    names = [
        list(tiny_xception(**options)[1])
        for options in (
            {},
            {"depthwise_activation": True},
            {"bounded_activation": True},
        )
    ]
    assert names[0] == names[1] == names[2]
