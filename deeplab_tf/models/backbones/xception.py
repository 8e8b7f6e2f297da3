"""The modified aligned Xception (DeepLabv3+, 1802.02611, Sec. 3.2, Fig. 4)."""

from collections.abc import Callable
from typing import NamedTuple

from keras import layers

from deeplab_tf.config.backbones.xception import Block, Xception
from deeplab_tf.models.backbones.atrous import strides_and_rates
from deeplab_tf.models.layers import (
    activate,
    conv_bn_act,
    depthwise_bn_act,
    truncated_normal,
)
from deeplab_tf.models.normalization import make_batch_norm

_KERNEL = truncated_normal(0.09)
_ROOT_STRIDE = 2


class Style(NamedTuple):
    """Options shared by all modules; `normalize` is a function `(x, scope) -> x`."""

    normalize: Callable
    depthwise_activation: bool = False
    bounded: bool = False  # clip activations to 6

    @property
    def relu(self) -> str:
        """Name of the activation."""
        return "relu6" if self.bounded else "relu"

    @property
    def linear(self) -> str | None:
        """The identity, or a clip if activations are bounded."""
        return "clip" if self.bounded else None

    @property
    def options(self) -> dict:
        """Options of every convolution."""
        return {"normalize": self.normalize, "initializer": _KERNEL}


def _separable(x, filters, scope, last: bool, style: Style, **spatial):
    """Applies a separable convolution; the ReLU is first except in the last block."""
    inner = outer = style.relu if last else style.linear
    if style.depthwise_activation:
        inner = style.relu
    if not last:
        x = activate(x, style.relu, f"{scope}.input")
    spatial |= {"padding": "same" if style.bounded else "fixed", "activation": inner}
    x = depthwise_bn_act(x, 3, f"{scope}_depthwise", **spatial, **style.options)
    scope = f"{scope}_pointwise"
    return conv_bn_act(x, filters, 1, scope, activation=outer, **style.options)


def _add_shortcut(x, source, block: Block, scope, stride, style: Style):
    """Adds the input of a module to its residual, without an activation."""
    if block.shortcut == "conv":
        options = {"strides": stride, "activation": None} | style.options
        source = conv_bn_act(
            source, block.depths[-1], 1, f"{scope}.shortcut", **options
        )
    source = activate(source, style.linear, f"{scope}.source")
    x = layers.Add(name=f"{scope}.sum")([x, source])
    return activate(x, style.relu, scope) if style.bounded else x


def _module(x, block: Block, scope, stride, rates, style: Style):
    """Returns the output of a module and of its second convolution (Fig. 4)."""
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
    if block.shortcut != "none":
        x = _add_shortcut(x, source, block, scope, stride, style)
    return x, outputs[1]


def _root(image, scope, style: Style):
    """Applies the two 3x3 convolutions of the entry flow."""
    options = {"activation": style.relu, "padding": "fixed"} | style.options
    scope = f"{scope}.entry_flow.conv1"
    x = conv_bn_act(image, 32, 3, f"{scope}_1", strides=_ROOT_STRIDE, **options)
    return conv_bn_act(x, 64, 3, f"{scope}_2", **options)


def xception(
    image,
    output_stride: int,
    network: Xception,
    multi_grid: tuple[int, ...] = (),
    depthwise_activation: bool = False,
    bounded_activation: bool = False,
    batch_norm_momentum: float | None = None,
    batch_norm_epsilon: float | None = None,
) -> dict[str | int, object]:
    """Returns the high-level features of an Xception, and the low-level ones by stride.

    Low-level features (strides 4, 8, 16) are the linear output of the second
    convolution of a module, before the strided third one. The image is RGB, scaled to
    [-1, 1].

    Args:
        image: `[batch, height, width, channels]`.
        output_stride: Output stride of the high-level features.
        network: The architecture.
        multi_grid: Rates of the three convolutions of the last module, relative to the
            block's rate; () means all 1, as in the paper.
        depthwise_activation: Whether to add the ReLU after each depthwise convolution
            that the paper describes; the released networks lack it.
        bounded_activation: Whether to clip activations to 6.
        batch_norm_momentum: Decay of the moving statistics; None means 0.9997.
        batch_norm_epsilon: Epsilon of batch normalisation; None means 1e-3.
    """
    normalize = make_batch_norm(
        batch_norm_momentum, batch_norm_epsilon, official=(0.9997, 1e-3)
    )
    style = Style(normalize, depthwise_activation, bounded_activation)
    x = _root(image, network.scope, style)
    modules = [(b, unit) for b in network.blocks for unit in range(1, b.units + 1)]
    strides = [block.stride for block, _ in modules]
    steps = strides_and_rates(strides, output_stride // _ROOT_STRIDE)
    features = {}
    for (block, unit), (stride, rate) in zip(modules, steps, strict=True):
        scope = f"{network.scope}.{block.scope}.unit_{unit}.xception_module"
        grid = multi_grid if multi_grid and block.shortcut == "none" else (1, 1, 1)
        rates = [rate * unit_rate for unit_rate in grid]
        x, low_level = _module(x, block, scope, stride, rates, style)
        if block.low_level:
            features[block.low_level] = low_level
    return features | {"high_level": x}
