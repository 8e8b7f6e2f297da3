"""Inverted residuals: the blocks of the MobileNets (1801.04381, 1905.02244)."""

import functools

from keras import layers

from deeplab_tf.config.backbones.mobilenet import Block, MobileNet
from deeplab_tf.models.backbones.atrous import strides_and_rates
from deeplab_tf.models.layers import conv_bn_act, depthwise_bn_act, truncated_normal
from deeplab_tf.models.normalization import make_batch_norm
from deeplab_tf.models.resampling import WindowMean

_KERNEL = truncated_normal(0.09)


def make_divisible(channels: float, divisor: int) -> int:
    """Rounds `channels` to the nearest multiple of `divisor`.

    Rounds up if rounding down would remove more than 10%.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _squeeze_excite(x, scope: str, activation: str):
    """Scales the channels of `x` by a function of their means over the image."""
    depth, scope = x.shape[-1], f"{scope}.squeeze_excite"
    biased = {"normalize": None, "initializer": _KERNEL}
    gate = WindowMean(name=f"{scope}.mean")(x)
    gate = conv_bn_act(gate, make_divisible(depth / 4, 8), 1, f"{scope}.Conv", **biased)
    biased["activation"] = activation
    gate = conv_bn_act(gate, depth, 1, f"{scope}.Conv_1", **biased)
    return layers.Multiply(name=f"{scope}.output")([x, gate])


def inverted_residual(
    x, scope: str, block: Block, spatial: dict, normalize, gate: str = "q_sigmoid"
):
    """Returns the block's output and its low-level features (1801.04381, Fig. 4d).

    `spatial` has the effective `strides` and `rate`, and the `padding`, of the spatial
    convolution, whose output, before any squeeze-and-excitation, is the official
    low-level features. `gate` is the activation of squeeze-and-excitation.
    """
    source, size, stride = x, block.kernel_size, spatial["strides"]
    style = {"normalize": normalize, "initializer": _KERNEL}
    inner = style | {"activation": block.activation}
    spatial = inner | spatial
    filters = make_divisible(block.expansion * x.shape[-1], 8)
    if block.expansion > 1:
        kernel, options = (size, spatial) if block.fused else (1, inner)
        x = conv_bn_act(x, filters, kernel, f"{scope}.expand", **options)
    if not block.fused:
        x = depthwise_bn_act(x, size, f"{scope}.depthwise", **spatial)
    low_level = x
    if block.squeeze:
        x = _squeeze_excite(x, scope, gate)
    linear = style | {"activation": None}
    x = conv_bn_act(x, block.filters, 1, f"{scope}.project", **linear)
    # By effective stride: a block whose stride became a rate may have a residual.
    if block.residual and stride == 1 and source.shape[-1] == block.filters:
        x = layers.Add(name=f"{scope}.output")([source, x])
    return x, low_level


def mobilenet(
    image,
    output_stride: int,
    network: MobileNet,
    depth_multiplier: float = 1.0,
    divisible_by: int | None = None,
    batch_norm_momentum: float | None = None,
    batch_norm_epsilon: float | None = None,
) -> dict[str | int, object]:
    """Returns the high-level features of a MobileNet, and the low-level ones by stride.

    Args:
        image: RGB scaled to [-1, 1], `[batch, height, width, channels]`.
        output_stride: Output stride of the high-level features.
        network: The architecture.
        depth_multiplier: Factor on the number of channels.
        divisible_by: Channels are rounded to multiples of this; None means 8 if
            `depth_multiplier` is 1, otherwise the divisor of the network.
        batch_norm_momentum: Decay of the moving statistics; None means 0.997.
        batch_norm_epsilon: Epsilon of batch normalisation; None means 1e-3.
    """
    normalize = make_batch_norm(
        batch_norm_momentum, batch_norm_epsilon, official=(0.997, 1e-3)
    )
    options = {"normalize": normalize, "activation": network.activation}
    conv = functools.partial(conv_bn_act, **options, initializer=_KERNEL)
    divisor = divisible_by or (8 if depth_multiplier == 1.0 else network.divisor)

    def scale(depth: int, multiplier: float = depth_multiplier) -> int:
        return make_divisible(depth * multiplier, divisor)

    strides = [2, *(block.stride for block in network.blocks)]
    (stride, _), *steps = strides_and_rates(
        strides, output_stride, network.first_unit_rate
    )
    padding = "same" if network.padding == "official" else "fixed"
    spatial: dict = {"strides": stride, "padding": padding}
    x = conv(image, scale(network.first), 3, f"{network.scope}.Conv", **spatial)
    low_level = []
    for i, (block, step) in enumerate(zip(network.blocks, steps, strict=True)):
        scope = f"{network.scope}.expanded_conv" + (f"_{i}" if i else "")
        scaled = block._replace(filters=scale(block.filters))
        spatial["strides"], spatial["rate"] = step
        x, inner = inverted_residual(x, scope, scaled, spatial, normalize, network.gate)
        low_level.append(inner if network.low_level == "official" else x)
    if network.last is not None:
        factor = depth_multiplier if network.narrow_last else max(depth_multiplier, 1)
        x = conv(x, scale(network.last, factor), 1, f"{network.scope}.Conv_1")
    blocks = network.low_level_blocks
    return {"high_level": x} | {s: low_level[i] for s, i in blocks.items()}
