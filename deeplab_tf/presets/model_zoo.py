"""Presets for the official model zoo: one per checkpoint and evaluation protocol."""

import dataclasses
from collections.abc import Iterator

from deeplab_tf.config import RELEASED_CELL, ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.presets.preset import Preset
from deeplab_tf.presets.recipes import (
    CITYSCAPES,
    INFERENCE,
    NO_DECODER,
    VOC,
    VOC_TEST,
    ade20k,
    deeplabv3plus,
    make_preset,
)

_ZOO = "model zoo"
_CITYSCAPES_SCALES = (0.75, 1.0, 1.25)


def _mobilenet_v2(num_classes: int = 21, multiplier: float = 1.0) -> ModelConfig:
    """Returns the zoo's MobileNetV2 "without ASPP": 1x1 branch and image level."""
    return ModelConfig(
        depth_multiplier=multiplier,
        num_classes=num_classes,
        context=ContextConfig(rates=()),
        decoder=NO_DECODER,
    )


def _mobilenet_v3(size: str) -> ModelConfig:
    """Returns MobileNetV3 with the LR-ASPP (1905.02244, Sec. 6.4)."""
    return ModelConfig(
        backbone=f"mobilenet_v3_{size}_seg",
        num_classes=19,
        output_stride=32,
        context=ContextConfig(
            rates=(),
            filters=128,
            image_pooling_crop_size=(769, 769),
            image_pooling_stride=(4, 5),
            projection=False,
            squeeze_and_excitation=True,
            hard_sigmoid=True,
        ),
        decoder=DecoderConfig(
            output_strides=(8,), sum_merge=True, outputs_logits=True, separable=False
        ),
    )


def _edgetpu(output_stride: int, multiplier: float, filters: int) -> ModelConfig:
    """Returns the zoo's MobileNetV3 for the Edge TPU."""
    return ModelConfig(
        backbone="mobilenet_edgetpu",
        num_classes=19,
        output_stride=output_stride,
        depth_multiplier=multiplier,
        context=ContextConfig(rates=(), filters=filters),
        decoder=NO_DECODER,
    )


def pascal_voc() -> Iterator[Preset]:
    """Yields presets of the zoo's PASCAL VOC checkpoints."""
    small, v2, x65 = _mobilenet_v2(multiplier=0.5), _mobilenet_v2(), deeplabv3plus()
    several: dict = {"eval_output_stride": 8} | INFERENCE["_ms_flip"]
    quantized = {"remark": "figures of the 8-bit network"}
    for name, model, options, miou, cost in (
        ("mobilenetv2_dm05_coco_voc_trainaug", small, {}, 70.19, 0.88),
        ("mobilenetv2_dm05_coco_voc_trainaug_8bit", small, quantized, 69.65, 0.88),
        ("mobilenetv2_coco_voc_trainaug", v2, {}, 75.32, 2.75),
        ("mobilenetv2_coco_voc_trainaug_os8_ms_flip", v2, several, 77.33, 152.59),
        ("mobilenetv2_coco_voc_trainaug_8bit", v2, quantized, 74.26, 2.75),
        ("xception65_coco_voc_trainaug", x65, {}, 82.20, 54.17),
        ("xception65_coco_voc_trainaug_os8_ms_flip", x65, several, 83.58, 3055.35),
    ):
        yield make_preset(
            name,
            _ZOO,
            model,
            VOC,
            start="ImageNet, COCO",
            train={"base_learning_rate": 1e-4},
            miou=miou,
            multiply_adds=cost,
            **options,
        )
    several = INFERENCE["_ms_flip"]
    for name, model, options, miou, cost in (
        ("mobilenetv2_dm05_coco_voc", small, {}, 71.83, 2.84),
        ("mobilenetv2_coco_voc", v2, several, 80.25, 152.59),
        ("xception65_coco_voc", x65, several, 87.80, 3055.35),
    ):
        yield make_preset(
            f"{name}_trainval",
            _ZOO,
            model.at_output_stride(8),
            VOC_TEST,
            start=f"{name}_trainaug",
            miou=miou,
            multiply_adds=cost,
            **options,
        )


