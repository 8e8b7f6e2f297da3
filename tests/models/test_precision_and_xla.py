"""Backbones at half precision and compiled with XLA, as a TPU requires."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import value

from deeplab_tf.config import BACKBONES, ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import batch_normalizations, official_variables
from deeplab_tf.training.losses import segmentation_loss

QUICK = ("mobilenet_v2", "mobilenet_v3_small_seg", "resnet_v1_18")
SIZE = (33, 33)


def config_of(backbone):
    """Returns a narrow config with every kind of head layer and no dropout."""
    return ModelConfig(
        backbone,
        num_classes=5,
        context=ContextConfig(rates=(1, 2), filters=16, dropout=0.0),
        decoder=DecoderConfig(filters=16),
    )


def filled_model(config, **sizes):
    """Returns a model in which every weight affects the output."""
    model = build_model(config, **sizes)
    for name, variable in official_variables(model).items():
        variable.assign(value(name, variable.shape))
    return model


def batch(count=2):
    random = np.random.RandomState(0)
    images = random.uniform(0, 255, (count, *SIZE, 3)).astype("float32")
    return tf.constant(images), tf.constant(random.randint(0, 5, (count, *SIZE)))


@functools.cache
def float32_logits(config):
    keras.mixed_precision.set_dtype_policy("float32")
    return filled_model(config)(batch()[0]).numpy()


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def half_precision(request, precision):
    """A dtype policy, set during the test."""
    precision(request.param)
    return request.param


@pytest.mark.parametrize("backbone", QUICK)
def test_logits_are_float32_at_half_precision(backbone, half_precision, shallow):
    config = config_of(backbone)
    model = filled_model(config)
    for name in ("backbone", "context", "decoder"):
        outputs = model.get_layer(name).outputs
        assert {x.dtype for x in outputs} == {half_precision.removeprefix("mixed_")}
    assert model.get_layer("logits").output.dtype == "float32"
    assert model.output.dtype == "float32"
    assert {v.dtype for v in official_variables(model).values()} == {"float32"}
    images, _ = batch()
    half = model(images).numpy()
    exact = float32_logits(config)
    # bfloat16 keeps 8 bits, float16 11: a few per cent of error after fifty layers.
    tolerance = 0.2 if half_precision == "mixed_bfloat16" else 0.05
    assert np.abs(half - exact).max() < tolerance * np.std(exact)


def test_decoder_logits_are_float32_at_half_precision(half_precision):
    config = dataclasses.replace(
        config_of("mobilenet_v3_small_seg"),
        decoder=DecoderConfig((8,), sum_merge=True, outputs_logits=True),
    )
    model = build_model(config)
    assert model.get_layer("logits").output.dtype == "float32"
    assert model.output.dtype == "float32"


def gradients_of(model, images, labels):
    """Returns the loss and its gradients in training mode."""
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        loss = segmentation_loss(labels, model(images, training=True))
    return loss, tape.gradient(loss, variables)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_forward_and_backward_compile_under_xla(backbone):
    images, labels = batch()
    model = filled_model(config_of(backbone), image_size=SIZE, batch_size=2)
    for layer in batch_normalizations(model):
        layer.frozen = True  # batch statistics of 2 x 2 cells amplify rounding
    results = {}
    for compiled in (False, True):
        step = tf.function(gradients_of, jit_compile=compiled, autograph=False)
        loss, gradients = step(model, images, labels)
        results[compiled] = loss.numpy(), tf.linalg.global_norm(gradients).numpy()
    np.testing.assert_allclose(results[True], results[False], rtol=1e-3)
    for layer in batch_normalizations(model):
        layer.frozen = False
    step = tf.function(gradients_of, jit_compile=True, autograph=False)
    loss, gradients = step(model, images, labels)
    assert np.isfinite(loss)
    assert all(g is not None and np.isfinite(g).all() for g in gradients)
