"""CamVid on a CPU, from the MobileNetV2 of PASCAL VOC: a recipe of ours.

The papers do not use CamVid. Everything was chosen on val, and on training images of
dusk that were held out: val is a single bright shot.
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

# Square roots of what `--class_weighting=median_frequency` gives: rare classes count,
# and the frequent ones are not forgotten.
_WEIGHTS = (0.53, 0.45, 2.19, 0.39, 1.0, 0.65, 1.96, 1.41, 0.89, 2.53, 2.97)
_REMARK = "no paper's; test 66.9; about 100 minutes on one CPU core"


def recipes() -> Iterator[Preset]:
    """Yields the recipe, DeepLabv3+ with MobileNetV2."""
    model = ModelConfig(
        num_classes=11,
        context=ContextConfig(rates=()),
        decoder=DecoderConfig(),
        # The official constants are too slow for so few steps.
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
        # One of the two test drives is at dusk, as a sixth of the training images are.
        photometric_jitter=0.5,
    )
    evaluation = EvalConfig(
        eval_scales=(0.75, 1.0, 1.25),
        add_flipped_images=True,
        # 64k + 1, so that features and pixels meet at every scale.
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
        canaries=((100, 0.36), (500, 0.54), (1000, 0.69), (1500, 0.69), (2400, 0.73)),
    )
