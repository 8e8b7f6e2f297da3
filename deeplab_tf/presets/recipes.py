"""Recipes and models shared by the presets.

If a paper does not give a number, that of DeepLabv3 (1706.05587, Sec. 4.1) is used;
DeepLabv3+ refers to it.
"""

import dataclasses
from typing import Any

from deeplab_tf.config import (
    ContextConfig,
    DataConfig,
    DecoderConfig,
    EvalConfig,
    ModelConfig,
    TrainConfig,
)
from deeplab_tf.presets.preset import Preset, Published

VOC_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_ONE_SCALE = (1.0,)
# Scales and flip by suffix of the preset name.
INFERENCE: dict[str, dict] = {
    "": {},
    "_ms": {"scales": VOC_SCALES},
    "_ms_flip": {"scales": VOC_SCALES, "flip": True},
}


def make_preset(
    name: str, source: str, model: ModelConfig, protocol: dict, **fields: Any
) -> Preset:
    """Makes a preset, with the weight decay of ResNets if the backbone is one.

    Args:
        name: Name for `--preset`.
        source: Paper and table or section, or the model zoo.
        model: The model at its training output stride.
        protocol: Training, data and evaluation, such as `VOC`.
        **fields: Other fields of `Preset` and `Published`; `train` replaces fields of
            the training config; `scales` and `flip` are those of the evaluation.
    """
    train = dataclasses.asdict(protocol["train"])
    if model.backbone.startswith("resnet"):
        train["weight_decay"] = 1e-4
    own = protocol | {
        "train": TrainConfig(**train | fields.pop("train", {})),
        "data": dataclasses.replace(protocol["data"], mean_pixel=model.mean_pixel),
    }
    evaluation = {
        "eval_scales": fields.pop("scales", _ONE_SCALE),
        "add_flipped_images": fields.pop("flip", False),
    }
    own["evaluation"] = dataclasses.replace(own["evaluation"], **evaluation)
    published = {
        field.name: fields.pop(field.name)
        for field in dataclasses.fields(Published)
        if field.name in fields
    }
    fields.setdefault("eval_output_stride", model.output_stride)
    fields["published"] = Published(**published)
    return Preset(name, source, model, **own | fields)


# DeepLabv3, Sec. 4.1.
VOC: dict = {
    "data": DataConfig(dataset="pascal_voc_seg", crop_size=(513, 513), batch_size=16),
    "train": TrainConfig(base_learning_rate=0.007, training_number_of_steps=30000),
    "train_split": "train_aug",
    "start": "ImageNet",
    "evaluation": EvalConfig(eval_crop_size=(513, 513)),
    "eval_split": "val",
}
# DeepLabv3, Sec. 4.1 and 4.3: models for the test set are fine-tuned on trainval at
# output stride 8 with frozen batch normalisation.
VOC_TEST = VOC | {
    "train": dataclasses.replace(
        VOC["train"], base_learning_rate=0.001, fine_tune_batch_norm=False
    ),
    "train_split": "trainval",
    "eval_split": "test",
}
# DeepLabv3, Sec. 4.3: pretraining on the VOC classes of COCO, before `train_aug`. The
# paper gives no recipe; an author mentions that of VOC with 500k steps and an untuned
# learning rate (github.com/tensorflow/models/issues/4234).
COCO = VOC | {
    "data": dataclasses.replace(VOC["data"], dataset="coco_voc"),
    "train": dataclasses.replace(VOC["train"], training_number_of_steps=500000),
    "train_split": "train",
    # COCO images are at most 640 pixels wide or high.
    "evaluation": EvalConfig(eval_crop_size=(641, 641)),
}
CITYSCAPES = {
    "data": DataConfig(dataset="cityscapes", crop_size=(769, 769), batch_size=16),
    "train": TrainConfig(base_learning_rate=0.007, training_number_of_steps=90000),
    "train_split": "train_fine",
    "start": "ImageNet",
    "evaluation": EvalConfig(eval_crop_size=(1025, 2049)),
    "eval_split": "val_fine",
}


def ade20k(size: int) -> dict:
    """Returns the protocol of ADE20K with images resized to a longer side of `size`."""
    return {
        "data": DataConfig(
            dataset="ade20k",
            crop_size=(size, size),
            batch_size=16,
            min_resize_value=size,
            max_resize_value=size,
            resize_factor=16,
        ),
        "train": TrainConfig(
            base_learning_rate=0.007, training_number_of_steps=150000, ignore_label=0
        ),
        "train_split": "train",
        "start": "ImageNet",
        "evaluation": EvalConfig(eval_crop_size=(size, size), ignore_label=0),
        "eval_split": "val",
    }


NO_DECODER = DecoderConfig(output_strides=())


def deeplabv3(
    grid: tuple[int, ...] = (1, 2, 4),
    rates: tuple[int, ...] = (6, 12, 18),
    image_level: bool = True,
) -> ModelConfig:
    """Returns DeepLabv3's ASPP on ResNet-101."""
    context = ContextConfig(rates, separable=False, image_level=image_level)
    return ModelConfig(
        backbone="resnet_v1_101_beta",
        multi_grid=grid,
        context=context,
        decoder=NO_DECODER,
    )


def deeplabv3plus(
    backbone: str = "xception_65",
    decoder: bool = True,
    separable: bool = True,
    **fields: Any,
) -> ModelConfig:
    """Returns DeepLabv3+ on an Xception; `separable` is SC in the paper's tables.

    `fields` are other fields of `ModelConfig`; `context` has those of `ContextConfig`.
    """
    context = ContextConfig(
        (6, 12, 18), separable=separable, **fields.pop("context", {})
    )
    decoding = DecoderConfig(separable=separable) if decoder else NO_DECODER
    return ModelConfig(backbone=backbone, context=context, decoder=decoding, **fields)
