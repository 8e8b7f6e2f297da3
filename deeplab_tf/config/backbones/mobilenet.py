"""The MobileNets for segmentation: tables of inverted residual blocks.

- MobileNetV2 (1801.04381, Table 2 and Sec. 6.3) without the 1x1 convolution to 1280
  channels; it ends with the 320 channels of the last block.
- MobileNetV3 (1905.02244, Tables 1 and 2, Sec. 6.4) with half the depth of the
  classifier in the last blocks; it ends with the 1x1 convolution after them.
- The classifiers of both, with all channels, as PyTorch's DeepLabs use them:
  "mobilenet_v2_classifier" (with the convolution to 1280 channels) and
  "mobilenet_v3_large_classifier".
- MobileNetEdgeTPU.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

from deeplab_tf.config.backbones.backbone import Backbone


class Block(NamedTuple):
    """An inverted residual block.

    Attributes:
        expansion: Inner depth relative to the input depth.
        filters: Output depth.
        stride: Nominal stride.
        activation: Name of the activation.
        squeeze: Whether to apply squeeze-and-excitation to the inner channels.
        fused: Whether to expand with one full convolution instead of a 1x1 and a
            depthwise one (EdgeTPU).
        residual: Whether to add the input if the shapes match.
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
        blocks: The blocks after a 3x3 convolution of stride 2.
        first: Depth of that convolution.
        last: Depth of a 1x1 convolution after the blocks; None omits it.
        activation: Activation of both convolutions.
        low_level_blocks: For each stride of low-level features, the index of the block
            that they come from.
        narrow_last: Whether a multiplier below 1 also narrows the last convolution.
        divisor: Depths are rounded to multiples of this at a `depth_multiplier` other
            than 1, and to multiples of 8 at 1.
        gate: Activation of the gates of squeeze-and-excitation.

    The other attributes are those of `ConventionsConfig`.
    """

    scope: str
    blocks: tuple[Block, ...]
    first: int
    last: int | None
    activation: str
    low_level_blocks: Mapping[int, int]
    narrow_last: bool = True
    divisor: int = 8
    gate: str = "q_sigmoid"
    padding: str = "official"
    first_unit_rate: str = "previous"
    low_level: str = "official"


_RELU = functools.partial(Block, activation="relu")
_HARD_SWISH = functools.partial(Block, activation="hard_silu")
_FUSED = functools.partial(_RELU, fused=True)

_V2 = MobileNet(
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
    low_level_blocks={4: 2, 8: 5, 16: 12},
    # As in the DeepLab checkpoints; the ImageNet checkpoints of slim always use 8.
    divisor=1,
)

_V3_LARGE = MobileNet(
    scope="MobilenetV3",
    blocks=(
        _RELU(1, 16),
        *(_RELU(4, 24, 2), _RELU(3, 24)),
        _RELU(3, 40, 2, 5, squeeze=True),
        *2 * (_RELU(3, 40, 1, 5, squeeze=True),),
        *(_HARD_SWISH(6, 80, 2), _HARD_SWISH(2.5, 80)),
        *2 * (_HARD_SWISH(2.3, 80),),
        *2 * (_HARD_SWISH(6, 112, squeeze=True),),
        _HARD_SWISH(3, 80, 2, 5, squeeze=True),
        *2 * (_HARD_SWISH(6, 80, 1, 5, squeeze=True),),
    ),
    first=16,
    last=480,
    activation="hard_silu",
    low_level_blocks={4: 2, 8: 5, 16: 11},
)

_V2_CLASSIFIER = _V2._replace(last=1280, narrow_last=False, divisor=8)

_V3_LARGE_CLASSIFIER = _V3_LARGE._replace(
    blocks=(
        *_V3_LARGE.blocks[:12],
        _HARD_SWISH(6, 160, 2, 5, squeeze=True),
        *2 * (_HARD_SWISH(6, 160, 1, 5, squeeze=True),),
    ),
    last=960,
    # PyTorch's LR-ASPP uses the first block of a stride.
    low_level_blocks={4: 1, 8: 3, 16: 6},
    gate="hard_sigmoid",
)

_V3_SMALL = MobileNet(
    scope="MobilenetV3",
    blocks=(
        _RELU(1, 16, 2, squeeze=True),
        *(_RELU(72 / 16, 24, 2), _RELU(88 / 24, 24)),
        _HARD_SWISH(4, 40, 2, 5, squeeze=True),
        *2 * (_HARD_SWISH(6, 40, 1, 5, squeeze=True),),
        *2 * (_HARD_SWISH(3, 48, 1, 5, squeeze=True),),
        _HARD_SWISH(3, 48, 2, 5, squeeze=True),
        *2 * (_HARD_SWISH(6, 48, 1, 5, squeeze=True),),
    ),
    first=16,
    last=288,
    activation="hard_silu",
    low_level_blocks={4: 0, 8: 2, 16: 7},
)

_EDGETPU = MobileNet(
    scope="MobilenetEdgeTPU",
    blocks=(
        _FUSED(1, 16),
        *(_FUSED(8, 32, 2), *3 * (_FUSED(4, 32),)),
        *(_FUSED(8, 48, 2), *3 * (_FUSED(4, 48),)),
        *(_RELU(8, 96, 2), *3 * (_RELU(4, 96),)),
        *(_RELU(8, 96, residual=False), *3 * (_RELU(4, 96),)),
        *(_RELU(8, 160, 2, 5), *3 * (_RELU(4, 160, 1, 5),)),
        _RELU(8, 192),
    ),
    first=32,
    last=1280,
    activation="relu",
    low_level_blocks={},
    # The released EdgeTPU-DeepLab-slim (multiplier 0.75) keeps all 1280 channels.
    narrow_last=False,
)


def _make_backbone(network: MobileNet, *options: str) -> Backbone:
    """Returns the row of a network with these options besides the multiplier."""
    return Backbone(
        network,
        ("depth_multiplier", *options),
        decoder_strides=tuple(network.low_level_blocks),
        # Fused blocks keep their stride.
        least_output_stride=8 if any(block.fused for block in network.blocks) else 2,
    )


MOBILENETS = {
    "mobilenet_v2": _make_backbone(_V2, "divisible_by"),
    "mobilenet_v2_classifier": _make_backbone(_V2_CLASSIFIER, "divisible_by"),
    "mobilenet_v3_large_seg": _make_backbone(_V3_LARGE),
    "mobilenet_v3_large_classifier": _make_backbone(_V3_LARGE_CLASSIFIER),
    "mobilenet_v3_small_seg": _make_backbone(_V3_SMALL),
    "mobilenet_edgetpu": _make_backbone(_EDGETPU),
}
