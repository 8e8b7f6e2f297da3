"""The papers' training stages for VOC: COCO, `train_aug`, `trainval`.

Each stage starts from the checkpoint of the previous one (1706.05587, Sec. 4.1 and 4.3;
DeepLabv3+ does the same). It has the protocol and figures of the table row that it
produces, except for the COCO stage, which has none. To skip COCO, train `train_aug`
from ImageNet, with a larger learning rate.
"""

import dataclasses
from collections.abc import Iterator

from deeplab_tf.presets import deeplabv3, deeplabv3plus, model_zoo
from deeplab_tf.presets.preset import Preset
from deeplab_tf.presets.recipes import COCO, VOC, make_preset

_PAPER = "1706.05587"
_COCO_REMARK = (
    "learning rate and steps are from the authors in tensorflow/models#4234, who say "
    "300000 steps are enough"
)
_NO_FIGURE = "the model zoo's figure includes COCO"
# By family, the table rows that its stages produce: `train_aug` from ImageNet (None if
# not published), `train_aug` from COCO, and `trainval`.
_FINISHED = {
    "deeplabv3_mobilenet_v2": (
        None,
        "mobilenetv2_coco_voc_trainaug",
        "mobilenetv2_coco_voc_trainval",
    ),
    "deeplabv3_resnet_v1_101_beta": (
        "deeplabv3_table6_os16",
        "deeplabv3_table6_os8_ms_flip_coco",
        "deeplabv3_table7_test",
    ),
    "deeplabv3plus_xception_65": (
        "deeplabv3plus_table5_eval16_decoder_sc",
        "deeplabv3plus_table5_eval16_decoder_sc_coco",
        "deeplabv3plus_table6_test",
    ),
}


def _make_stage(name: str, finished: Preset, start: str) -> Preset:
    """Returns a table row under the name of the stage that produces it."""
    # Leave the multiply-adds to the table row itself.
    published = dataclasses.replace(finished.published, multiply_adds=None)
    return dataclasses.replace(finished, name=name, start=start, published=published)


def stages() -> Iterator[Preset]:
    """Yields a preset for each stage of training the papers' best models."""
    tables = (deeplabv3.pyramids, deeplabv3plus.xception_65, model_zoo.pascal_voc)
    rows = {preset.name: preset for table in tables for preset in table()}
    for family, (imagenet, coco, trainval) in _FINISHED.items():
        first, second = f"{family}_stage1_coco", f"{family}_stage2_train_aug"
        model, source = rows[coco].model, f"{_PAPER}, Sec. 4"
        yield make_preset(first, f"{source}.3", model, COCO, remark=_COCO_REMARK)
        name = f"{second}_from_imagenet"
        if imagenet:
            yield _make_stage(name, rows[imagenet], VOC["start"])
        else:
            yield make_preset(name, f"{source}.1", model, VOC, remark=_NO_FIGURE)
        yield _make_stage(f"{second}_from_coco", rows[coco], first)
        yield _make_stage(
            f"{family}_stage3_trainval", rows[trainval], f"{second}_from_coco"
        )
