"""Atrous spatial pyramid pooling (DeepLabv3, 1706.05587, Sec. 3.3, Fig. 5)."""

from keras import layers

from deeplab_tf.models.layers import conv_bn_act, separable_conv
from deeplab_tf.models.resampling import ResizeLike, WindowMean


def image_level_features(x, filters: int, window: dict, **style):
    """Returns features averaged over the image, at every cell of `x` (Sec. 3.3).

    Args:
        x: High-level features `[batch, height, width, channels]`.
        filters: Depth of the output.
        window: Arguments of `WindowMean`; {} averages everything.
        **style: `normalize` and `activation` of the convolution.
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
    """Returns parallel branches over the same features, projected to one depth.

    Args:
        x: High-level features `[batch, height, width, channels]`.
        rates: Atrous rates of the 3x3 branches; the paper pairs (6, 12, 18)
            with output stride 16 and doubles them at output stride 8.
        filters: Depth of every branch and of the projection; the paper's 256.
        dropout: Fraction dropped after the projection, in training only.
        separable: Whether the 3x3 branches are depthwise separable (DeepLabv3+,
            Sec. 3.1) or dense (DeepLabv3).
        projection: Whether the branches are projected; else they are joined only.
        window: Arguments of the `WindowMean` of the image-level branch, {} being the
            paper's; None leaves the branch out.
        **style: `normalize` and `activation` of every convolution.

    Returns:
        Features `[batch, height, width, filters]`; without projection the depth is
        that of all branches.
    """
    branches = []  # in the order of the checkpoints: image level first
    if window is not None:
        relu = style | {"activation": "relu"}  # the official code has no ReLU6 here
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
