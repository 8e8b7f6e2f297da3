"""Atrous spatial pyramid pooling (DeepLabv3, 1706.05587, Sec. 3.3, Fig. 5)."""

import functools

from keras import layers

from deeplab_tf.models import layers as deeplab_layers


def image_level_features(x, filters: int, normalize, window=None, strides=(1, 1)):
    """Returns what the whole image says, at every cell of `x` (Sec. 3.3).

    Args:
        x: High-level features `[batch, height, width, channels]`.
        filters: Depth of the output.
        normalize: `(x, scope) -> x`.
        window: Cells averaged into one, height and width; None averages all.
        strides: Steps of the window.
    """
    pooled = deeplab_layers.WindowMean(window, strides, name="image_pooling.mean")(x)
    pooled = deeplab_layers.conv_bn_act(
        pooled, filters, 1, "image_pooling", normalize=normalize
    )
    return deeplab_layers.ResizeLike(name="image_pooling.resize")(pooled, x)


def aspp(
    x,
    rates,
    filters: int = 256,
    separable: bool = True,
    image_pooling=(None, (1, 1)),
    dropout: float = 0.1,
    batch_norm_momentum: float | None = None,
):
    """Returns parallel views of the same features, projected back.

    Args:
        x: High-level features `[batch, height, width, channels]`.
        rates: Atrous rates of the 3x3 branches; the paper pairs (6, 12, 18)
            with output stride 16 and doubles them at output stride 8.
        filters: Depth of every branch and of the projection; the paper's 256.
        separable: Whether the 3x3 branches are depthwise separable (DeepLabv3+,
            Sec. 3.1) or dense (DeepLabv3).
        image_pooling: Window (None: everything) and strides, in cells, of the
            pooling behind the image-level features; None leaves these out.
        dropout: Fraction dropped after the projection, in training only.
        batch_norm_momentum: Decay of the moving statistics, None for 0.9997.

    Returns:
        Features `[batch, height, width, filters]`.
    """
    normalize = deeplab_layers.head_batch_norm(batch_norm_momentum)
    conv = functools.partial(deeplab_layers.conv_bn_act, normalize=normalize)
    branches = []
    if image_pooling is not None:
        branches.append(image_level_features(x, filters, normalize, *image_pooling))
    branches.append(conv(x, filters, 1, "aspp0"))
    for i, rate in enumerate(rates, 1):
        if separable:
            branch = deeplab_layers.separable_conv(
                x, filters, f"aspp{i}", normalize=normalize, rate=rate
            )
        else:
            branch = conv(x, filters, 3, f"aspp{i}", rate=rate)
        branches.append(branch)
    if len(branches) > 1:  # in the order of the checkpoints: image level first
        x = layers.Concatenate(name="aspp_concat")(branches)
    else:
        (x,) = branches
    x = conv(x, filters, 1, "concat_projection")
    return layers.Dropout(dropout, name="concat_projection_dropout")(x)
