"""The building blocks of every DeepLab network: convolution, normalisation, ReLU.

Layers are called by their scope in the official graph, with `.` for `/` (which
Keras refuses), so the layer `aspp0.BatchNorm` owns `aspp0/BatchNorm/gamma`.
"""

import keras
from keras import layers, ops

from deeplab_tf.models.normalization import make_batch_norm


def truncated_normal(stddev: float):
    """Returns the initialiser that the official code names in most places."""
    return keras.initializers.TruncatedNormal(stddev=stddev)


def conv(
    x,
    filters: int,
    kernel_size: int,
    scope: str,
    *,
    strides: int = 1,
    rate: int = 1,
    initializer=None,
    padding: str = "same",
    **layer_options,
):
    """Returns a convolution of `x`, by the layer `scope`, without a bias.

    Args:
        x: `[batch, height, width, channels]`.
        filters: Depth of the output.
        kernel_size: Side of the kernel.
        scope: Official scope with `.` for `/`.
        strides: Step of the kernel.
        rate: Atrous rate, one for both axes or one for each.
        initializer: Of the kernel; None is slim's default, Xavier uniform.
        padding: "same", or "fixed" as in `pad_fixed`.
        **layer_options: Passed to the layer.
    """
    if strides > 1 and rate != 1:
        # No backend has both at once: a multi-grid in the last unit of a cascade's
        # block needs it. The dense convolution is sampled instead.
        dense = {"rate": rate, "initializer": initializer, **layer_options}
        return subsample(conv(x, filters, kernel_size, scope, **dense), strides, scope)
    convolution = layers.Conv2D(
        filters,
        kernel_size,
        kernel_initializer=_own(initializer),
        **_options(scope, strides, rate, padding) | layer_options,
    )
    return convolution(_padded(x, kernel_size, scope, strides, padding))


def depthwise_conv(
    x,
    kernel_size: int,
    scope: str,
    *,
    strides: int = 1,
    rate: int = 1,
    initializer=None,
    padding: str = "same",
):
    """Returns a depthwise convolution of `x`, by the layer `scope`; see `conv`."""
    convolution = layers.DepthwiseConv2D(
        kernel_size,
        depthwise_initializer=_own(initializer),
        **_options(scope, strides, rate, padding),
    )
    return convolution(_padded(x, kernel_size, scope, strides, padding))


def _own(initializer):
    """Returns an initialiser for one layer; None is slim's default, Xavier uniform."""
    # An initialiser without a seed draws one when it is made and would give every
    # kernel of one shape the same values.
    return initializer.clone() if initializer else "glorot_uniform"


def subsample(x, strides: int, scope: str):
    """Returns every `strides`-th row and column of `x`, the first ones included."""
    pool = layers.MaxPooling2D(
        1, strides, data_format="channels_last", name=f"{scope}.subsample"
    )
    return pool(x)


def _is_fixed(padding: str, strides: int) -> bool:
    return padding == "fixed" and strides > 1


def _options(scope: str, strides: int, rate, padding: str) -> dict:
    """Returns the options that the layers of all convolutions share."""
    return {
        "strides": strides,
        "dilation_rate": rate,
        "padding": "valid" if _is_fixed(padding, strides) else "same",
        "use_bias": False,
        "data_format": "channels_last",
        "name": scope,
    }


def _padded(x, kernel_size: int, scope: str, strides: int, padding: str):
    return pad_fixed(x, kernel_size, scope) if _is_fixed(padding, strides) else x


def pad_fixed(x, kernel_size: int, scope: str):
    """Returns `x` with as many zeros around it whatever its size.

    A strided convolution of it is the dense one, sampled at even positions; the
    SAME padding of TensorFlow shifts images of even size by a pixel instead.
    """
    before = (kernel_size - 1) // 2
    sides = (before, kernel_size - 1 - before)
    pad = layers.ZeroPadding2D(
        (sides, sides), data_format="channels_last", name=f"{scope}.pad"
    )
    return pad(x)


@keras.saving.register_keras_serializable("deeplab_tf")
def q_sigmoid(x):
    """Returns the sigmoid of three straight pieces, with the official constant."""
    return ops.relu6(x + 3.0) * 0.16667


@keras.saving.register_keras_serializable("deeplab_tf")
def clip(x):
    """Returns `x` in [-6, 6], for quantised inference."""
    return ops.clip(x, -6.0, 6.0)


_ACTIVATIONS = {"q_sigmoid": q_sigmoid, "clip": clip}


def activate(x, activation: str | None, scope: str):
    """Returns `activation` of `x`; None returns `x` itself."""
    if activation is None:
        return x
    function = _ACTIVATIONS.get(activation, activation)
    return layers.Activation(function, name=f"{scope}.{activation}")(x)


def conv_bn_act(
    x,
    filters: int,
    kernel_size: int,
    scope: str,
    *,
    normalize,
    activation: str | None = "relu",
    **conv_options,
):
    """Returns convolution, batch normalisation and activation of `x`.

    Args:
        x: `[batch, height, width, channels]`.
        filters: Depth of the output.
        kernel_size: Side of the kernel.
        scope: Official scope with `.` for `/`.
        normalize: `(x, scope) -> x`, see `make_batch_norm`; None adds a bias
            instead.
        activation: Name of the activation; None is linear.
        **conv_options: Passed to `conv`.
    """
    use_bias = normalize is None
    x = conv(x, filters, kernel_size, scope, use_bias=use_bias, **conv_options)
    if normalize is not None:
        x = normalize(x, scope)
    return activate(x, activation, scope)


def depthwise_bn_act(
    x,
    kernel_size: int,
    scope: str,
    *,
    normalize,
    activation: str | None = "relu",
    **conv_options,
):
    """Returns depthwise convolution, batch normalisation and activation of `x`."""
    x = normalize(depthwise_conv(x, kernel_size, scope, **conv_options), scope)
    return activate(x, activation, scope)


def separable_conv(
    x, filters: int, scope: str, *, kernel_size: int = 3, rate: int = 1, **style
):
    """Returns an atrous separable convolution of a head (DeepLabv3+, Sec. 3.1).

    Args:
        x: `[batch, height, width, channels]`.
        filters: Depth of the output.
        scope: Official scope; the halves are `<scope>_depthwise` and
            `<scope>_pointwise`.
        kernel_size: Side of the kernel.
        rate: Atrous rate, one for both axes or one for each.
        **style: `normalize` and `activation` that follow both halves.
    """
    depthwise = {"rate": rate, "initializer": truncated_normal(0.33)}
    x = depthwise_bn_act(x, kernel_size, f"{scope}_depthwise", **depthwise, **style)
    pointwise = truncated_normal(0.06)
    return conv_bn_act(
        x, filters, 1, f"{scope}_pointwise", initializer=pointwise, **style
    )


def head_style(momentum: float | None = None, bounded: bool = False) -> dict:
    """Returns `normalize` and `activation` of everything after the backbone.

    Args:
        momentum: Decay of the moving statistics, None for 0.9997.
        bounded: Whether ReLU6 replaces ReLU.
    """
    normalize = make_batch_norm(momentum, 0.9997, epsilon=1e-5)
    return {"normalize": normalize, "activation": "relu6" if bounded else "relu"}
