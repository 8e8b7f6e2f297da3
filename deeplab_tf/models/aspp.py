"""Atrous spatial pyramid pooling (DeepLabv3, 1706.05587, Sec. 3.3, Fig. 5)."""

from collections.abc import Callable

from keras import layers

from deeplab_tf.models.layers import conv_bn_act, separable_conv
from deeplab_tf.models.resampling import ResizeLike, WindowMean


def image_level_features(
    x, filters: int, window: dict, resizing: str = "align_corners", **style
):
    """Returns the image-level features of `x` at its resolution (Sec. 3.3).

    `window` has the arguments of `WindowMean`; {} averages over the entire image. See
    `aspp` for the other arguments.
    """
    pooled = WindowMean(name="image_pooling.mean", **window)(x)
    pooled = conv_bn_act(pooled, filters, 1, "image_pooling", **style)
    resize = ResizeLike(resizing=resizing, name="image_pooling.resize")
    return resize(pooled, x)


def aspp(
    x,
    rates,
    filters: int = 256,
    dropout: float = 0.1,
    separable: Callable | None = separable_conv,
    projection_kernel_size: int | None = 1,
    window: dict | None = None,
    resizing: str = "align_corners",
    **style,
):
    """Applies parallel atrous branches to `x`, concatenates and projects them.

    Args:
        x: High-level features `[batch, height, width, channels]`.
        rates: Atrous rates of the 3x3 branches; the paper uses (6, 12, 18) at output
            stride 16 and doubles them at output stride 8.
        filters: Channels of every branch and of the projection.
        dropout: Dropout rate after the projection.
        separable: Convolution of depthwise separable 3x3 branches (DeepLabv3+, Sec.
            3.1); None makes them dense (DeepLabv3).
        projection_kernel_size: Kernel size of the convolution that projects the
            concatenated branches to `filters` channels; None omits it.
        window: Arguments of the `WindowMean` of the image-level branch, {} in the
            paper; None omits the branch.
        resizing: How to resize the image-level features; see `resize_bilinear`.
        **style: `normalize` and `activation` of every convolution.
    """
    branches = []  # image level first, as in the checkpoints
    if window is not None:
        relu = style | {"activation": "relu"}  # never ReLU6 in the official code
        branches.append(image_level_features(x, filters, window, resizing, **relu))
    branches.append(conv_bn_act(x, filters, 1, "aspp0", **style))
    for i, rate in enumerate(rates, 1):
        branches.append(
            _spatial_conv(x, filters, f"aspp{i}", separable, rate=rate, **style)
        )
    x = (
        layers.Concatenate(name="aspp_concat")(branches)
        if branches[1:]
        else branches[0]
    )
    if projection_kernel_size is not None:
        size = projection_kernel_size
        x = conv_bn_act(x, filters, size, "concat_projection", **style)
        x = layers.Dropout(dropout, name="concat_projection_dropout")(x)
    return x


def refine_context(x, filters: int, count: int, separable: Callable | None, **style):
    """Applies 3x3 convolutions after the ASPP, as other frameworks do; see `aspp`."""
    for i in range(1, count + 1):
        x = _spatial_conv(x, filters, f"aspp_conv_{i}", separable, **style)
    return x


def _spatial_conv(x, filters, scope, separable, **options):
    """Applies a 3x3 convolution, separable unless `separable` is None."""
    if separable:
        return separable(x, filters, scope, **options)
    return conv_bn_act(x, filters, 3, scope, **options)
