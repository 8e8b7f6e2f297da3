"""DeepLabv3 and DeepLabv3+ of segmentation_models_pytorch."""

from collections.abc import Iterator, Mapping

from deeplab_tf.checkpoints.pytorch.layouts.backbones import (
    MOMENTUM,
    Shapes,
    backbone_convolutions,
    find_resnet,
    mobilenet_v2_convolutions,
    pytorch_conventions,
    resnet_convolutions,
)
from deeplab_tf.checkpoints.pytorch.layouts.layout import Convolution, Layout
from deeplab_tf.checkpoints.pytorch.layouts.torchvision import aspp_convolutions
from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.config.backbones.mobilenet import MobileNet
from deeplab_tf.config.backbones.resnet import ResNet

_LOGITS = "segmentation_head.0.weight"
_V2 = "mobilenet_v2_classifier"
_BUILDERS = {
    ResNet: (resnet_convolutions, "encoder."),
    MobileNet: (mobilenet_v2_convolutions, "encoder.features."),
}
_RATES = (12, 24, 36)  # at every output stride


def _identify(
    shapes: Shapes, description: Mapping, aspp: str, decoder: DecoderConfig, stride: int
) -> ModelConfig | None:
    """Returns the config of a network; `aspp` is the name of its ASPP module."""
    logits, projection = shapes.get(_LOGITS), f"{aspp}.project.0.weight"
    backbone = find_resnet(shapes, "encoder.")
    first = "encoder.conv1.weight"
    if backbone is None and "encoder.features.18.0.weight" in shapes:
        backbone, first = _V2, "encoder.features.0.0.weight"
    if backbone is None or logits is None or projection not in shapes:
        return None
    channels = shapes[first][1]
    context = ContextConfig(
        rates=description.get("decoder_atrous_rates", _RATES),
        filters=shapes[projection][0],
        separable=f"{aspp}.convs.1.0.1.weight" in shapes,
        dropout=0.5,
        convolutions=1,
    )
    conventions = pytorch_conventions(
        backbone, channels, first_unit_rate="block", depthwise_normalization=False
    )
    return ModelConfig(
        backbone,
        num_classes=logits[0],
        output_stride=description.get("encoder_output_stride", stride),
        channels=channels,
        batch_norm_momentum=MOMENTUM,
        context=context,
        decoder=decoder,
        conventions=conventions,
    )


def _identify_v3(shapes: Shapes, description: Mapping) -> ModelConfig | None:
    config = _identify(shapes, description, "decoder.aspp", DecoderConfig(()), 8)
    # The convolution after separable branches is dense, which a config cannot express.
    return config if config and not config.context.separable else None


def _identify_v3_plus(shapes: Shapes, description: Mapping) -> ModelConfig | None:
    if "decoder.block1.0.weight" not in shapes:
        return None
    decoder = DecoderConfig(
        (4,),
        filters=shapes["decoder.block2.0.1.weight"][0],
        projection_filters=shapes["decoder.block1.0.weight"][0],
        convolutions=1,
    )
    config = _identify(shapes, description, "decoder.aspp.0", decoder, 16)
    return config if config and config.context.separable else None


def _convolutions_v3(config: ModelConfig) -> Iterator[Convolution]:
    yield from backbone_convolutions(config, _BUILDERS)
    yield from aspp_convolutions(config, "decoder.aspp")
    yield Convolution("aspp_conv_1", "decoder.conv", "decoder.bn")
    yield Convolution("logits/semantic", "segmentation_head.0")


def _convolutions_v3_plus(config: ModelConfig) -> Iterator[Convolution]:
    yield from backbone_convolutions(config, _BUILDERS)
    yield from aspp_convolutions(config, "decoder.aspp.0")
    yield Convolution("aspp_conv_1_depthwise", "decoder.aspp.1.0")
    yield Convolution("aspp_conv_1_pointwise", "decoder.aspp.1.1", "decoder.aspp.2")
    block1 = ("decoder.block1.0", "decoder.block1.1")
    yield Convolution("decoder/feature_projection0", *block1)
    scope, block2 = "decoder/decoder_conv0", "decoder.block2"
    yield Convolution(f"{scope}_depthwise", f"{block2}.0.0")
    yield Convolution(f"{scope}_pointwise", f"{block2}.0.1", f"{block2}.1")
    yield Convolution("logits/semantic", "segmentation_head.0")


_PROJECT = "segmentation_models_pytorch's"
LAYOUTS = (
    Layout(f"{_PROJECT} DeepLabV3", _identify_v3, _convolutions_v3),
    Layout(f"{_PROJECT} DeepLabV3Plus", _identify_v3_plus, _convolutions_v3_plus),
)
