"""The building blocks of every DeepLab network: convolution, normalisation, ReLU.

Layers are named after their scope in the official graph, with `.` instead of `/`, which
Keras does not allow: the layer `aspp0.BatchNorm` has `aspp0/BatchNorm/gamma`.
"""

import keras
from keras import layers, ops

from deeplab_tf.models.normalization import make_batch_norm


def truncated_normal(stddev: float):
    """Returns the initialiser that most of the official code uses."""
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
    """Applies a convolution without a bias.

    Args:
        x: `[batch, height, width, channels]`.
        filters: Output channels.
        kernel_size: Size of the square kernel.
        scope: Official scope with `.` instead of `/`; the name of the layer.
        strides: Stride of both axes.
        rate: Atrous rate, one for both axes or one per axis.
        initializer: Kernel initialiser; None means Xavier uniform, the default of slim.
        padding: "same", or "fixed" (see `pad_fixed`).
        **layer_options: Passed to the layer.
    """
    if strides > 1 and rate != 1:
        # No backend supports both; a multi-grid in the last unit of a cascaded block
        # needs them. Subsample the dense convolution instead.
        dense = {"rate": rate, "initializer": initializer, **layer_options}
        return subsample(conv(x, filters, kernel_size, scope, **dense), strides, scope)
    convolution = layers.Conv2D(
        filters,
        kernel_size,
        kernel_initializer=_clone_initializer(initializer),
        **_conv_options(scope, strides, rate, padding) | layer_options,
    )
    if _is_padding_fixed(padding, strides):
        x = pad_fixed(x, kernel_size, scope)
    return convolution(x)


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
    """Applies a depthwise convolution without a bias; see `conv`."""
    convolution = layers.DepthwiseConv2D(
        kernel_size,
        depthwise_initializer=_clone_initializer(initializer),
        **_conv_options(scope, strides, rate, padding),
    )
    if _is_padding_fixed(padding, strides):
        x = pad_fixed(x, kernel_size, scope)
    return convolution(x)


def _clone_initializer(initializer):
    # A Keras initialiser draws its seed once, so if it were shared, all kernels of the
    # same shape would get the same values.
    return initializer.clone() if initializer else "glorot_uniform"


def subsample(x, strides: int, scope: str):
    """Returns every `strides`-th row and column of `x`, including the first."""
    pool = layers.MaxPooling2D(
        1, strides, data_format="channels_last", name=f"{scope}.subsample"
    )
    return pool(x)


def _is_padding_fixed(padding: str, strides: int) -> bool:
    return padding == "fixed" and strides > 1


def _conv_options(scope: str, strides: int, rate, padding: str) -> dict:
    return {
        "strides": strides,
        "dilation_rate": rate,
        "padding": "valid" if _is_padding_fixed(padding, strides) else "same",
        "use_bias": False,
        "data_format": "channels_last",
        "name": scope,
    }


def pad_fixed(x, kernel_size: int, scope: str):
    """Pads `x` with zeros that depend only on the kernel size.

    A strided convolution then samples the dense one at even positions, whereas the SAME
    padding of TensorFlow shifts images of even size by a pixel.
    """
    before = (kernel_size - 1) // 2
    sides = (before, kernel_size - 1 - before)
    pad = layers.ZeroPadding2D(
        (sides, sides), data_format="channels_last", name=f"{scope}.pad"
    )
    return pad(x)


@keras.saving.register_keras_serializable("deeplab_tf")
def q_sigmoid(x):
    """Returns the piecewise linear sigmoid with the official constant."""
    return ops.relu6(x + 3.0) * 0.16667


@keras.saving.register_keras_serializable("deeplab_tf")
def clip(x):
    """Clips `x` to [-6, 6], for quantised inference."""
    return ops.clip(x, -6.0, 6.0)


_ACTIVATIONS = {"q_sigmoid": q_sigmoid, "clip": clip}


def activate(x, activation: str | None, scope: str):
    """Applies an activation; None returns `x`."""
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
    """Applies convolution, batch normalisation and activation; see `conv`.

    `normalize` is a function `(x, scope) -> x` such as that of `make_batch_norm`; None
    adds a bias instead. An `activation` of None is linear.
    """
    options = {"use_bias": normalize is None, **conv_options}
    x = conv(x, filters, kernel_size, scope, **options)
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
    """Applies depthwise convolution, batch normalisation and activation.

    See `conv_bn_act` for the arguments.
    """
    x = normalize(depthwise_conv(x, kernel_size, scope, **conv_options), scope)
    return activate(x, activation, scope)


def separable_conv(
    x,
    filters: int,
    scope: str,
    *,
    kernel_size: int = 3,
    rate: int = 1,
    depthwise_normalization: bool = True,
    **style,
):
    """Applies an atrous separable convolution in a head (DeepLabv3+, Sec. 3.1).

    The layers are `<scope>_depthwise` and `<scope>_pointwise`; normalisation and
    activation, which are in `style`, follow both, or only the latter.
    """
    depthwise = {"rate": rate, "initializer": truncated_normal(0.33)}
    if depthwise_normalization:
        x = depthwise_bn_act(x, kernel_size, f"{scope}_depthwise", **depthwise, **style)
    else:
        x = depthwise_conv(x, kernel_size, f"{scope}_depthwise", **depthwise)
    pointwise = truncated_normal(0.06)
    return conv_bn_act(
        x, filters, 1, f"{scope}_pointwise", initializer=pointwise, **style
    )


def head_style(
    momentum: float | None = None, epsilon: float | None = None, bounded: bool = False
) -> dict:
    """Returns the `normalize` and `activation` of all layers after the backbone.

    A `momentum` of None means 0.9997, and an `epsilon` of None 1e-5; `bounded` selects
    ReLU6.
    """
    normalize = make_batch_norm(momentum, epsilon, official=(0.9997, 1e-5))
    return {"normalize": normalize, "activation": "relu6" if bounded else "relu"}
