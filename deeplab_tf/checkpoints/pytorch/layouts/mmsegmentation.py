"""DeepLabv3 and DeepLabv3+ of MMSegmentation, with ResNets and ResNetV1c."""

from collections.abc import Iterator, Mapping

from deeplab_tf.checkpoints.pytorch.layouts.backbones import (
    MOMENTUM,
    Shapes,
    backbone_convolutions,
    find_resnet,
    pytorch_conventions,
    resnet_convolutions,
)
from deeplab_tf.checkpoints.pytorch.layouts.layout import Convolution, Layout
from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.config.backbones.resnet import ResNet

_HEAD = "decode_head"
_LOGITS = f"{_HEAD}.conv_seg.weight"
_BOTTLENECK = f"{_HEAD}.bottleneck.conv.weight"
_BUILDERS = {ResNet: (resnet_convolutions, "backbone.")}
_RATES = (12, 24, 36)  # of "D8" networks


def _identify(shapes: Shapes, _: Mapping) -> ModelConfig | None:
    """Returns the config of a network of this project, or None."""
    backbone = find_resnet(shapes, "backbone.")
    if backbone is None or _LOGITS not in shapes or _BOTTLENECK not in shapes:
        return None
    filters, kernel_size = shapes[_BOTTLENECK][::2]
    context = ContextConfig(
        rates=_RATES,
        filters=filters,
        separable=f"{_HEAD}.aspp_modules.1.depthwise_conv.conv.weight" in shapes,
        projection_kernel_size=kernel_size,
    )
    decoder = DecoderConfig(())
    if f"{_HEAD}.c1_bottleneck.conv.weight" in shapes:
        projection = shapes[f"{_HEAD}.c1_bottleneck.conv.weight"][0]
        decoder = DecoderConfig((4,), filters, projection_filters=projection)
    return ModelConfig(
        backbone,
        num_classes=shapes[_LOGITS][0],
        output_stride=8,
        batch_norm_momentum=MOMENTUM,
        context=context,
        decoder=decoder,
        conventions=pytorch_conventions(backbone, resizing="half_pixel"),
    )


def _convolution(scope: str, module: str) -> Convolution:
    return Convolution(scope, f"{module}.conv", f"{module}.bn")


def _separable_convolution(scope: str, module: str) -> Iterator[Convolution]:
    for part in ("depthwise", "pointwise"):
        yield _convolution(f"{scope}_{part}", f"{module}.{part}_conv")


def _convolutions(config: ModelConfig) -> Iterator[Convolution]:
    """Yields the convolutions of a network of this project."""
    yield from backbone_convolutions(config, _BUILDERS)
    yield _convolution("image_pooling", f"{_HEAD}.image_pool.1")
    yield _convolution("aspp0", f"{_HEAD}.aspp_modules.0")
    for i in range(1, len(config.atrous_rates) + 1):
        branch = f"{_HEAD}.aspp_modules.{i}"
        if config.context.separable:
            yield from _separable_convolution(f"aspp{i}", branch)
        else:
            yield _convolution(f"aspp{i}", branch)
    yield _convolution("concat_projection", f"{_HEAD}.bottleneck")
    if config.decoder_output_strides:
        projection = f"{_HEAD}.c1_bottleneck"
        yield _convolution("decoder/feature_projection0", projection)
        for i in range(2):
            module = f"{_HEAD}.sep_bottleneck.{i}"
            yield from _separable_convolution(f"decoder/decoder_conv{i}", module)
    yield Convolution("logits/semantic", f"{_HEAD}.conv_seg")


LAYOUTS = (Layout("MMSegmentation", _identify, _convolutions),)
