"""Atrous spatial pyramid pooling (DeepLabv3, 1706.05587, Sec. 3.3, Fig. 5)."""

from keras import layers

from deeplab_tf.models.layers import conv_bn_act, separable_conv
from deeplab_tf.models.resampling import ResizeLike, WindowMean


def image_level_features(x, filters: int, window: dict, **style):
    """Returns the image-level features of `x` at its resolution (Sec. 3.3).

    `window` has the arguments of `WindowMean`; {} averages over the entire image.
    """
    pooled = WindowMean(name="image_pooling.mean", **window)(x)
    pooled = conv_bn_act(pooled, filters, 1, "image_pooling", **style)
    return ResizeLike(name="image_pooling.resize")(pooled, x)


def aspp(
    x,
    rates,
    filters: int = 256,
    dropout: float = 0.1,
    separable: bool = True,
    projection: bool = True,
    window: dict | None = None,
    **style,
):
    """Applies parallel atrous branches to `x`, concatenates and projects them.

    Args:
        x: High-level features `[batch, height, width, channels]`.
        rates: Atrous rates of the 3x3 branches; the paper uses (6, 12, 18) at output
            stride 16 and doubles them at output stride 8.
        filters: Channels of every branch and of the projection.
        dropout: Dropout rate after the projection.
        separable: Whether the 3x3 branches are depthwise separable (DeepLabv3+, Sec.
            3.1) or dense (DeepLabv3).
        projection: Whether to project the concatenated branches to `filters` channels.
        window: Arguments of the `WindowMean` of the image-level branch, {} in the
            paper; None omits the branch.
        **style: `normalize` and `activation` of every convolution.
    """
    branches = []  # image level first, as in the checkpoints
    if window is not None:
        relu = style | {"activation": "relu"}  # never ReLU6 in the official code
        branches.append(image_level_features(x, filters, window, **relu))
    branches.append(conv_bn_act(x, filters, 1, "aspp0", **style))
    for i, rate in enumerate(rates, 1):
        if separable:
            branch = separable_conv(x, filters, f"aspp{i}", rate=rate, **style)
        else:
            branch = conv_bn_act(x, filters, 3, f"aspp{i}", rate=rate, **style)
        branches.append(branch)
    x = (
        layers.Concatenate(name="aspp_concat")(branches)
        if branches[1:]
        else branches[0]
    )
    if projection:
        x = conv_bn_act(x, filters, 1, "concat_projection", **style)
        x = layers.Dropout(dropout, name="concat_projection_dropout")(x)
    return x
