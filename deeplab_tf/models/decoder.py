"""The decoder of DeepLabv3+ (1802.02611, Fig. 2 and Sec. 4.1)."""

from keras import layers

from deeplab_tf.models import layers as deeplab_layers


def _refine(x, filters, scope, index, suffix, separable, normalize):
    """Returns one 3x3 convolution of the decoder, named as in the checkpoints."""
    if separable:
        name = f"{scope}.decoder_conv{index}{suffix}"
        return deeplab_layers.separable_conv(x, filters, name, normalize=normalize)
    # slim.repeat numbers its convolutions from 1, inside the scope of the first.
    block = f"decoder_conv0{suffix}"
    return deeplab_layers.conv_bn_act(
        x, filters, 3, f"{scope}.{block}.{block}_{index + 1}", normalize=normalize
    )


def decoder(
    x,
    low_level,
    filters: int = 256,
    projection_filters: int = 48,
    separable: bool = True,
    batch_norm_momentum: float | None = None,
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
        separable: Whether the refining convolutions are depthwise separable.
        batch_norm_momentum: Decay of the moving statistics, None for 0.9997.

    Returns:
        Features at the resolution of the last of `low_level`,
        `[batch, height_n, width_n, filters]`.
    """
    normalize = deeplab_layers.head_batch_norm(batch_norm_momentum)
    for level, features in enumerate(low_level):
        suffix = f"_{level}" if level else ""
        reduced = deeplab_layers.conv_bn_act(
            features,
            projection_filters,
            1,
            f"decoder.feature_projection0{suffix}",
            normalize=normalize,
        )
        x = deeplab_layers.ResizeLike(name=f"decoder.resize{suffix}")(x, reduced)
        x = layers.Concatenate(name=f"decoder.concat{suffix}")([x, reduced])
        for index in range(2):
            x = _refine(x, filters, "decoder", index, suffix, separable, normalize)
    return x
