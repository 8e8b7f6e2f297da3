"""`MobileNetV2ForSemanticSegmentation` of Hugging Face's transformers."""

from collections.abc import Iterator, Mapping

from deeplab_tf.checkpoints.pytorch.layouts.backbones import Shapes, block_scope
from deeplab_tf.checkpoints.pytorch.layouts.layout import Convolution, Layout
from deeplab_tf.config import BACKBONES, ContextConfig, DecoderConfig, ModelConfig

_BACKBONE = "mobilenet_v2"
_HEAD = "segmentation_head"
_STEM = f"{_BACKBONE}.conv_stem"
_LOGITS = f"{_HEAD}.classifier.convolution.weight"


def _identify(shapes: Shapes, description: Mapping) -> ModelConfig | None:
    """Returns the config of a network of this project, or None."""
    first = shapes.get(f"{_STEM}.first_conv.convolution.weight")
    if first is None or _LOGITS not in shapes:
        return None
    # The weights are those of the official checkpoint, whose conventions are the
    # defaults.
    multiplier = first[0] / 32
    narrow = shapes[f"{_BACKBONE}.layer.0.reduce_1x1.convolution.weight"][0]
    context = ContextConfig(rates=(), filters=shapes[_LOGITS][1])
    return ModelConfig(
        _BACKBONE,
        num_classes=shapes[_LOGITS][0],
        output_stride=description.get("output_stride", 8),
        depth_multiplier=multiplier,
        divisible_by=8 if multiplier != 1 and narrow % 8 == 0 else None,
        context=context,
        decoder=DecoderConfig(()),
    )


def _convolution(scope: str, module: str) -> Convolution:
    return Convolution(scope, f"{module}.convolution", f"{module}.normalization")


def _convolutions(config: ModelConfig) -> Iterator[Convolution]:
    """Yields the convolutions of a network of this project."""
    network = BACKBONES[_BACKBONE].network
    yield _convolution(f"{network.scope}/Conv", f"{_STEM}.first_conv")
    names = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
    for i in range(len(network.blocks)):
        module = f"{_BACKBONE}.layer.{i - 1}" if i else _STEM
        for ours, theirs in names.items():
            if i or ours != "expand":
                scope = f"{block_scope(network, i)}/{ours}"
                yield _convolution(scope, f"{module}.{theirs}")
    yield _convolution("image_pooling", f"{_HEAD}.conv_pool")
    yield _convolution("aspp0", f"{_HEAD}.conv_aspp")
    yield _convolution("concat_projection", f"{_HEAD}.conv_projection")
    yield Convolution("logits/semantic", f"{_HEAD}.classifier.convolution")


LAYOUTS = (Layout("Hugging Face's MobileNetV2", _identify, _convolutions),)
