"""ImageNet classifiers of torchvision and timm, to start training from.

The head is ours, and images are padded as in the official code, which makes no
difference at sizes of `k * output_stride + 1`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deeplab_tf.checkpoints.pytorch.layouts.backbones import (
    Shapes,
    block_scope,
    find_resnet,
    mobilenet_v2_convolutions,
    mobilenet_v3_convolutions,
    pytorch_conventions,
    resnet_convolutions,
)
from deeplab_tf.checkpoints.pytorch.layouts.layout import (
    Convolution,
    Layout,
    count_modules,
)
from deeplab_tf.config import BACKBONES, ModelConfig
from deeplab_tf.config.backbones.mobilenet import MobileNet
from deeplab_tf.config.backbones.xception import Xception

# DeepLab has no use for the convolution to 1280 channels.
_V2, _V3 = "mobilenet_v2", "mobilenet_v3_large_classifier"


def _make_config(backbone: str, **fields: Any) -> ModelConfig:
    """Returns the config of a classifier with PyTorch's conventions."""
    conventions = pytorch_conventions(backbone, padding="official", **fields)
    return ModelConfig(backbone, conventions=conventions)


def _identify_resnet(shapes: Shapes, _: Mapping) -> ModelConfig | None:
    backbone = find_resnet(shapes, "")
    return _make_config(backbone) if backbone and "fc.weight" in shapes else None


def _is_pointwise_kernel(shapes: Shapes, name: str, depth: tuple[int, int]) -> bool:
    """Returns whether a variable is a 1x1 kernel with these `(filters, channels)`."""
    return shapes.get(name) == (*depth, 1, 1)


def _identify_mobilenet_v2(shapes: Shapes, _: Mapping) -> ModelConfig | None:
    is_v2 = _is_pointwise_kernel(shapes, "features.18.0.weight", (1280, 320))
    return _make_config(_V2) if is_v2 else None


def _identify_mobilenet_v3(shapes: Shapes, _: Mapping) -> ModelConfig | None:
    is_v3 = _is_pointwise_kernel(shapes, "features.16.0.weight", (960, 160))
    # Its epsilon is the official one.
    return _make_config(_V3, batch_norm_epsilon=None) if is_v3 else None


def _identify_timm_mobilenet_v2(shapes: Shapes, _: Mapping) -> ModelConfig | None:
    is_v2 = _is_pointwise_kernel(shapes, "conv_head.weight", (1280, 320))
    return _make_config(_V2) if is_v2 else None


def _identify_timm_mobilenet_v3(shapes: Shapes, _: Mapping) -> ModelConfig | None:
    is_v3 = _is_pointwise_kernel(shapes, "blocks.6.0.conv.weight", (960, 160))
    return _make_config(_V3) if is_v3 else None


def _identify_timm_xception(shapes: Shapes, _: Mapping) -> ModelConfig | None:
    if "blocks.0.stack.conv1.conv_dw.weight" not in shapes:
        return None
    modules = count_modules(shapes, "blocks.")
    for name, row in BACKBONES.items():
        network = row.network
        if isinstance(network, Xception) and modules == sum(
            block.units for block in network.blocks
        ):
            return ModelConfig(name)  # timm has the official weights
    return None


def _backbone_convolutions(
    of_network: Callable, prefix: str, config: ModelConfig
) -> Iterator[Convolution]:
    """Yields the convolutions that `of_network` lists for the config's backbone."""
    yield from of_network(BACKBONES[config.backbone].network, prefix)


def _timm_mobilenet_convolutions(config: ModelConfig) -> Iterator[Convolution]:
    """Yields the convolutions of a MobileNetV2 or MobileNetV3 of timm."""
    network: MobileNet = BACKBONES[config.backbone].network
    yield Convolution(f"{network.scope}/Conv", "conv_stem", "bn1")
    stage, number, filters = -1, 0, None
    for i, block in enumerate(network.blocks):
        is_new = block.filters != filters
        stage, number = (stage + 1, 0) if is_new else (stage, number + 1)
        filters, module = block.filters, f"blocks.{stage}.{number}"
        scope = block_scope(network, i)
        parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if block.expansion == 1:
            parts = {"depthwise": "conv_dw", "project": "conv_pw"}
        for k, (ours, theirs) in enumerate(parts.items(), 1):
            names = (f"{module}.{theirs}", f"{module}.bn{k}")
            yield Convolution(f"{scope}/{ours}", *names)
        if block.squeeze:
            for ours, theirs in (("Conv", "conv_reduce"), ("Conv_1", "conv_expand")):
                name = f"{module}.se.{theirs}"
                yield Convolution(f"{scope}/squeeze_excite/{ours}", name)
    if network.last is not None:
        names = (f"blocks.{stage + 1}.0.conv", f"blocks.{stage + 1}.0.bn1")
        yield Convolution(f"{network.scope}/Conv_1", *names)


def _timm_xception_convolutions(config: ModelConfig) -> Iterator[Convolution]:
    """Yields the convolutions of an Xception of timm."""
    network: Xception = BACKBONES[config.backbone].network
    for i in (1, 2):
        stem = (f"stem.{i - 1}.conv", f"stem.{i - 1}.bn")
        yield Convolution(f"{network.scope}/entry_flow/conv1_{i}", *stem)
    modules = [(b, unit) for b in network.blocks for unit in range(1, b.units + 1)]
    for k, (block, unit) in enumerate(modules):
        scope = f"{network.scope}/{block.scope.replace('.', '/')}/unit_{unit}"
        scope, module = f"{scope}/xception_module", f"blocks.{k}"
        if block.shortcut == "conv":
            names = (f"{module}.shortcut.conv", f"{module}.shortcut.bn")
            yield Convolution(f"{scope}/shortcut", *names)
        for i in (1, 2, 3):
            ours, theirs = f"{scope}/separable_conv{i}", f"{module}.stack.conv{i}"
            depthwise = (f"{theirs}.conv_dw", f"{theirs}.bn_dw")
            yield Convolution(f"{ours}_depthwise", *depthwise)
            pointwise = (f"{theirs}.conv_pw", f"{theirs}.bn_pw")
            yield Convolution(f"{ours}_pointwise", *pointwise)


def _make_layout(name: str, identify: Callable, convolutions: Callable) -> Layout:
    return Layout(f"the ImageNet {name}", identify, convolutions, is_backbone=True)


_resnet = functools.partial(_backbone_convolutions, resnet_convolutions, "")
_v2 = functools.partial(_backbone_convolutions, mobilenet_v2_convolutions, "features.")
_v3 = functools.partial(_backbone_convolutions, mobilenet_v3_convolutions, "features.")
LAYOUTS = (
    _make_layout("ResNet of torchvision or timm", _identify_resnet, _resnet),
    _make_layout("MobileNetV2 of torchvision", _identify_mobilenet_v2, _v2),
    _make_layout("MobileNetV3 of torchvision", _identify_mobilenet_v3, _v3),
    _make_layout(
        "MobileNetV2 of timm", _identify_timm_mobilenet_v2, _timm_mobilenet_convolutions
    ),
    _make_layout(
        "MobileNetV3 of timm", _identify_timm_mobilenet_v3, _timm_mobilenet_convolutions
    ),
    _make_layout(
        "Xception of timm", _identify_timm_xception, _timm_xception_convolutions
    ),
)
