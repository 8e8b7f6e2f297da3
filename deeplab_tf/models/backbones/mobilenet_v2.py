"""MobileNetV2 as DeepLab's backbone (1801.04381, Table 2 and Sec. 6.3).

The 1x1 convolution to 1280 channels is left out; the features are the 320
channels of the last inverted residual block.
"""

from deeplab_tf.models.backbones.mobilenet import Block, MobileNet, mobilenet

_NETWORK = MobileNet(
    scope="MobilenetV2",
    blocks=(
        Block(1, 16),
        *(Block(6, 24, 2), Block(6, 24)),
        *(Block(6, 32, 2), *2 * (Block(6, 32),)),
        *(Block(6, 64, 2), *3 * (Block(6, 64),)),
        *3 * (Block(6, 96),),
        *(Block(6, 160, 2), *2 * (Block(6, 160),)),
        Block(6, 320),
    ),
    first=32,
    last=None,
    activation="relu6",
    low_level={4: 2, 8: 5, 16: 12},
)


def mobilenet_v2(
    image,
    output_stride: int,
    depth_multiplier: float = 1.0,
    divisible_by: int | None = None,
    batch_norm_momentum: float | None = None,
) -> dict[str | int, object]:
    """Returns the features of MobileNetV2.

    Args:
        image: RGB scaled to [-1, 1], `[batch, height, width, channels]`.
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
    return mobilenet(
        image, output_stride, _NETWORK, depth_multiplier, divisor, batch_norm_momentum
    )
