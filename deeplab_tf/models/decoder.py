"""The decoder of DeepLabv3+ (1802.02611, Fig. 2 and Sec. 4.1).

And its light relative of MobileNetV3 (1905.02244, Fig. 10), which adds instead of
joining and whose depth is the number of classes.
"""

from keras import layers

from deeplab_tf.models.layers import conv_bn_act, separable_conv
from deeplab_tf.models.resampling import ResizeLike

_SCOPE = "decoder"


def _refine(x, filters, kernel_size, count, suffix, separable, **style):
    """Returns `x` after the convolutions of one level, named as in the checkpoints."""
    # slim.repeat numbers its convolutions from 1, inside the scope of the first.
    block = f"decoder_conv0{suffix}"
    for i in range(count):
        if separable and kernel_size > 1:
            scope = f"{_SCOPE}.decoder_conv{i}{suffix}"
            x = separable_conv(x, filters, scope, kernel_size=kernel_size, **style)
        else:
            scope = f"{_SCOPE}.{block}.{block}_{i + 1}"
            x = conv_bn_act(x, filters, kernel_size, scope, **style)
    return x


def _level(x, low_level, suffix, projection_filters, **style):
    """Returns context and reduced low-level features, of the same size."""
    scope = f"{_SCOPE}.feature_projection0{suffix}"
    reduced = conv_bn_act(low_level, projection_filters, 1, scope, **style)
    return ResizeLike(name=f"{_SCOPE}.resize{suffix}")(x, reduced), reduced


def _suffix(level: int) -> str:
    return f"_{level}" if level else ""


def decoder(
    x,
    low_level,
    filters: int = 256,
    projection_filters: int = 48,
    convolutions: int = 2,
    kernel_size: int = 3,
    separable: bool = True,
    **style,
):
    """Returns context features with object boundaries restored.

    At each level the low-level features are reduced (to 48 channels, so that
    they do not outweigh the context), joined to the up-sampled context and
    refined by two 3x3 convolutions (Table 2: two are better than one or three).

    Args:
        x: Context features `[batch, height, width, channels]`.
        low_level: Low-level features from coarse to fine,
            each `[batch, height_i, width_i, channels_i]`.
        filters: Depth of the refining convolutions.
        projection_filters: Depth of the reduced low-level features (Table 1).
        convolutions: Number of refining convolutions at each level.
        kernel_size: Side of their kernels.
        separable: Whether they are depthwise separable.
        **style: `normalize` and `activation` of every convolution.

    Returns:
        Features at the resolution of the last of `low_level`,
        `[batch, height_n, width_n, filters]`.
    """
    for level, features in enumerate(low_level):
        suffix = _suffix(level)
        joined = _level(x, features, suffix, projection_filters, **style)
        x = layers.Concatenate(name=f"{_SCOPE}.concat{suffix}")(joined)
        x = _refine(x, filters, kernel_size, convolutions, suffix, separable, **style)
    return x


def sum_decoder(
    x, low_level, filters: int = 256, kernel_size: int = 3, separable=True, **style
):
    """Returns context features to which low-level ones are added.

    One convolution of the up-sampled context meets the low-level features, both
    of the depth `filters`. The arguments are those of `decoder` of these names.
    """
    for level, features in enumerate(low_level):
        suffix = _suffix(level)
        x, reduced = _level(x, features, suffix, filters, **style)
        if separable:
            scope = f"{_SCOPE}.decoder_split_sep_conv0{suffix}"
            x = separable_conv(x, filters, scope, kernel_size=kernel_size, **style)
        else:
            scope = f"{_SCOPE}.decoder_conv0{suffix}"
            x = conv_bn_act(x, filters, kernel_size, scope, **style)
        x = layers.Add(name=f"{_SCOPE}.sum{suffix}")([x, reduced])
    return x
