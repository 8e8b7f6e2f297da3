"""Optimizations of exports do not change their results."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from keras import layers
from shallow_network import shallow_mobilenet_v2

from deeplab_tf.checkpoints.restore import load_tf1_variables, tf1_variables
from deeplab_tf.config import ModelConfig
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.layers import activate, conv_bn_act, head_style
from deeplab_tf.models.variables import leaf_layers
from deeplab_tf.serving.cpu_optimization import (
    PolyphaseDepthwiseConv2D,
    ReluOfSum,
    optimize_for_cpu,
)


def random(*shape):
    return np.random.RandomState(3).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"dilation_rate": 2},
        {"dilation_rate": (6, 18), "use_bias": True, "activation": "relu"},
        {"dilation_rate": 12, "kernel_size": 5},
        {"strides": 2},
        {"dilation_rate": 2, "padding": "valid"},
        {},
    ],
)
@pytest.mark.parametrize("size", [(33, 33), (8, 19), (1, 2)])
def test_polyphase_depthwise_convolution_matches_keras(options, size):
    x = random(2, *size, 3)
    if options.get("padding") == "valid" and min(size) < 5:
        pytest.skip("the image is smaller than the kernel")
    options = {"kernel_size": 3, "padding": "same", "use_bias": False, **options}
    polyphase, plain = (
        PolyphaseDepthwiseConv2D(**options),
        layers.DepthwiseConv2D(**options),
    )
    for layer in (polyphase, plain):
        layer.build(x.shape)
    plain.set_weights([random(*w.shape) for w in plain.get_weights()])
    polyphase.set_weights(plain.get_weights())
    np.testing.assert_allclose(polyphase(x), plain(x), rtol=0, atol=1e-5)


def residual_model():
    """Returns a model whose sums feed a ReLU and the next sum, as in Xception.

    The first and the last sum feed one layer only.
    """
    style = head_style()
    image = keras.Input((None, None, 3), name="image")
    x = conv_bn_act(image, 8, 3, "root", **style)
    x = layers.Add(name="sum.0")([conv_bn_act(x, 8, 1, "unit.0", **style), x])
    x = activate(x, "relu", "sum.0")
    for i in range(1, 5):
        y = activate(x, "relu", f"unit.{i}.input")
        linear = style | {"activation": None}
        y = conv_bn_act(y, 8, 3, f"unit.{i}", **linear)
        x = layers.Add(name=f"sum.{i}")([y, x])
    x = layers.Conv2D(2, 1, name="logits")(activate(x, "relu", "last"))
    model = keras.Model(image, x)
    model.model_config = ModelConfig(num_classes=2)
    return model


def test_relus_of_shared_sums_are_replaced():
    model = residual_model()
    optimized = optimize_for_cpu(model)
    kinds = {x.name for x in leaf_layers(optimized) if isinstance(x, ReluOfSum)}
    # The first unit's ReLU has no sum as input, and the last sum feeds one layer only.
    assert kinds == {f"unit.{i}.input.relu" for i in (2, 3, 4)}
    x = random(1, 9, 11, 3)
    np.testing.assert_allclose(optimized(x), model(x), rtol=0, atol=1e-5)
    half = tf.cast(x, tf.bfloat16)
    np.testing.assert_array_equal(ReluOfSum("relu")(half), tf.nn.relu(half))


RUN = """
import sys
import quiet_tensorflow, test_cpu_optimization as tests, tensorflow as tf
from deeplab_tf.models.folding import fold_batch_norm
from deeplab_tf.serving.cpu_optimization import optimize_for_cpu
for make in (optimize_for_cpu, fold_batch_norm):
    network = tf.function(make(tests.residual_model()), autograph=False)
    images = tf.constant(tests.random(1, 9, 11, 3))
    network(images)
    print("END", file=sys.stderr, flush=True)
"""


def test_optimized_graph_does_not_fail_in_the_remapper():
    log = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=ROOT / "tests/serving",
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    fast, folded, _ = log.split("END")
    assert "remapper failed" not in fast
    if "remapper failed" not in folded:
        pytest.skip("this TensorFlow does not fuse here, or has no such error")


def test_folding_adds_no_error_in_half_precision(tiny_model, precision):
    precision("mixed_bfloat16")
    with shallow_mobilenet_v2():
        half = build_model(tiny_model.model_config)
    load_tf1_variables(half, tf1_variables(tiny_model))
    precision("float32")
    images = 255 * np.abs(random(2, 65, 97, 3))
    expected = Predictor(tiny_model).probabilities(images)
    unfolded, fast = (
        np.abs(Predictor(m).probabilities(images) - expected).mean()
        for m in (half, optimize_for_cpu(half))
    )
    assert 0 < fast <= 1.2 * unfolded
