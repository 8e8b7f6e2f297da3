"""MobileNetV2 as DeepLab's backbone (1801.04381, Table 2 and Sec. 6.3).

The 1x1 convolution to 1280 channels is left out; the features are the 320
channels of the last inverted residual block.
"""

import functools

from keras import layers

from deeplab_tf.models import layers as deeplab_layers
from deeplab_tf.models.backbones.atrous import strides_and_rates

# Expansion, depth, stride of `expanded_conv`, `expanded_conv_1`, ...
_BLOCKS = (
    *((1, 16, 1),),
    *((6, 24, 2), (6, 24, 1)),
    *((6, 32, 2), (6, 32, 1), (6, 32, 1)),
    *((6, 64, 2), (6, 64, 1), (6, 64, 1), (6, 64, 1)),
    *((6, 96, 1), (6, 96, 1), (6, 96, 1)),
    *((6, 160, 2), (6, 160, 1), (6, 160, 1)),
    *((6, 320, 1),),
)
# Stride of the low-level features -> block whose depthwise output they are.
_LOW_LEVEL = {4: 2, 8: 5, 16: 12}
_BATCH_NORM_MOMENTUM = 0.997
_KERNEL = deeplab_layers.truncated_normal


def make_divisible(channels: float, divisor: int) -> int:
    """Returns the multiple of `divisor` nearest to `channels`, losing at most 10 %."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _scope(block: int) -> str:
    return "MobilenetV2.expanded_conv" + (f"_{block}" if block else "")


def _inverted_residual(x, block, expansion, filters, stride, rate, normalize):
    """Returns the block's output and its depthwise features (Fig. 4d)."""
    scope, source = _scope(block), x
    normalized = {"normalize": normalize, "activation": "relu6"}
    if expansion > 1:
        inner = make_divisible(expansion * x.shape[-1], 8)
        x = deeplab_layers.conv_bn_act(
            x, inner, 1, f"{scope}.expand", initializer=_KERNEL(0.09), **normalized
        )
    x = low_level = deeplab_layers.depthwise_bn_act(
        x,
        3,
        f"{scope}.depthwise",
        strides=stride,
        rate=rate,
        initializer=_KERNEL(0.09),
        **normalized,
    )
    x = deeplab_layers.conv_bn_act(
        x,
        filters,
        1,
        f"{scope}.project",
        normalize=normalize,
        activation=None,
        initializer=_KERNEL(0.09),
    )
    if stride == 1 and source.shape[-1] == filters:
        x = layers.Add(name=f"{scope}.output")([source, x])
    return x, low_level


def mobilenet_v2(
    image,
    output_stride: int,
    depth_multiplier: float = 1.0,
    divisible_by: int | None = None,
    batch_norm_momentum: float | None = None,
) -> dict[str | int, object]:
    """Returns the features of MobileNetV2.

    Args:
        image: RGB scaled to [-1, 1], `[batch, height, width, 3]`.
        output_stride: Pixels per cell of the high-level features.
        depth_multiplier: Factor on every depth.
        divisible_by: Depths become multiples of it; None is 8 at
            depth_multiplier 1 and 1 otherwise, as in the DeepLab checkpoints
            (ImageNet checkpoints of slim always have 8).
        batch_norm_momentum: Decay of the moving statistics, None for 0.997.

    Returns:
        `"high_level"`: `[batch, height / output_stride, ..., 320]`, and by their
        stride (4, 8, 16) the low-level features of 144, 192 and 576 channels.
    """
    divisor = divisible_by or (8 if depth_multiplier == 1.0 else 1)
    if batch_norm_momentum is None:
        batch_norm_momentum = _BATCH_NORM_MOMENTUM
    normalize = functools.partial(
        deeplab_layers.batch_norm,
        momentum=batch_norm_momentum,
        epsilon=1e-3,
    )
    steps = strides_and_rates([2, *(s for _, _, s in _BLOCKS)], output_stride)
    stride, _ = next(steps)
    x = deeplab_layers.conv_bn_act(
        image,
        make_divisible(32 * depth_multiplier, divisor),
        3,
        "MobilenetV2.Conv",
        strides=stride,
        normalize=normalize,
        activation="relu6",
        initializer=_KERNEL(0.09),
    )
    depthwise = []
    for block, (expansion, depth, _) in enumerate(_BLOCKS):
        filters = make_divisible(depth * depth_multiplier, divisor)
        stride, rate = next(steps)
        x, low_level = _inverted_residual(
            x, block, expansion, filters, stride, rate, normalize
        )
        depthwise.append(low_level)
    return {"high_level": x} | {s: depthwise[b] for s, b in _LOW_LEVEL.items()}
