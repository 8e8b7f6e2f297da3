"""The modified aligned Xception (DeepLabv3+, 1802.02611, Sec. 3.2, Fig. 4)."""

import functools
from typing import NamedTuple

from keras import layers

from deeplab_tf.models import layers as deeplab_layers
from deeplab_tf.models.backbones.atrous import strides_and_rates
from deeplab_tf.models.normalization import batch_norm

_BATCH_NORM_MOMENTUM = 0.9997
_KERNEL = deeplab_layers.truncated_normal(0.09)
_ROOT_STRIDE = 2


class Block(NamedTuple):
    """Modules of one kind.

    Attributes:
        scope: Official scope within the network's.
        depths: Depths of a module's three separable convolutions.
        shortcut: "conv", "sum" or "none".
        stride: Nominal stride of the last convolution.
        units: Number of modules.
        low_level: Stride at which the block offers low-level features.
    """

    scope: str
    depths: tuple[int, int, int]
    shortcut: str
    stride: int
    units: int = 1
    low_level: int | None = None


class Style(NamedTuple):
    """What the modules of a network have in common.

    Attributes:
        normalize: `(x, scope) -> x`.
        depthwise_activation: Whether a ReLU follows each depthwise convolution.
        bounded: Whether activations are clipped to 6.
    """

    normalize: object
    depthwise_activation: bool = False
    bounded: bool = False

    @property
    def relu(self) -> str:
        """The activation."""
        return "relu6" if self.bounded else "relu"

    @property
    def linear(self) -> str | None:
        """What stands for none at all."""
        return "clip" if self.bounded else None


def _entry(index: int, depth: int, stride: int = 2, low_level: int | None = None):
    return Block(f"entry_flow.block{index}", 3 * (depth,), "conv", stride, 1, low_level)


_FLOW = (
    Block("exit_flow.block1", (728, 1024, 1024), "conv", 2, 1, 16),
    Block("exit_flow.block2", (1536, 1536, 2048), "none", 1),
)


def _network(middle_units: int, *entry: Block) -> tuple[Block, ...]:
    middle = Block("middle_flow.block1", 3 * (728,), "sum", 1, middle_units)
    return (*entry, middle, *_FLOW)


_ENTRY = (_entry(1, 128), _entry(2, 256, 2, 4), _entry(3, 728, 2, 8))
_NETWORKS = {
    "xception_41": _network(8, *_ENTRY),
    "xception_65": _network(16, *_ENTRY),
    "xception_71": _network(
        16,
        _entry(1, 128),
        *(_entry(2, 256, 1), _entry(3, 256, 2, 4)),
        *(_entry(4, 728, 1), _entry(5, 728, 2, 8)),
    ),
}


def _separable(x, filters, scope, last: bool, style: Style, **spatial):
    """Returns a separable convolution; only the last block's has its ReLUs behind."""
    inner = outer = style.relu if last else style.linear
    if style.depthwise_activation:
        inner = style.relu
    if not last:
        x = deeplab_layers.activate(x, style.relu, f"{scope}.input")
    padding = "same" if style.bounded else "fixed"
    x = deeplab_layers.depthwise_bn_act(
        x,
        3,
        f"{scope}_depthwise",
        normalize=style.normalize,
        activation=inner,
        initializer=_KERNEL,
        padding=padding,
        **spatial,
    )
    return deeplab_layers.conv_bn_act(
        x,
        filters,
        1,
        f"{scope}_pointwise",
        normalize=style.normalize,
        activation=outer,
        initializer=_KERNEL,
    )


def _module(x, block: Block, scope, stride, rates, style: Style):
    """Returns the module's output and that of its second convolution (Fig. 4)."""
    source, outputs = x, []
    for i, (filters, rate) in enumerate(zip(block.depths, rates, strict=True), 1):
        x = _separable(
            x,
            filters,
            f"{scope}.separable_conv{i}",
            block.shortcut == "none",
            style,
            strides=stride if i == 3 else 1,
            rate=rate,
        )
        outputs.append(x)
    if block.shortcut == "none":
        return x, outputs[1]
    shortcut = source  # not activated
    if block.shortcut == "conv":
        shortcut = deeplab_layers.conv_bn_act(
            source,
            block.depths[-1],
            1,
            f"{scope}.shortcut",
            strides=stride,
            normalize=style.normalize,
            activation=None,
            initializer=_KERNEL,
        )
    shortcut = deeplab_layers.activate(shortcut, style.linear, f"{scope}.source")
    x = layers.Add(name=f"{scope}.sum")([x, shortcut])
    if style.bounded:
        x = deeplab_layers.activate(x, style.relu, scope)
    return x, outputs[1]


def xception(
    image,
    output_stride: int,
    name: str,
    multi_grid: tuple[int, ...] = (),
    depthwise_activation: bool = False,
    bounded_activation: bool = False,
    batch_norm_momentum: float | None = None,
) -> dict[str | int, object]:
    """Returns the features of an Xception.

    Args:
        image: RGB scaled to [-1, 1], `[batch, height, width, channels]`.
        output_stride: Pixels per cell of the high-level features.
        name: "xception_41", "xception_65" or "xception_71".
        multi_grid: Rates of the three convolutions of the last module, relative
            to the block's; () is all 1, as in the paper.
        depthwise_activation: Whether the ReLU after each depthwise convolution
            that the paper describes is there; the released networks lack it.
        bounded_activation: Whether activations are clipped to 6.
        batch_norm_momentum: Decay of the moving statistics, None for 0.9997.

    Returns:
        `"high_level"`: `[batch, height / output_stride, ..., 2048]`, and by their
        stride (4, 8, 16) the low-level features of 256, 728 and 1024 channels,
        linear: the second convolution of a module, before its strided third.
    """
    if batch_norm_momentum is None:
        batch_norm_momentum = _BATCH_NORM_MOMENTUM
    normalize = functools.partial(
        batch_norm, momentum=batch_norm_momentum, epsilon=1e-3
    )
    style = Style(normalize, depthwise_activation, bounded_activation)
    x = image
    for i, (filters, stride) in enumerate(((32, _ROOT_STRIDE), (64, 1)), 1):
        x = deeplab_layers.conv_bn_act(
            x,
            filters,
            3,
            f"{name}.entry_flow.conv1_{i}",
            strides=stride,
            normalize=normalize,
            activation=style.relu,
            initializer=_KERNEL,
            padding="fixed",
        )
    modules = [(b, u) for b in _NETWORKS[name] for u in range(1, b.units + 1)]
    steps = strides_and_rates(
        [block.stride for block, _ in modules], output_stride // _ROOT_STRIDE
    )
    features = {}
    for (block, unit), (stride, rate) in zip(modules, steps, strict=True):
        scope = f"{name}.{block.scope}.unit_{unit}.xception_module"
        grid = multi_grid if multi_grid and block.shortcut == "none" else (1, 1, 1)
        rates = [rate * unit_rate for unit_rate in grid]
        x, features[block.low_level] = _module(x, block, scope, stride, rates, style)
    features.pop(None)
    return features | {"high_level": x}


xception_41 = functools.partial(xception, name="xception_41")
xception_65 = functools.partial(xception, name="xception_65")
xception_71 = functools.partial(xception, name="xception_71")
