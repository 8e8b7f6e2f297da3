"""Quantised models round weights and features as 8-bit inference does."""

import keras
import numpy as np
import pytest
from toy_model import toy_model

from deeplab_tf.models.fake_quantization import FakeQuantization, QuantizedConvolution
from deeplab_tf.models.folding import fold_batch_norm
from deeplab_tf.models.quantization import is_quantized, quantize_model
from deeplab_tf.models.variables import leaf_layers, official_variables

RANDOM = np.random.RandomState(0)


def make_image(*shape):
    return RANDOM.uniform(0, 255, (*shape, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized(tiny_model):
    """`tiny_model` with the ranges of one batch."""
    model = quantize_model(tiny_model)
    tiny_model.freeze_batch_norm()
    model(make_image(2, 33, 49), training=True)
    yield model
    tiny_model.freeze_batch_norm(False)


@pytest.mark.parametrize(
    ("layer", "channel_axis"),
    [(keras.layers.Conv2D(4, 3), 3), (keras.layers.DepthwiseConv2D(3), 2)],
)
def test_kernels_have_255_levels_per_output_channel(layer, channel_axis):
    layer.build((None, 9, 9, 5))
    kernel = RANDOM.standard_normal(layer.kernel.shape).astype(np.float32)
    rounded = keras.ops.convert_to_numpy(
        QuantizedConvolution(layer).round_kernel(kernel)
    )
    others = tuple({0, 1, 2, 3} - {channel_axis})
    scale = np.abs(kernel).max(others, keepdims=True) / 127
    np.testing.assert_allclose(rounded, np.rint(kernel / scale) * scale, atol=1e-6)


def test_range_is_an_unbiased_moving_average_that_contains_0():
    layer, decay = FakeQuantization(), 0.999
    batches = [(-2.0, 4.0), (-1.0, 6.0), (3.0, 5.0)]
    expected = [
        # The first batch; then (0.999 a + b) / 1.999, and so on, with 0 for 3.
        (-2.0, 4.0),
        (-(decay * 2 + 1) / (1 + decay), (decay * 4 + 6) / (1 + decay)),
        (
            -(decay**2 * 2 + decay) / (1 + decay + decay**2),
            (decay**2 * 4 + decay * 6 + 5) / (1 + decay + decay**2),
        ),
    ]
    for batch, limits in zip(batches, expected, strict=True):
        layer(np.float32([batch]), training=True)
        learned = [float(layer.min.numpy()), float(layer.max.numpy())]
        np.testing.assert_allclose(learned, limits, rtol=1e-5)
    before = layer.get_weights()
    layer(np.float32([[-9.0, 9.0]]))
    np.testing.assert_array_equal(layer.get_weights(), before)


def test_features_have_256_levels_that_include_0():
    layer = FakeQuantization(limits=(-1.0, 2.0))
    x = np.linspace(-2, 3, 1000, dtype=np.float32)[None]
    levels = np.unique(keras.ops.convert_to_numpy(layer(x)))
    # Scale 3 / 255, so that -1 is the level -85.
    np.testing.assert_allclose(levels, np.arange(-85, 171) * 3 / 255, atol=1e-6)


def test_variables_are_shared_and_ranges_are_new(tiny_model, quantized):
    variables = official_variables(quantized)
    for name, variable in official_variables(tiny_model).items():
        assert variables.pop(name) is variable
    assert {name.rpartition("/")[2] for name in variables} == {"min", "max", "batches"}
    assert all(name.split("/")[-2] == "act_quant" for name in variables)
    assert not any(v.trainable for v in variables.values())
    assert (is_quantized(quantized), is_quantized(tiny_model)) == (True, False)


def test_features_are_rounded_after_fused_activations(quantized):
    names = {x.name for x in leaf_layers(quantized) if isinstance(x, FakeQuantization)}
    scope = "MobilenetV2.expanded_conv_1"
    assert {name for name in names if name.startswith(scope)} == {
        f"{scope}.{name}.act_quant"
        for name in ("expand.relu6", "depthwise.relu6", "project")
    }
    assert {
        "normalize.quant",
        "aspp_concat.act_quant",
        "logits.semantic.act_quant",
    } < names
    # The decoder concatenates resized features, which keep their levels.
    assert not any("resize" in name for name in names)


def test_quantised_logits_are_close_and_folding_keeps_them(tiny_model, quantized):
    image = make_image(1, 33, 49)
    exact, rounded, folded = (
        keras.ops.convert_to_numpy(model(image))
        for model in (tiny_model, quantized, fold_batch_norm(quantized))
    )
    error = np.std(rounded - exact) / np.std(exact)
    assert 1e-3 < error < 0.2
    # Rounding differences change some features by a level.
    assert np.std(folded - rounded) / np.std(exact) < 0.3 * error


def test_gradients_reach_every_weight():
    import tensorflow as tf

    model = quantize_model(toy_model())
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(make_image(2, 33, 33), training=True) ** 2)
    trained = [v.value for v in official_variables(model).values() if v.trainable]
    for gradient in tape.gradient(loss, trained):
        assert np.abs(gradient.numpy()).max() > 0
