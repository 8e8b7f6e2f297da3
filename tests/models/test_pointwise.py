"""Pointwise convolutions as matrix products: same results, same variables."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import value
from shallow_network import narrow_network, patch_mobilenet_v2

from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.models.backbones import BACKBONES
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.pointwise import PointwiseMatmul, convert_pointwise_to_matmul
from deeplab_tf.models.recomputation import recompute_backbone
from deeplab_tf.models.variables import official_variables


def small_model(variant, **options):
    """Returns a small model with golden weights that outputs its logits."""
    config = ModelConfig(
        variant,
        num_classes=5,
        context=ContextConfig(rates=(1, 2), filters=16),
        decoder=DecoderConfig(filters=16),
        **options,
    )
    with pytest.MonkeyPatch.context() as patch:
        if variant == "mobilenet_v2":
            patch_mobilenet_v2(patch)
        else:
            narrow = {"network": narrow_network(variant)}
            small = functools.partial(BACKBONES[variant], **narrow)
            patch.setitem(BACKBONES, variant, small)
        model = build_model(config)
    for name, variable in official_variables(model).items():
        variable.assign(value(name, variable.shape))
    return keras.Model(model.input, model.get_layer("logits").output)


def count_ops(function, *arguments):
    """Counts the convolutions and matrix products of a graph."""
    graph = tf.function(function).get_concrete_function(*arguments).graph
    names = [op.type for op in graph.get_operations()]
    return {name: names.count(name) for name in ("Conv2D", "MatMul")}


def run_with_gradients(network, images):
    """Returns logits and the gradient of every variable."""
    with tf.GradientTape() as tape:
        logits = network(images, training=False)
        loss = tf.reduce_sum(tf.sin(logits))
    variables = {v.path: v.value for v in network.trainable_variables}
    return logits, tape.gradient(loss, variables)


@pytest.mark.parametrize(
    ("variant", "wrap"),
    [
        ("mobilenet_v2", lambda network: network),
        ("mobilenet_v2", recompute_backbone),
        ("xception_41", lambda network: network),
        ("resnet_v1_50", lambda network: network),
    ],
)
def test_matmul_network_equals_convolutional_one(variant, wrap, precision):
    # In float32, a few features round to the other side of a ReLU's kink.
    precision("float64")
    network = small_model(variant)
    products = wrap(convert_pointwise_to_matmul(network))
    images = np.random.RandomState(0).uniform(0, 255, (2, 33, 33, 3)).astype("float32")
    images = tf.constant(images)
    expected, gradients = run_with_gradients(network, images)
    found, of_products = run_with_gradients(products, images)
    # Variables are shared, and none is added.
    assert {id(v) for v in products.variables} == {id(v) for v in network.variables}
    # Only logits are float32: sums of 16 terms, which processors add differently.
    rounding = 16 * np.finfo(np.float32).epsneg * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding)
    assert of_products.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = np.abs(gradient).max() + 1e-6
        np.testing.assert_allclose(
            of_products[name], gradient, atol=1e-4 * scale, err_msg=name
        )


def test_pyramid_scales_share_matmul_layers():
    network = small_model("mobilenet_v2", image_pyramid=(0.5, 1.0))
    products = convert_pointwise_to_matmul(network)
    assert {id(v) for v in products.variables} == {id(v) for v in network.variables}
    images = tf.ones((1, 33, 33, 3))
    assert count_ops(products, images)["Conv2D"] == 2
    expected = network(images)
    np.testing.assert_allclose(products(images), expected, atol=1e-4 * np.std(expected))


def test_pointwise_convolutions_become_matmuls():
    network = small_model("mobilenet_v2")
    images = tf.zeros((2, 33, 33, 3))
    before = count_ops(network, images)
    after = count_ops(convert_pointwise_to_matmul(network), images)
    assert after["MatMul"] > 15
    # The rest are strided or larger than 1x1.
    assert before["Conv2D"] - after["Conv2D"] == after["MatMul"] - before["MatMul"]
    assert after["Conv2D"] == 1


@pytest.mark.parametrize(
    ("shape", "is_matmul"),
    [((4, 64, 64, 3), True), ((4, 64, 65, 3), False), ((None, 8, 8, 3), False)],
)
def test_many_or_unknown_positions_keep_the_convolution(shape, is_matmul):
    layer = keras.layers.Conv2D(2, 1, activation="relu", bias_initializer="ones")
    product = PointwiseMatmul(layer)
    layer.build(shape)
    images = tf.random.stateless_normal([n or 4 for n in shape], (0, 0))
    np.testing.assert_allclose(product(images), layer(images), atol=1e-6)
    found = count_ops(product, tf.TensorSpec(shape))
    assert found == {"Conv2D": 1 - is_matmul, "MatMul": int(is_matmul)}


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"groups": 3},
        {"kernel_size": (1, 3)},
        {"data_format": "channels_first"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_convolutions_are_unchanged(options):
    image = keras.Input((3, 3, 3))
    convolution = keras.layers.Conv2D(**{"filters": 3, "kernel_size": 1, **options})
    network = convert_pointwise_to_matmul(keras.Model(image, convolution(image)))
    assert network.layers[-1] is convolution


def test_matmul_keeps_precision_of_convolution():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(3, 1, dtype="mixed_bfloat16")(image)
    network = convert_pointwise_to_matmul(keras.Model(image, x))
    assert isinstance(network.layers[-1], PointwiseMatmul)
    assert network(tf.ones((1, 8, 8, 3))).dtype == tf.bfloat16
