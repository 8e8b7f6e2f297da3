"""The decoder of DeepLabv3+ (1802.02611, Fig. 2 and Sec. 4.1).

Also the lighter decoder of MobileNetV3 (1905.02244, Fig. 10), which adds the features
instead of concatenating them and has as many channels as classes.
"""

from collections.abc import Sequence

from keras import layers

from deeplab_tf.models.layers import conv_bn_act, separable_conv
from deeplab_tf.models.resampling import ResizeLike

_SCOPE = "decoder"


def _refine(x, filters, kernel_size, count, suffix, separable, **style):
    """Applies the convolutions of a level, with their names in the checkpoints."""
    # slim.repeat numbers the convolutions from 1, inside the scope of the first.
    block = f"decoder_conv0{suffix}"
    for i in range(count):
        if separable and kernel_size > 1:
            scope = f"{_SCOPE}.decoder_conv{i}{suffix}"
            x = separable_conv(x, filters, scope, kernel_size=kernel_size, **style)
        else:
            scope = f"{_SCOPE}.{block}.{block}_{i + 1}"
            x = conv_bn_act(x, filters, kernel_size, scope, **style)
    return x


def _project_and_resize(x, low_level, scale, suffix, projection_filters, **style):
    """Resizes `x` to the low-level features; returns it and their projection."""
    scope = f"{_SCOPE}.feature_projection0{suffix}"
    projected = conv_bn_act(low_level, projection_filters, 1, scope, **style)
    if scale != 1:
        projected = ResizeLike(scale, name=f"{scope}.resize")(projected, projected)
    return ResizeLike(name=f"{_SCOPE}.resize{suffix}")(x, projected), projected


def _suffix(level: int) -> str:
    return f"_{level}" if level else ""


def decoder(
    x,
    low_level,
    scales: Sequence[float],
    filters: int = 256,
    projection_filters: int = 48,
    convolutions: int = 2,
    kernel_size: int = 3,
    separable: bool = True,
    **style,
):
    """Refines context features with low-level features to recover object boundaries.

    At each level the low-level features are projected (to 48 channels, Table 1, so that
    they do not outweigh the context), concatenated with the upsampled context and
    refined by two 3x3 convolutions (Table 2: two are better than one or three).

    Args:
        x: Context features `[batch, height, width, channels]`.
        low_level: Low-level features, each `[batch, height, width, channels]`, coarse
            to fine.
        scales: Factor on the size of each low-level features: 1, or less if the output
            stride is below the stride of the decoder.
        filters: Channels of the refining convolutions and of the output.
        projection_filters: Channels of the projected low-level features.
        convolutions: Number of refining convolutions at each level.
        kernel_size: Kernel size of the refining convolutions.
        separable: Whether the refining convolutions are depthwise separable.
        **style: `normalize` and `activation` of every convolution.
    """
    for level, (features, scale) in enumerate(zip(low_level, scales, strict=True)):
        suffix = _suffix(level)
        both = _project_and_resize(
            x, features, scale, suffix, projection_filters, **style
        )
        x = layers.Concatenate(name=f"{_SCOPE}.concat{suffix}")(both)
        x = _refine(x, filters, kernel_size, convolutions, suffix, separable, **style)
    return x


def sum_decoder(
    x,
    low_level,
    scales: Sequence[float],
    filters: int = 256,
    kernel_size: int = 3,
    separable: bool = True,
    **style,
):
    """Adds the convolved, upsampled context to projected low-level features.

    Both have `filters` channels; see `decoder` for the arguments.
    """
    for level, (features, scale) in enumerate(zip(low_level, scales, strict=True)):
        suffix = _suffix(level)
        x, projected = _project_and_resize(x, features, scale, suffix, filters, **style)
        if separable:
            scope = f"{_SCOPE}.decoder_split_sep_conv0{suffix}"
            x = separable_conv(x, filters, scope, kernel_size=kernel_size, **style)
        else:
            scope = f"{_SCOPE}.decoder_conv0{suffix}"
            x = conv_bn_act(x, filters, kernel_size, scope, **style)
        x = layers.Add(name=f"{_SCOPE}.sum{suffix}")([x, projected])
    return x
