"""ResNet v1 as DeepLab's backbone (1512.03385; DeepLabv3, 1706.05587, Sec. 3.2).

The stride of a block sits in its last unit. "beta" networks begin with three 3x3
convolutions in place of a 7x7 one (PSPNet, 1612.01105).
"""

import functools
from typing import NamedTuple

import keras
from keras import layers

from deeplab_tf.models import layers as deeplab_layers
from deeplab_tf.models.backbones.atrous import strides_and_rates
from deeplab_tf.models.cascade import Block, cascaded
from deeplab_tf.models.normalization import batch_norm

_DEPTHS = (64, 128, 256, 512)
_BATCH_NORM_MOMENTUM = 0.95
_STEM_STRIDE = 4  # of root and pooling


class ResNet(NamedTuple):
    """A residual network.

    Attributes:
        scope: Official scope.
        units: Residual units of block1 to block4.
        root: Depths of the 3x3 convolutions at the beginning; None is one 7x7
            convolution to 64 channels.
        lite: Whether units are two 3x3 convolutions instead of a bottleneck.
    """

    scope: str
    units: tuple[int, ...]
    root: tuple[int, ...] | None = None
    lite: bool = False


def _shortcut(x, filters, scope, stride, conv):
    """Returns what a unit adds to its residual."""
    if x.shape[-1] != filters:
        return conv(x, filters, 1, f"{scope}.shortcut", strides=stride, activation=None)
    return x if stride == 1 else deeplab_layers.subsample(x, stride, scope)


def _bottleneck(x, depth, scope, stride, rate, conv):
    """Returns a unit's output and its residual (1512.03385, Fig. 5 right)."""
    scope = f"{scope}.bottleneck_v1"
    shortcut = _shortcut(x, 4 * depth, scope, stride, conv)
    x = conv(x, depth, 1, f"{scope}.conv1")
    x = conv(x, depth, 3, f"{scope}.conv2", strides=stride, rate=rate)
    residual = conv(x, 4 * depth, 1, f"{scope}.conv3", activation=None)
    return _sum(shortcut, residual, scope), residual


def _lite_bottleneck(x, depth, scope, stride, rate, conv):
    """Returns a unit's output and its residual (1512.03385, Fig. 5 left)."""
    scope = f"{scope}.lite_bottleneck_v1"
    shortcut = _shortcut(x, depth, scope, stride, conv)
    x = conv(x, depth, 3, f"{scope}.conv1", rate=rate)
    residual = conv(
        x, depth, 3, f"{scope}.conv2", strides=stride, rate=rate, activation=None
    )
    return _sum(shortcut, residual, scope), residual


def _sum(shortcut, residual, scope):
    x = layers.Add(name=f"{scope}.sum")([shortcut, residual])
    return deeplab_layers.activate(x, "relu", scope)


def _stem(image, network: ResNet, conv):
    """Returns features of stride 4."""
    if network.root is None:
        x = conv(image, 64, 7, f"{network.scope}.conv1", strides=2)
    else:
        x = image
        for i, depth in enumerate(network.root, 1):
            strides = 2 if i == 1 else 1
            x = conv(x, depth, 3, f"{network.scope}.conv1_{i}", strides=strides)
    pool = layers.MaxPooling2D(
        3, 2, padding="same", data_format="channels_last", name=f"{network.scope}.pool1"
    )
    return pool(x)


def _units(blocks, multi_grid):
    """Yields (block number, unit number, depth, nominal stride, unit rate)."""
    for number, block in enumerate(blocks, 1):
        grid = multi_grid if number >= len(_DEPTHS) else ()
        for unit in range(1, block.units + 1):
            stride = block.stride if unit == block.units else 1
            yield number, unit, block.depth, stride, grid[unit - 1] if grid else 1


def resnet_v1(
    image,
    output_stride: int,
    network: ResNet,
    multi_grid: tuple[int, ...] = (),
    cascade_blocks: int = 0,
    batch_norm_momentum: float | None = None,
) -> dict[str | int, object]:
    """Returns the features of a ResNet.

    Args:
        image: RGB scaled to [-1, 1] or less the mean (without the beta root),
            `[batch, height, width, channels]`.
        output_stride: Pixels per cell of the high-level features.
        network: The network.
        multi_grid: Rates of the units of block4 and its replicas, relative to
            the block's (Sec. 3.2.1); () is all 1.
        cascade_blocks: Replicas of block4 in cascade (Sec. 3.2).
        batch_norm_momentum: Decay of the moving statistics, None for 0.95.

    Returns:
        `"high_level"`: `[batch, height / output_stride, ..., 2048]` (512 for
        ResNet-18), and by their stride (4, 8, 16) the residual of the unit
        before a block's strided one, linear and without the shortcut.
    """
    if batch_norm_momentum is None:
        batch_norm_momentum = _BATCH_NORM_MOMENTUM
    conv = functools.partial(
        deeplab_layers.conv_bn_act,
        normalize=functools.partial(
            batch_norm, momentum=batch_norm_momentum, epsilon=1e-5
        ),
        initializer=keras.initializers.HeNormal(),
        padding="fixed",
    )
    x = _stem(image, network, conv)
    blocks = cascaded(
        tuple(map(Block, _DEPTHS, network.units, (2, 2, 2, 1))), cascade_blocks
    )
    units = list(_units(blocks, multi_grid))
    steps = strides_and_rates([u[3] for u in units], output_stride // _STEM_STRIDE)
    unit = _lite_bottleneck if network.lite else _bottleneck
    features = {}
    for (number, index, depth, _, grid), (stride, rate) in zip(
        units, steps, strict=True
    ):
        scope = f"{network.scope}.block{number}.unit_{index}"
        x, residual = unit(x, depth, scope, stride, rate * grid, conv)
        if number < len(_DEPTHS) and index == blocks[number - 1].units - 1:
            features[2 ** (number + 1)] = residual
    return features | {"high_level": x}


_BETA_ROOT = (64, 64, 128)


def _pair(scope, units, **options):
    """Returns a network with the 7x7 root and with the beta one."""
    lite = options.get("lite", False)
    root = tuple(depth // 4 for depth in _BETA_ROOT) if lite else _BETA_ROOT
    return (
        functools.partial(resnet_v1, network=ResNet(scope, units, **options)),
        functools.partial(resnet_v1, network=ResNet(scope, units, root, **options)),
    )


resnet_v1_18, resnet_v1_18_beta = _pair("resnet_v1_18", (2, 2, 2, 2), lite=True)
resnet_v1_50, resnet_v1_50_beta = _pair("resnet_v1_50", (3, 4, 6, 3))
resnet_v1_101, resnet_v1_101_beta = _pair("resnet_v1_101", (3, 4, 23, 3))
