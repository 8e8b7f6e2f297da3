"""Pointwise convolutions as products: the same results from the same variables."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import value

from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.pointwise import PointwiseMatmul, convert_pointwise_to_matmul
from deeplab_tf.models.recomputation import recompute_backbone
from deeplab_tf.models.variables import official_variables


def small_model(variant, **options):
    """Returns a model with golden weights, inner logits alone."""
    config = ModelConfig(
        variant,
        num_classes=5,
        context=ContextConfig(rates=(1, 2), filters=16),
        decoder=DecoderConfig(filters=16),
        **options,
    )
    model = build_model(config)
    for name, variable in official_variables(model).items():
        variable.assign(value(name, variable.shape))
    return keras.Model(model.input, model.get_layer("logits").output)


def kinds(function, *arguments):
    """Returns how often each operation is in what TensorFlow runs."""
    graph = tf.function(function).get_concrete_function(*arguments).graph
    names = [op.type for op in graph.get_operations()]
    return {name: names.count(name) for name in ("Conv2D", "MatMul")}


def outcome(network, images):
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
def test_a_network_of_products_is_the_network(variant, wrap, precision):
    # In float32 a few features round to the other side of a ReLU's corner.
    precision("float64")
    network = small_model(variant)
    products = wrap(convert_pointwise_to_matmul(network))
    images = np.random.RandomState(0).uniform(0, 255, (2, 33, 33, 3)).astype("float32")
    images = tf.constant(images)
    expected, gradients = outcome(network, images)
    found, of_products = outcome(products, images)
    # Variables are shared, and none is added.
    assert {id(v) for v in products.variables} == {id(v) for v in network.variables}
    # The logits alone are float32: sums of 16 terms, which processors add differently.
    rounding = 16 * np.finfo(np.float32).epsneg * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding)
    assert of_products.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = np.abs(gradient).max() + 1e-6
        np.testing.assert_allclose(
            of_products[name], gradient, atol=1e-4 * scale, err_msg=name
        )


def test_every_scale_of_a_pyramid_has_the_same_products():
    network = small_model("mobilenet_v2", image_pyramid=(0.5, 1.0))
    products = convert_pointwise_to_matmul(network)
    assert {id(v) for v in products.variables} == {id(v) for v in network.variables}
    images = tf.ones((1, 33, 33, 3))
    assert kinds(products, images)["Conv2D"] == 2
    expected = network(images)
    np.testing.assert_allclose(products(images), expected, atol=1e-4 * np.std(expected))


def test_pointwise_convolutions_of_few_positions_are_products():
    network = small_model("mobilenet_v2")
    images = tf.zeros((2, 33, 33, 3))
    before = kinds(network, images)
    after = kinds(convert_pointwise_to_matmul(network), images)
    assert after["MatMul"] > 30
    # What is left strides or is larger than 1x1.
    assert before["Conv2D"] - after["Conv2D"] == after["MatMul"] - before["MatMul"]
    assert after["Conv2D"] == 1


@pytest.mark.parametrize(
    ("shape", "is_product"),
    [((4, 64, 64, 3), True), ((4, 64, 65, 3), False), ((None, 8, 8, 3), False)],
)
def test_many_or_unknown_positions_are_convolved(shape, is_product):
    layer = keras.layers.Conv2D(2, 1, activation="relu", bias_initializer="ones")
    product = PointwiseMatmul(layer)
    layer.build(shape)
    images = tf.random.stateless_normal([n or 4 for n in shape], (0, 0))
    np.testing.assert_allclose(product(images), layer(images), atol=1e-6)
    found = kinds(product, tf.TensorSpec(shape))
    assert found == {"Conv2D": 1 - is_product, "MatMul": int(is_product)}


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
def test_other_convolutions_are_left_alone(options):
    image = keras.Input((3, 3, 3))
    convolution = keras.layers.Conv2D(**{"filters": 3, "kernel_size": 1, **options})
    network = convert_pointwise_to_matmul(keras.Model(image, convolution(image)))
    assert network.layers[-1] is convolution


def test_products_compute_in_the_precision_of_the_convolution():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(3, 1, dtype="mixed_bfloat16")(image)
    network = convert_pointwise_to_matmul(keras.Model(image, x))
    assert isinstance(network.layers[-1], PointwiseMatmul)
    assert network(tf.ones((1, 8, 8, 3))).dtype == tf.bfloat16
