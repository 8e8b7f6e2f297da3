"""Reference heads of the official graph, written in plain TensorFlow.

The tests compare them with models whose backbone is a stub (`stub_backbone`).
"""

import keras
import numpy as np
import tensorflow as tf
from golden_case import value

from deeplab_tf.config import ModelConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables

NARROW = {
    "num_classes": 3,
    "atrous_rates": [2, 3],
    "aspp_convs_filters": 8,
    "decoder_filters": 6,
}
# 5 x 7 cells at output stride 16, 17 x 25 at the decoder's stride 4.
BLOCKS_OF_8 = np.random.RandomState(0).uniform(60, 255, (1, 9, 13, 3))
IMAGE = BLOCKS_OF_8.repeat(8, 1).repeat(8, 2)[:, :65, :97].astype("float32")
LEVEL = ("feature_projection0", "decoder_conv0", "decoder_conv1")
DEPTHS = {"high_level": 32, 4: 16, 8: 24, 16: 28}


def strided_backbone(image, output_stride, **_):
    """Returns the feature maps of a backbone, each from one convolution."""
    strides = {"high_level": output_stride, 4: 4, 8: 8, 16: 16}
    strides = {key: min(stride, output_stride) for key, stride in strides.items()}
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


def build(scale_of=lambda name: 1.0, **flags):
    """Builds a narrow model; returns it and its variables by official name."""
    config = ModelConfig.from_official_flags(NARROW | flags)
    return fill_variables(build_model(config), scale_of)


def fill_variables(model, scale_of=lambda name: 1.0):
    """Fills a model with golden values; returns it and the values by official name."""
    variables = official_variables(model)
    w = {n: np.float32(scale_of(n)) * value(n, v.shape) for n, v in variables.items()}
    for name, variable in variables.items():
        variable.assign(w[name])
    return model, w


def features(model):
    """Returns the high-level features of the test image, then the low-level ones."""
    found = model.get_layer("backbone")(model.get_layer("normalize")(IMAGE))
    return found if isinstance(found, list) else [found]  # Keras unpacks a single one


def logits(model, image=IMAGE):
    return keras.Model(model.input, model.get_layer("logits").output)(image)


def assert_same(found, expected, gain=1.0):
    """Asserts equality up to rounding, which grows with `gain`."""
    np.testing.assert_allclose(found, expected, atol=1e-4 * gain * np.std(expected))


def linear(x):
    return x


def norm(x, w, scope, epsilon):
    gamma, beta, mean, variance = (
        w[f"{scope}/BatchNorm/{leaf}"]
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return (x - mean) * gamma / np.sqrt(variance + epsilon) + beta


def conv(x, w, scope, rate=1, act=tf.nn.relu, *, strides=1, epsilon=1.001e-5):
    """Applies a convolution, then its bias or batch normalisation, then `act`."""
    kernel = w[f"{scope}/weights"]
    x = tf.nn.conv2d(x, kernel, strides, "SAME", dilations=rate)
    if f"{scope}/biases" in w:
        return act(x + w[f"{scope}/biases"])
    return act(norm(x, w, scope, epsilon))


def separable_conv(x, w, scope, rate=1, act=tf.nn.relu):
    """Applies a separable convolution with an activation after each half."""
    kernel, rates = w[f"{scope}_depthwise/depthwise_weights"], np.broadcast_to(rate, 2)
    x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME", dilations=rates)
    x = act(norm(x, w, f"{scope}_depthwise", 1.001e-5))
    return conv(x, w, f"{scope}_pointwise", act=act)


def windowed_image_level(x, w):
    # ceil(33 / 16) = 3 and ceil(49 / 16) = 4 cells at a time: 3 x 2 means.
    pooled = window_means(x.numpy(), (3, 4), (1, 2))
    return resize_like(conv(pooled, w, "image_pooling"), x)


def image_level(x, w, act=tf.nn.relu):
    mean = tf.reduce_mean(x, axis=(1, 2), keepdims=True)
    return conv(mean, w, "image_pooling", act=act) * tf.ones_like(x[..., :1])


def branches(x, w, atrous=separable_conv, act=tf.nn.relu):
    """Returns all branches but the image-level one; their rates are 2 and 3."""
    return [conv(x, w, "aspp0", act=act)] + [
        atrous(x, w, f"aspp{i}", rate, act) for i, rate in ((1, 2), (2, 3))
    ]


def project(parts, w, act=tf.nn.relu):
    return conv(tf.concat(parts, -1), w, "concat_projection", act=act)


def hard_sigmoid(x):
    return tf.nn.relu6(x + 3.0) * 0.16667


def resize_like(x, like):
    """Resizes `x` to the size of another tensor with TensorFlow's own op."""
    return resize(x, like.shape[1:3])


def resize(x, size):
    """Resizes `x` with TensorFlow's own op."""
    return tf.raw_ops.ResizeBilinear(images=x, size=size, align_corners=True)


def window_means(x, window, strides):
    """Returns the mean of every window that lies within `x`."""
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


def decode(x, low_level, w, levels, add=False, act=tf.nn.relu, sizes=None):
    """Returns the output of the decoder.

    Args:
        levels: Scopes of each level: the projection, then the convolutions.
        add: Adds the low-level features after the convolution instead of joining them.
        act: The activation.
        sizes: Height and width of each level; None means those of the features.
    """
    sizes = sizes or [low.shape[1:3] for low in low_level]
    for low, (projection, *scopes), size in zip(low_level, levels, sizes, strict=True):
        reduced = conv(low, w, f"decoder/{projection}", act=act)
        reduced = resize(reduced, size)
        x = resize_like(x, reduced)
        if not add:
            x = tf.concat([x, reduced], -1)
        for scope in scopes:
            convolve = conv if f"decoder/{scope}/weights" in w else separable_conv
            x = convolve(x, w, f"decoder/{scope}", act=act)
        if add:
            x = x + reduced
    return x
