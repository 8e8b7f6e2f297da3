"""The decoder of DeepLabv3+ (1802.02611, Fig. 2 and Sec. 4.1).

Also the lighter decoder of MobileNetV3 (1905.02244, Fig. 10), which adds the features
instead of concatenating them and has as many channels as classes.
"""

from collections.abc import Callable

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
            x = separable(x, filters, scope, kernel_size=kernel_size, **style)
        else:
            scope = f"{_SCOPE}.{block}.{block}_{i + 1}"
            x = conv_bn_act(x, filters, kernel_size, scope, **style)
    return x


def _project_and_resize(x, low_level, suffix, projection_filters, resizing, **style):
    """Resizes `x` to the low-level features; returns it and their projection."""
    features, scale = low_level
    scope = f"{_SCOPE}.feature_projection0{suffix}"
    projected = conv_bn_act(features, projection_filters, 1, scope, **style)
    if scale != 1:
        resize = ResizeLike(scale, resizing, name=f"{scope}.resize")
        projected = resize(projected, projected)
    resize = ResizeLike(resizing=resizing, name=f"{_SCOPE}.resize{suffix}")
    return resize(x, projected), projected


def _suffix(level: int) -> str:
    """Returns the suffix of layer names of a level: "" for the first, then "_1"."""
    return f"_{level}" if level else ""


def decoder(
    x,
    low_level,
    filters: int = 256,
    projection_filters: int = 48,
    convolutions: int = 2,
    kernel_size: int = 3,
    separable: Callable | None = separable_conv,
    resizing: str = "align_corners",
    **style,
):
    """Refines context features with low-level features to recover object boundaries.

    At each level the low-level features are projected (to 48 channels, Table 1, so that
    they do not outweigh the context), concatenated with the upsampled context and
    refined by two 3x3 convolutions (Table 2: two are better than one or three).

    Args:
        x: Context features `[batch, height, width, channels]`.
        low_level: For each level, coarse to fine, low-level features `[batch, height,
            width, channels]` and a factor on their size: 1, or the output stride over
            that of the decoder if it is less.
        filters: Channels of the refining convolutions and of the output.
        projection_filters: Channels of the projected low-level features.
        convolutions: Number of refining convolutions at each level.
        kernel_size: Kernel size of the refining convolutions.
        separable: Separable convolution of the refinement; None makes it dense.
        resizing: How to resize the context; see `resize_bilinear`.
        **style: `normalize` and `activation` of every convolution.
    """
    for level, features in enumerate(low_level):
        suffix = _suffix(level)
        both = _project_and_resize(
            x, features, suffix, projection_filters, resizing, **style
        )
        x = layers.Concatenate(name=f"{_SCOPE}.concat{suffix}")(both)
        x = _refine(x, filters, kernel_size, convolutions, suffix, separable, **style)
    return x


def sum_decoder(
    x,
    low_level,
    filters: int = 256,
    kernel_size: int = 3,
    separable: Callable | None = separable_conv,
    resizing: str = "align_corners",
    **style,
):
    """Adds the convolved, upsampled context to projected low-level features.

    Both have `filters` channels; see `decoder` for the arguments.
    """
    for level, features in enumerate(low_level):
        suffix = _suffix(level)
        x, projected = _project_and_resize(
            x, features, suffix, filters, resizing, **style
        )
        if separable:
            scope = f"{_SCOPE}.decoder_split_sep_conv0{suffix}"
            x = separable(x, filters, scope, kernel_size=kernel_size, **style)
        else:
            scope = f"{_SCOPE}.decoder_conv0{suffix}"
            x = conv_bn_act(x, filters, kernel_size, scope, **style)
        x = layers.Add(name=f"{_SCOPE}.sum{suffix}")([x, projected])
    return x