def cityscapes() -> Iterator[Preset]:
    """Yields presets of the zoo's Cityscapes checkpoints."""
    v2, x65 = _mobilenet_v2(19), deeplabv3plus(num_classes=19)
    cell = ContextConfig(dense_prediction_cell=RELEASED_CELL)
    searched = ModelConfig("xception_71", num_classes=19, context=cell)
    several: dict = {
        "eval_output_stride": 8,
        "scales": _CITYSCAPES_SCALES,
        "flip": True,
    }
    coco = {"start": "ImageNet, COCO"}
    scratch = {
        "start": "scratch",
        "remark": "the published multiply-adds seem to be twice the true count",
    }
    small = {"remark": "multiply-adds seem to be for about 513x513 pixels"}
    test = several | {
        "scales": tuple(0.75 + 0.25 * i for i in range(6)),
        "train_split": "trainval_fine",
        "eval_split": "test_fine",
    }
    for name, model, options, miou, cost in (
        ("mobilenetv2_coco_cityscapes_trainfine", v2, coco, 70.71, 21.27),
        (
            "mobilenetv2_coco_cityscapes_trainfine_os8_ms_flip",
            v2,
            several | coco,
            73.57,
            433.24,
        ),
        (
            "mobilenetv3_large_cityscapes_trainfine",
            _mobilenet_v3("large"),
            scratch,
            72.41,
            15.95,
        ),
        (
            "mobilenetv3_small_cityscapes_trainfine",
            _mobilenet_v3("small"),
            scratch,
            68.99,
            4.63,
        ),
        ("xception65_cityscapes_trainfine", x65, {}, 78.79, 418.64),
        ("xception65_cityscapes_trainfine_os8_ms_flip", x65, several, 80.42, 8677.92),
        ("xception71_dpc_cityscapes_trainfine", searched, {}, 80.31, 502.07),
        ("xception71_dpc_cityscapes_trainval", searched, test, 82.66, None),
        ("edgetpu_deeplab_os32", _edgetpu(32, 1.0, 256), small, 70.6, 5.6),
        ("edgetpu_deeplab_os16", _edgetpu(16, 1.0, 256), small, 74.1, 7.1),
        ("edgetpu_deeplab_slim_os32", _edgetpu(32, 0.75, 128), small, 70.0, 3.5),
        ("edgetpu_deeplab_slim_os16", _edgetpu(16, 0.75, 128), small, 73.2, 4.3),
    ):
        yield make_preset(
            name, _ZOO, model, CITYSCAPES, miou=miou, multiply_adds=cost, **options
        )


def ade20k_checkpoints() -> Iterator[Preset]:
    """Yields presets of the zoo's ADE20K checkpoints."""
    v2 = dataclasses.replace(_mobilenet_v2(151), decoder=DecoderConfig())
    yield make_preset(
        "mobilenetv2_ade20k_train",
        _ZOO,
        v2,
        ade20k(257),
        miou=32.04,
        pixel_accuracy=75.41,
    )
    yield make_preset(
        "xception65_ade20k_train",
        _ZOO,
        deeplabv3plus(num_classes=151),
        ade20k(513),
        eval_output_stride=8,
        miou=45.65,
        pixel_accuracy=82.52,
        **INFERENCE["_ms_flip"],
    )


def pretrained_backbones() -> Iterator[Preset]:
    """Yields presets that train from the zoo's pretrained backbones."""
    for backbone in ("xception_41", "xception_65", "xception_71"):
        yield make_preset(f"{backbone}_imagenet", _ZOO, deeplabv3plus(backbone), VOC)
    for backbone in ("resnet_v1_50_beta", "resnet_v1_101_beta"):
        # The checkpoints were trained with this grid.
        model = deeplabv3plus(backbone, multi_grid=(1, 2, 4))
        yield make_preset(f"{backbone}_imagenet", _ZOO, model, VOC)
    yield make_preset(
        "xception_65_coco", _ZOO, deeplabv3plus(), VOC, start="ImageNet, COCO"
    )
