"""Our own recipe: CamVid on a CPU, fine-tuned from the MobileNetV2 of PASCAL VOC.

The papers do not use CamVid. Hyperparameters were chosen on val and, because val is a
single daylight sequence, also on held-out training images taken at dusk.
"""

from collections.abc import Iterator

from deeplab_tf.config import (
    ContextConfig,
    DataConfig,
    DecoderConfig,
    EvalConfig,
    ModelConfig,
    TrainConfig,
)
from deeplab_tf.presets.preset import Preset, Published

# Square roots of the median frequency weights, a compromise between rare and frequent
# classes.
_WEIGHTS = (0.53, 0.45, 2.19, 0.39, 1.0, 0.65, 1.96, 1.41, 0.89, 2.53, 2.97)
_REMARK = "our own recipe; test 66.9; about 100 minutes on one CPU core"


def recipes() -> Iterator[Preset]:
    """Yields presets of DeepLabv3+ with MobileNetV2."""
    model = ModelConfig(
        num_classes=11,
        context=ContextConfig(rates=()),
        decoder=DecoderConfig(),
        # The official value is too slow for so few steps.
        batch_norm_momentum=0.99,
    )
    train = TrainConfig(
        optimizer="adamw",
        base_learning_rate=0.001,
        weight_decay=0.01,
        training_number_of_steps=2400,
        label_weights=_WEIGHTS,
        ignore_label=11,
        eval_interval_steps=100,
    )
    data = DataConfig(
        dataset="camvid",
        crop_size=(321, 321),
        batch_size=8,
        mean_pixel=model.mean_pixel,
        # One of two test sequences is at dusk, but only 1/6 of the training images.
        photometric_jitter=0.5,
    )
    evaluation = EvalConfig(
        eval_scales=(0.75, 1.0, 1.25),
        add_flipped_images=True,
        # 64k + 1 aligns features and pixels at every scale.
        eval_crop_size=(385, 513),
        ignore_label=11,
    )
    yield Preset(
        name="camvid_mobilenetv2",
        source="docs/results.md",
        model=model,
        data=data,
        train=train,
        train_split="train",
        start="mobilenetv2_coco_voc_trainval",
        evaluation=evaluation,
        eval_output_stride=16,
        eval_split="val",
        published=Published(remark=_REMARK),
        expected_miou=(
            (100, 0.36),
            (500, 0.54),
            (1000, 0.69),
            (1500, 0.69),
            (2400, 0.73),
        ),
    )
