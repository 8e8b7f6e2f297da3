"""MobileNetV3 for segmentation (1905.02244, Tables 1 and 2, Sec. 6.4), and EdgeTPU's.

The last block of MobileNetV3 has half the depth of the classifier's; the
features are those of the 1x1 convolution behind it.
"""

import functools

from deeplab_tf.models.backbones.mobilenet import Block, MobileNet, mobilenet

_RELU = functools.partial(Block, activation="relu")
_HARD_SWISH = functools.partial(Block, activation="hard_silu")

_LARGE = MobileNet(
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
    low_level={4: 2, 8: 5, 16: 11},
)

_SMALL = MobileNet(
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
    low_level={4: 0, 8: 2, 16: 7},
)

_FUSED = functools.partial(_RELU, fused=True)

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
    low_level={},
    # The released EdgeTPU-DeepLab-slim (multiplier 0.75) has all 1280 channels.
    narrow_last=False,
)

mobilenet_v3_large_seg = functools.partial(mobilenet, network=_LARGE)
mobilenet_v3_small_seg = functools.partial(mobilenet, network=_SMALL)
mobilenet_edgetpu = functools.partial(mobilenet, network=_EDGETPU)
