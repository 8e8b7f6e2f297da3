"""Inverted residuals: what the MobileNets are made of (1801.04381, 1905.02244).

Each network is a table of blocks; `mobilenet` builds any of them.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

from keras import layers

from deeplab_tf.models import layers as deeplab_layers
from deeplab_tf.models.backbones.atrous import strides_and_rates
from deeplab_tf.models.normalization import batch_norm
from deeplab_tf.models.resampling import WindowMean

_BATCH_NORM_MOMENTUM = 0.997
_KERNEL = deeplab_layers.truncated_normal(0.09)


class Block(NamedTuple):
    """An inverted residual block.

    Attributes:
        expansion: Inner depth relative to the input's.
        filters: Depth of the output.
        stride: Nominal stride.
        kernel_size: Side of the spatial kernel.
        activation: Name of the activation.
        squeeze: Whether squeeze-and-excitation weighs the inner channels.
        fused: Whether one full convolution expands and looks around, in place
            of a 1x1 and a depthwise one (EdgeTPU).
        residual: Whether the input is added where the shapes allow it.
    """

    expansion: float
    filters: int
    stride: int = 1
    kernel_size: int = 3
    activation: str = "relu6"
    squeeze: bool = False
    fused: bool = False
    residual: bool = True


class MobileNet(NamedTuple):
    """A network of inverted residuals.

    Attributes:
        scope: Official scope.
        blocks: The blocks, behind a 3x3 convolution of stride 2.
        first: Depth of that convolution.
        last: Depth of a 1x1 convolution behind the blocks; None for none.
        narrow_last: Whether a multiplier below 1 narrows that convolution, too.
        activation: Activation of both convolutions.
        low_level: Stride of low-level features to the index of the block whose
            depthwise output they are.
    """

    scope: str
    blocks: tuple[Block, ...]
    first: int
    last: int | None
    activation: str
    low_level: Mapping[int, int]
    narrow_last: bool = True


def make_divisible(channels: float, divisor: int) -> int:
    """Returns the multiple of `divisor` nearest to `channels`, losing at most 10 %."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _squeeze_excite(x, scope: str):
    """Returns `x`, its channels weighed by what the whole map says of them."""
    depth = x.shape[-1]
    scope = f"{scope}.squeeze_excite"
    biased = {"normalize": None, "initializer": _KERNEL}
    gate = WindowMean(name=f"{scope}.mean")(x)
    inner = make_divisible(depth / 4, 8)
    gate = deeplab_layers.conv_bn_act(gate, inner, 1, f"{scope}.Conv", **biased)
    gate = deeplab_layers.conv_bn_act(
        gate, depth, 1, f"{scope}.Conv_1", activation="q_sigmoid", **biased
    )
    return layers.Multiply(name=f"{scope}.output")([x, gate])


def inverted_residual(x, scope: str, block: Block, stride: int, rate: int, normalize):
    """Returns the block's output and its low-level features (1801.04381, Fig. 4d).

    Args:
        x: `[batch, height, width, channels]`.
        scope: Official scope with `.` for `/`.
        block: The block.
        stride: Effective stride.
        rate: Atrous rate of the spatial convolution.
        normalize: `(x, scope) -> x`.

    Returns:
        `[batch, height / stride, width / stride, filters]`, and what the spatial
        convolution gave, before any squeeze-and-excitation.
    """
    source = x
    style = {"normalize": normalize, "initializer": _KERNEL}
    spatial = {"strides": stride, "rate": rate}
    inner = make_divisible(block.expansion * x.shape[-1], 8)
    if block.expansion > 1:
        x = deeplab_layers.conv_bn_act(
            x,
            inner,
            block.kernel_size if block.fused else 1,
            f"{scope}.expand",
            activation=block.activation,
            **(spatial if block.fused else {}),
            **style,
        )
    if not block.fused:
        x = deeplab_layers.depthwise_bn_act(
            x,
            block.kernel_size,
            f"{scope}.depthwise",
            activation=block.activation,
            **spatial,
            **style,
        )
    low_level = x
    if block.squeeze:
        x = _squeeze_excite(x, scope)
    x = deeplab_layers.conv_bn_act(
        x, block.filters, 1, f"{scope}.project", activation=None, **style
    )
    # The effective stride counts: a block that lost its stride may gain a residual.
    if block.residual and stride == 1 and source.shape[-1] == block.filters:
        x = layers.Add(name=f"{scope}.output")([source, x])
    return x, low_level


def mobilenet(
    image,
    output_stride: int,
    network: MobileNet,
    depth_multiplier: float = 1.0,
    divisor: int = 8,
    batch_norm_momentum: float | None = None,
) -> dict[str | int, object]:
    """Returns the features of a network of inverted residuals.

    Args:
        image: RGB scaled to [-1, 1], `[batch, height, width, channels]`.
        output_stride: Pixels per cell of the high-level features.
        network: The network.
        depth_multiplier: Factor on every depth.
        divisor: Depths become multiples of it.
        batch_norm_momentum: Decay of the moving statistics, None for 0.997.

    Returns:
        `"high_level"`: `[batch, height / output_stride, ..., depth]`, and by
        their stride the low-level features that the network offers.
    """
    if batch_norm_momentum is None:
        batch_norm_momentum = _BATCH_NORM_MOMENTUM
    normalize = functools.partial(
        batch_norm, momentum=batch_norm_momentum, epsilon=1e-3
    )
    conv = functools.partial(
        deeplab_layers.conv_bn_act,
        normalize=normalize,
        activation=network.activation,
        initializer=_KERNEL,
    )
    nominal = [2, *(block.stride for block in network.blocks)]
    steps = strides_and_rates(nominal, output_stride)
    stride, _ = next(steps)
    filters = make_divisible(network.first * depth_multiplier, divisor)
    x = conv(image, filters, 3, f"{network.scope}.Conv", strides=stride)
    spatial = []
    for i, (block, (stride, rate)) in enumerate(
        zip(network.blocks, steps, strict=True)
    ):
        scope = f"{network.scope}.expanded_conv" + (f"_{i}" if i else "")
        filters = make_divisible(block.filters * depth_multiplier, divisor)
        scaled = block._replace(filters=filters)
        x, low_level = inverted_residual(x, scope, scaled, stride, rate, normalize)
        spatial.append(low_level)
    if network.last is not None:
        factor = depth_multiplier if network.narrow_last else max(depth_multiplier, 1)
        filters = make_divisible(network.last * factor, divisor)
        x = conv(x, filters, 1, f"{network.scope}.Conv_1")
    return {"high_level": x} | {s: spatial[i] for s, i in network.low_level.items()}
