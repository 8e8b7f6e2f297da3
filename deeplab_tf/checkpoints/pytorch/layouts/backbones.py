"""Backbones under the variable names of PyTorch projects."""

from collections.abc import Iterator, Mapping
from typing import Any

from deeplab_tf.checkpoints.pytorch.layouts.layout import Convolution, count_modules
from deeplab_tf.config import BACKBONES, ConventionsConfig, ModelConfig
from deeplab_tf.config.backbones.mobilenet import MobileNet
from deeplab_tf.config.backbones.resnet import ResNet

Shapes = Mapping[str, tuple[int, ...]]

# Statistics of ImageNet, 0..255, in RGB order.
_MEAN = (123.675, 116.28, 103.53)
_DEVIATION = (58.395, 57.12, 57.375)
# Decay of the moving statistics; PyTorch's momentum is 0.1.
MOMENTUM = 0.9


def pytorch_conventions(
    backbone: str, channels: int = 3, **fields: Any
) -> ConventionsConfig:
    """Returns the conventions of PyTorch's networks, with some fields replaced.

    Images that do not have three channels are scaled to [0, 1].
    """
    common = {
        "padding": "symmetric",
        "strided_unit": "first",
        "low_level": "output",
    }
    row = BACKBONES[backbone]
    own: dict = {
        name: value for name, value in common.items() if name in row.conventions
    }
    if isinstance(row.network, ResNet) and row.network.lite:
        own["strided_convolution"] = 1
    is_rgb = channels == 3
    scaling = {
        "pixel_mean": _MEAN if is_rgb else channels * (0.0,),
        "pixel_deviation": _DEVIATION if is_rgb else channels * (255.0,),
    }
    # The official code uses this epsilon only in ResNets and heads.
    epsilon = {"batch_norm_epsilon": 1e-5}
    return ConventionsConfig(**{**own, **scaling, **epsilon, **fields})


def backbone_convolutions(config: ModelConfig, builders: Mapping) -> Iterator:
    """Yields the convolutions of a backbone.

    `builders` maps network types to functions and name prefixes; other types yield no
    convolutions.
    """
    network = BACKBONES[config.backbone].network
    if type(network) in builders:
        function, prefix = builders[type(network)]
        yield from function(network, prefix)


def find_resnet(shapes: Shapes, prefix: str) -> str | None:
    """Returns the name of the ResNet whose variables start with a prefix, or None."""
    units = tuple(count_modules(shapes, f"{prefix}layer{i}.") for i in range(1, 5))
    is_lite = f"{prefix}layer1.0.conv3.weight" not in shapes
    stem = [shapes.get(f"{prefix}stem.{i}.weight", (0,))[0] for i in (0, 3, 6)]
    root = tuple(stem) if all(stem) else ()
    if not root and f"{prefix}conv1.weight" not in shapes:
        return None
    for name, row in BACKBONES.items():
        network = row.network
        if isinstance(network, ResNet) and (units, root, is_lite) == (
            network.units,
            network.root,
            network.lite,
        ):
            return name
    return None


def resnet_convolutions(network: ResNet, prefix: str) -> Iterator[Convolution]:
    """Yields the convolutions of a ResNet."""
    scope = network.scope
    if not network.root:
        yield Convolution(f"{scope}/conv1", f"{prefix}conv1", f"{prefix}bn1")
    for i in range(len(network.root)):
        conv, norm = (f"{prefix}stem.{3 * i + k}" for k in (0, 1))
        yield Convolution(f"{scope}/conv1_{i + 1}", conv, norm)
    kind, count = ("lite_bottleneck_v1", 2) if network.lite else ("bottleneck_v1", 3)
    for block, units in enumerate(network.units, 1):
        for unit in range(units):
            ours = f"{scope}/block{block}/unit_{unit + 1}/{kind}"
            theirs = f"{prefix}layer{block}.{unit}"
            if unit == 0 and not (network.lite and block == 1):
                shortcut = (f"{theirs}.downsample.0", f"{theirs}.downsample.1")
                yield Convolution(f"{ours}/shortcut", *shortcut)
            for k in range(1, count + 1):
                yield Convolution(
                    f"{ours}/conv{k}", f"{theirs}.conv{k}", f"{theirs}.bn{k}"
                )


def mobilenet_v2_convolutions(network: MobileNet, prefix: str) -> Iterator[Convolution]:
    """Yields the convolutions of torchvision's MobileNetV2."""
    scope = network.scope
    yield Convolution(f"{scope}/Conv", f"{prefix}0.0", f"{prefix}0.1")
    for i, block in enumerate(network.blocks):
        ours = block_scope(network, i)
        theirs, k = f"{prefix}{i + 1}.conv", 0
        for part in ("expand", "depthwise"):
            if part == "depthwise" or block.expansion > 1:
                both = (f"{theirs}.{k}.0", f"{theirs}.{k}.1")
                yield Convolution(f"{ours}/{part}", *both)
                k += 1
        yield Convolution(f"{ours}/project", f"{theirs}.{k}", f"{theirs}.{k + 1}")
    if network.last is not None:
        last = f"{prefix}{len(network.blocks) + 1}"
        yield Convolution(f"{scope}/Conv_1", f"{last}.0", f"{last}.1")


def mobilenet_v3_convolutions(network: MobileNet, prefix: str) -> Iterator[Convolution]:
    """Yields the convolutions of torchvision's MobileNetV3."""
    scope = network.scope
    yield Convolution(f"{scope}/Conv", f"{prefix}0.0", f"{prefix}0.1")
    for i, block in enumerate(network.blocks):
        ours = block_scope(network, i)
        theirs, k = f"{prefix}{i + 1}.block", 0
        parts = ["expand"] if block.expansion > 1 else []
        parts += [
            "depthwise",
            *(["squeeze_excite"] if block.squeeze else []),
            "project",
        ]
        for k, part in enumerate(parts):
            if part == "squeeze_excite":
                yield Convolution(f"{ours}/{part}/Conv", f"{theirs}.{k}.fc1")
                yield Convolution(f"{ours}/{part}/Conv_1", f"{theirs}.{k}.fc2")
            else:
                both = (f"{theirs}.{k}.0", f"{theirs}.{k}.1")
                yield Convolution(f"{ours}/{part}", *both)
    last = f"{prefix}{len(network.blocks) + 1}"
    yield Convolution(f"{scope}/Conv_1", f"{last}.0", f"{last}.1")


def block_scope(network: MobileNet, index: int) -> str:
    """Returns the official scope of a MobileNet's block."""
    return f"{network.scope}/expanded_conv" + (f"_{index}" if index else "")
