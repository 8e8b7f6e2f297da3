"""LR-ASPP, the ASPP of mobile models (MobileNetV3, 1905.02244, Fig. 10)."""

from keras import layers

from deeplab_tf.models.aspp import aspp, image_level_features


def lr_aspp(x, rates, filters: int, window: dict, gate: str = "sigmoid", **options):
    """Returns branches gated by the image-level features, channel by channel.

    Args:
        x: High-level features `[batch, height, width, channels]`.
        rates: Atrous rates of 3x3 branches besides the 1x1 one; the paper has none.
        filters: Depth of the output.
        window: Arguments of the `WindowMean` of the image-level features.
        gate: Activation of the gate, "sigmoid" or "q_sigmoid".
        **options: Those of `aspp`.

    Returns:
        Features `[batch, height, width, filters]`.
    """
    biased = {"normalize": None, "activation": gate}
    weights = image_level_features(x, filters, window, **biased)
    x = aspp(x, rates, filters, **options)
    return layers.Multiply(name="image_gate")([x, weights])
