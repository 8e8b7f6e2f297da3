"""ResNet v1 as DeepLab's backbone (1512.03385; DeepLabv3, 1706.05587, Sec. 3.2)."""

import functools
from typing import NamedTuple

import keras
from keras import layers

from deeplab_tf.config.backbones.resnet import ResNet
from deeplab_tf.models.backbones.atrous import strides_and_rates
from deeplab_tf.models.cascade import Block, replicate_last_block
from deeplab_tf.models.layers import activate, conv_bn_act, pad_fixed, subsample
from deeplab_tf.models.normalization import make_batch_norm

_BLOCKS = 4  # of the classification network; later blocks are replicas
_STEM_STRIDE = 4  # of root and pooling


def _shortcut(x, filters, scope, stride, conv):
    """Returns the input of a unit with the depth and stride of its output."""
    if x.shape[-1] != filters:
        return conv(x, filters, 1, f"{scope}.shortcut", strides=stride, activation=None)
    return x if stride == 1 else subsample(x, stride, scope)


def _bottleneck(x, depth, scope, strides, rate, conv):
    """Returns a unit's output and its residual (1512.03385, Fig. 5 right)."""
    scope = f"{scope}.bottleneck_v1"
    shortcut = _shortcut(x, 4 * depth, scope, max(strides), conv)
    x = conv(x, depth, 1, f"{scope}.conv1", strides=strides[0])
    x = conv(x, depth, 3, f"{scope}.conv2", strides=strides[1], rate=rate)
    residual = conv(x, 4 * depth, 1, f"{scope}.conv3", activation=None)
    return _add_relu(shortcut, residual, scope), residual


def _lite_bottleneck(x, depth, scope, strides, rate, conv):
    """Returns a unit's output and its residual (1512.03385, Fig. 5 left)."""
    scope = f"{scope}.lite_bottleneck_v1"
    shortcut = _shortcut(x, depth, scope, max(strides), conv)
    x = conv(x, depth, 3, f"{scope}.conv1", strides=strides[0], rate=rate)
    residual = conv(
        x, depth, 3, f"{scope}.conv2", strides=strides[1], rate=rate, activation=None
    )
    return _add_relu(shortcut, residual, scope), residual


def _add_relu(shortcut, residual, scope):
    x = layers.Add(name=f"{scope}.sum")([shortcut, residual])
    return activate(x, "relu", scope)


def _stem(image, network: ResNet, conv):
    """Applies the layers before block1; the features have stride 4."""
    if not network.root:
        x = conv(image, 64, 7, f"{network.scope}.conv1", strides=2)
    else:
        x = image
        for i, depth in enumerate(network.root, 1):
            strides = 2 if i == 1 else 1
            x = conv(x, depth, 3, f"{network.scope}.conv1_{i}", strides=strides)
    scope = f"{network.scope}.pool1"
    padding = "same"
    if network.padding == "symmetric":
        # After a ReLU, padding with zeros does not change a maximum.
        x, padding = pad_fixed(x, 3, scope), "valid"
    pool = layers.MaxPooling2D(
        3, 2, padding=padding, data_format="channels_last", name=scope
    )
    return pool(x)


class _Unit(NamedTuple):
    """A residual unit, with its nominal stride.

    `grid` is its rate in the multi-grid, None without one.
    """

    block: int
    number: int
    depth: int
    stride: int
    grid: int | None


def _list_units(blocks, multi_grid, strided_unit):
    """Yields the units of all blocks, with their nominal strides."""
    before = 1  # the stride between two blocks belongs to the first or to the second
    for i, block in enumerate(blocks, 1):
        grid = multi_grid if i >= _BLOCKS and multi_grid else block.units * (None,)
        for number, rate in enumerate(grid, 1):
            stride = block.stride if number == block.units else 1
            if strided_unit == "first":
                stride = before if number == 1 else 1
            yield _Unit(i, number, block.depth, stride, rate)
        before = block.stride


def _apply_multi_grid(rate: int, unit: _Unit, network: ResNet) -> int:
    """Returns the rate of a unit, given the rate of its block."""
    if unit.grid is None:
        return rate
    return unit.grid if network.absolute_multi_grid else rate * unit.grid


def resnet_v1(
    image,
    output_stride: int,
    network: ResNet,
    multi_grid: tuple[int, ...] = (),
    cascade_blocks: int = 0,
    batch_norm_momentum: float | None = None,
    batch_norm_epsilon: float | None = None,
) -> dict[str | int, object]:
    """Returns the high-level features of a ResNet, and the low-level ones by stride.

    The official low-level features (strides 4, 8, 16) are the residual of the unit
    before a block's strided unit: linear, without the shortcut. The image is RGB,
    scaled to [-1, 1] or, without the beta root, minus the mean pixel.

    Args:
        image: `[batch, height, width, channels]`.
        output_stride: Output stride of the high-level features.
        network: The architecture.
        multi_grid: Rates of the units of block4 and its replicas, relative to the
            block's rate (Sec. 3.2.1); () means all 1.
        cascade_blocks: Number of replicas of block4 (Sec. 3.2).
        batch_norm_momentum: Decay of the moving statistics; None means 0.95.
        batch_norm_epsilon: Epsilon of batch normalisation; None means 1e-5.
    """
    conv = functools.partial(
        conv_bn_act,
        normalize=make_batch_norm(
            batch_norm_momentum, batch_norm_epsilon, official=(0.95, 1e-5)
        ),
        initializer=keras.initializers.HeNormal(),
        padding="fixed",
    )
    x = _stem(image, network, conv)
    blocks = tuple(map(Block, network.depths, network.units, (2, 2, 2, 1)))
    blocks = replicate_last_block(blocks, cascade_blocks)
    units = list(_list_units(blocks, multi_grid, network.strided_unit))
    strides = [unit.stride for unit in units]
    steps = strides_and_rates(
        strides, output_stride // _STEM_STRIDE, network.first_unit_rate
    )
    residual_unit = _lite_bottleneck if network.lite else _bottleneck
    features = {}
    for unit, (stride, rate) in zip(units, steps, strict=True):
        scope = f"{network.scope}.block{unit.block}.unit_{unit.number}"
        rate = _apply_multi_grid(rate, unit, network)
        both = (stride, 1) if network.strided_convolution == 1 else (1, stride)
        x, residual = residual_unit(x, unit.depth, scope, both, rate, conv)
        last = blocks[unit.block - 1].units - (network.strided_unit == "last")
        if unit.block < _BLOCKS and unit.number == last:
            is_official = network.low_level == "official"
            features[2 ** (unit.block + 1)] = residual if is_official else x
    return features | {"high_level": x}
