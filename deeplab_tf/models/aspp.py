"""Atrous spatial pyramid pooling (DeepLabv3, 1706.05587, Sec. 3.3, Fig. 5).

And its small relative LR-ASPP (MobileNetV3, 1905.02244, Fig. 10), in which the
image-level features are no branch but a gate.
"""

from keras import layers

from deeplab_tf.models.layers import conv_bn_act, separable_conv
from deeplab_tf.models.resampling import ResizeLike, WindowMean


def image_level_features(x, filters: int, window: dict, **style):
    """Returns what the whole image says, at every cell of `x` (Sec. 3.3).

    Args:
        x: High-level features `[batch, height, width, channels]`.
        filters: Depth of the output.
        window: Arguments of `WindowMean`; {} averages everything.
        **style: `normalize` and `activation` of the convolution.
    """
    pooled = WindowMean(name="image_pooling.mean", **window)(x)
    pooled = conv_bn_act(pooled, filters, 1, "image_pooling", **style)
    return ResizeLike(name="image_pooling.resize")(pooled, x)


def aspp(x, rates, filters: int = 256, separable: bool = True, image=None, **style):
    """Returns parallel views of the same features, side by side.

    Args:
        x: High-level features `[batch, height, width, channels]`.
        rates: Atrous rates of the 3x3 branches; the paper pairs (6, 12, 18)
            with output stride 16 and doubles them at output stride 8.
        filters: Depth of every branch; the paper's 256.
        separable: Whether the 3x3 branches are depthwise separable (DeepLabv3+,
            Sec. 3.1) or dense (DeepLabv3).
        image: Image-level features, `[batch, height, width, filters]`, if they
            are to be a branch.
        **style: `normalize` and `activation` of every convolution.

    Returns:
        Features `[batch, height, width, branches * filters]`.
    """
    # In the order of the checkpoints: image level first.
    branches = [] if image is None else [image]
    branches.append(conv_bn_act(x, filters, 1, "aspp0", **style))
    for i, rate in enumerate(rates, 1):
        if separable:
            branch = separable_conv(x, filters, f"aspp{i}", rate=rate, **style)
        else:
            branch = conv_bn_act(x, filters, 3, f"aspp{i}", rate=rate, **style)
        branches.append(branch)
    if len(branches) == 1:
        return branches[0]
    return layers.Concatenate(name="aspp_concat")(branches)


def concat_projection(x, filters: int = 256, dropout: float = 0.1, **style):
    """Returns the branches projected to one depth, some of it dropped in training.

    Args:
        x: Branches `[batch, height, width, channels]`.
        filters: Depth of the output.
        dropout: Fraction dropped after the projection, in training only.
        **style: `normalize` and `activation` of the convolution.
    """
    x = conv_bn_act(x, filters, 1, "concat_projection", **style)
    return layers.Dropout(dropout, name="concat_projection_dropout")(x)
