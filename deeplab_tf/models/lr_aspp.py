"""LR-ASPP, the ASPP of mobile models (MobileNetV3, 1905.02244, Fig. 10)."""

from keras import layers

from deeplab_tf.models.aspp import aspp, image_level_features


def lr_aspp(
    x,
    rates,
    filters: int,
    window: dict,
    gate: str = "sigmoid",
    gate_bias: bool = True,
    **options,
):
    """Applies ASPP branches, gated per channel by the image-level features.

    Args:
        x: High-level features `[batch, height, width, channels]`.
        rates: Atrous rates of additional 3x3 branches; the paper has none.
        filters: Output channels.
        window: Arguments of the `WindowMean` of the image-level features.
        gate: Activation of the gate, "sigmoid" or "q_sigmoid".
        gate_bias: Whether the convolution of the gate has a bias.
        **options: Options of `aspp`.
    """
    style = {"normalize": None, "activation": gate, "use_bias": gate_bias}
    resizing = options.get("resizing", "align_corners")
    weights = image_level_features(x, filters, window, resizing, **style)
    x = aspp(x, rates, filters, **options)
    return layers.Multiply(name="image_gate")([x, weights])
