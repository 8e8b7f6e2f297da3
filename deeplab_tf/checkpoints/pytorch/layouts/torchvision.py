"""DeepLabv3 and LR-ASPP of torchvision (`torchvision.models.segmentation`)."""

from collections.abc import Iterator, Mapping

from deeplab_tf.checkpoints.pytorch.layouts.backbones import (
    MOMENTUM,
    Shapes,
    backbone_convolutions,
    find_resnet,
    mobilenet_v3_convolutions,
    pytorch_conventions,
    resnet_convolutions,
)
from deeplab_tf.checkpoints.pytorch.layouts.layout import Convolution, Layout
from deeplab_tf.config import (
    ContextConfig,
    ConventionsConfig,
    DecoderConfig,
    ModelConfig,
)
from deeplab_tf.config.backbones.mobilenet import MobileNet
from deeplab_tf.config.backbones.resnet import ResNet

_V3_LARGE = "mobilenet_v3_large_classifier"
_LOGITS = "classifier.4.weight"
_LRASPP_LOGITS = "classifier.high_classifier.weight"
_BUILDERS = {
    ResNet: (resnet_convolutions, "backbone."),
    MobileNet: (mobilenet_v3_convolutions, "backbone."),
}
# DeepLabv3 has these rates at every output stride.
_RATES = (12, 24, 36)


def _identify_deeplab(shapes: Shapes, _: Mapping) -> ModelConfig | None:
    """Returns the config of torchvision's DeepLabv3, or None for other networks."""
    if "classifier.0.convs.4.1.weight" not in shapes or _LOGITS not in shapes:
        return None
    backbone, stride = find_resnet(shapes, "backbone."), 8
    if backbone is None:
        backbone, stride = _find_mobilenet(shapes), 16
    if backbone is None:
        return None
    filters = shapes["classifier.0.project.0.weight"][0]
    context = ContextConfig(
        rates=_RATES, filters=filters, separable=False, dropout=0.5, convolutions=1
    )
    return ModelConfig(
        backbone,
        num_classes=shapes[_LOGITS][0],
        output_stride=stride,
        batch_norm_momentum=MOMENTUM,
        context=context,
        decoder=DecoderConfig(()),
        conventions=_make_conventions(backbone),
    )


def _find_mobilenet(shapes: Shapes) -> str | None:
    kernel = shapes.get("backbone.16.0.weight")
    return _V3_LARGE if kernel == (960, 160, 1, 1) else None


def _make_conventions(backbone: str) -> ConventionsConfig:
    fields: dict = {"resizing": "half_pixel"}
    if backbone == _V3_LARGE:
        # Its epsilons are the official ones.
        fields |= {"first_unit_rate": "block", "batch_norm_epsilon": None}
    return pytorch_conventions(backbone, **fields)


def _deeplab_convolutions(config: ModelConfig) -> Iterator[Convolution]:
    yield from backbone_convolutions(config, _BUILDERS)
    yield from aspp_convolutions(config, "classifier.0")
    yield Convolution("aspp_conv_1", "classifier.1", "classifier.2")
    yield Convolution("logits/semantic", "classifier.4")


def aspp_convolutions(config: ModelConfig, prefix: str) -> Iterator[Convolution]:
    """Yields an ASPP's convolutions, dense or as in segmentation_models_pytorch."""
    branches = f"{prefix}.convs"
    yield Convolution("aspp0", f"{branches}.0.0", f"{branches}.0.1")
    rates = config.atrous_rates
    for i in range(1, len(rates) + 1):
        branch = f"{branches}.{i}"
        if config.context.separable:
            yield Convolution(f"aspp{i}_depthwise", f"{branch}.0.0")
            yield Convolution(f"aspp{i}_pointwise", f"{branch}.0.1", f"{branch}.1")
        else:
            yield Convolution(f"aspp{i}", f"{branch}.0", f"{branch}.1")
    pooling = f"{branches}.{len(rates) + 1}"
    yield Convolution("image_pooling", f"{pooling}.1", f"{pooling}.2")
    project = (f"{prefix}.project.0", f"{prefix}.project.1")
    yield Convolution("concat_projection", *project, roll=config.context.filters)


def _identify_lraspp(shapes: Shapes, _: Mapping) -> ModelConfig | None:
    """Returns the config of torchvision's LR-ASPP, or None for other networks."""
    backbone = _find_mobilenet(shapes)
    if _LRASPP_LOGITS not in shapes or backbone is None:
        return None
    classes, filters = shapes[_LRASPP_LOGITS][:2]
    context = ContextConfig(
        rates=(),
        filters=filters,
        projection=False,
        squeeze_and_excitation=True,
        gate_bias=False,
    )
    decoder = DecoderConfig((8,), sum_merge=True, outputs_logits=True)
    return ModelConfig(
        backbone,
        num_classes=classes,
        output_stride=16,
        batch_norm_momentum=MOMENTUM,
        context=context,
        decoder=decoder,
        conventions=_make_conventions(backbone),
    )


def _lraspp_convolutions(config: ModelConfig) -> Iterator[Convolution]:
    yield from backbone_convolutions(config, _BUILDERS)
    yield Convolution("aspp0", "classifier.cbr.0", "classifier.cbr.1")
    yield Convolution("image_pooling", "classifier.scale.1")
    yield Convolution("decoder/feature_projection0", "classifier.low_classifier")
    yield Convolution("decoder/decoder_conv0", "classifier.high_classifier")


LAYOUTS = (
    Layout("torchvision's DeepLabv3", _identify_deeplab, _deeplab_convolutions),
    Layout("torchvision's LR-ASPP", _identify_lraspp, _lraspp_convolutions),
)
