"""Presets for the tables of DeepLabv3 (1706.05587)."""

from collections.abc import Iterator
from typing import Any

from deeplab_tf.config import ContextConfig, ModelConfig
from deeplab_tf.presets.preset import Preset
from deeplab_tf.presets.recipes import (
    INFERENCE,
    NO_DECODER,
    VOC,
    VOC_TEST,
    deeplabv3,
    make_preset,
)

_PAPER = "1706.05587"
_CASCADE: dict = {"context": ContextConfig(aspp=False), "decoder": NO_DECODER}


def _name_grid(grid: tuple[int, ...]) -> str:
    """Returns the name suffix of a multi-grid, such as "mg124"."""
    return "mg" + "".join(map(str, grid or (1, 1, 1)))


def _make_cascade(
    backbone: str, blocks: int, output_stride: int = 16, grid: tuple[int, ...] = ()
) -> ModelConfig:
    """Returns a ResNet up to block<blocks>, with logits from one convolution."""
    return ModelConfig(
        backbone=f"{backbone}_beta",
        output_stride=output_stride,
        multi_grid=grid,
        cascade_blocks=blocks - 4,
        **_CASCADE,
    )


def _make_row(
    table: int, suffix: str, model: ModelConfig, protocol: dict = VOC, **fields: Any
) -> Preset:
    name = f"deeplabv3_table{table}_{suffix}"
    return make_preset(name, f"{_PAPER}, Table {table}", model, protocol, **fields)


def cascades() -> Iterator[Preset]:
    """Yields presets of Tables 1 to 4 of DeepLabv3: block4 to block7 in cascade."""
    strides = (8, 16, 32, 64, 128, 256)
    mious: tuple[float, ...] = (75.18, 73.88, 70.06, 59.99, 42.34, 20.29)
    for stride, miou in zip(strides, mious, strict=True):
        model = _make_cascade("resnet_v1_50", 7, stride)
        yield _make_row(1, f"resnet50_block7_os{stride}", model, miou=miou)
    for depth, mious in (
        (50, (64.81, 72.14, 74.29, 73.88)),
        (101, (68.39, 73.21, 75.34, 75.76)),
    ):
        for block, miou in enumerate(mious, 4):
            model = _make_cascade(f"resnet_v1_{depth}", block)
            yield _make_row(2, f"resnet{depth}_block{block}", model, miou=miou)
    for grid, mious in (
        ((), (68.39, 73.21, 75.34, 75.76)),
        ((1, 2, 1), (70.23, 75.67, 76.09, 76.66)),
        ((1, 2, 3), (73.14, 75.78, 75.96, 76.11)),
        ((1, 2, 4), (73.45, 75.74, 75.85, 76.02)),
        ((2, 2, 2), (71.45, 74.30, 74.70, 74.62)),
    ):
        for block, miou in enumerate(mious, 4):
            model = _make_cascade("resnet_v1_101", block, 16, grid)
            yield _make_row(3, f"{_name_grid(grid)}_block{block}", model, miou=miou)
    model = _make_cascade("resnet_v1_101", 7, 16, (1, 2, 1))
    for suffix, fields in _list_protocols((16, 76.66), (8, 78.05), 78.93, 79.35):
        yield _make_row(4, suffix, model, **fields)


def _list_protocols(
    first: tuple[int, float],
    second: tuple[int, float],
    multi_scale: float,
    flipped: float,
) -> Iterator[tuple[str, dict]]:
    """Yields suffix and protocol of the four rows in DeepLabv3's Tables 4 and 6.

    `first` and `second` are the output stride and mIoU of two rows. The next rows, with
    multiple scales and then also flipped images, have the output stride of `second`.
    """
    stride = second[0]
    for suffix, output_stride, miou, protocol in (
        (f"os{first[0]}", *first, ""),
        (f"os{stride}", *second, ""),
        (f"os{stride}_ms", stride, multi_scale, "_ms"),
        (f"os{stride}_ms_flip", stride, flipped, "_ms_flip"),
    ):
        fields = {"eval_output_stride": output_stride, "miou": miou}
        yield suffix, fields | INFERENCE[protocol]


def pyramids() -> Iterator[Preset]:
    """Yields presets of Tables 5 to 7 of DeepLabv3: atrous spatial pyramid pooling."""
    rates = (6, 12, 18)
    for suffix, model, miou in (
        ("mg111", deeplabv3((), rates, False), 75.36),
        ("mg121", deeplabv3((1, 2, 1), rates, False), 75.93),
        ("mg124", deeplabv3((1, 2, 4), rates, False), 76.58),
        ("mg124_rate24", deeplabv3((1, 2, 4), (*rates, 24), False), 76.46),
        ("mg124_image_pooling", deeplabv3(), 77.21),
    ):
        yield _make_row(5, suffix, model, miou=miou)
    for suffix, fields in _list_protocols((16, 77.21), (8, 78.51), 79.45, 79.77):
        yield _make_row(6, suffix, deeplabv3(), **fields)
    yield _make_row(
        6,
        "os8_ms_flip_coco",
        deeplabv3(),
        train={"base_learning_rate": 1e-4},
        start="ImageNet, COCO",
        eval_output_stride=8,
        miou=82.7,
        **INFERENCE["_ms_flip"],
    )
    model = deeplabv3().at_output_stride(8)
    for suffix, start, miou in (
        ("test", "deeplabv3_table6_os8_ms_flip_coco", 85.7),
        ("test_jft", "ImageNet, JFT-300M, COCO, train_aug", 86.9),
    ):
        fields = {"start": start, "miou": miou} | INFERENCE["_ms_flip"]
        yield _make_row(7, suffix, model, VOC_TEST, **fields)
