"""Named experiments from the papers, the model zoo and our own recipes.

`python -m deeplab_tf.presets` lists them; pass `--preset=NAME` to `train.py`, `eval.py`
or `export.py` to use one. Scores are mean IoU in percent.
"""

from deeplab_tf.errors import UserError, suggest_similar
from deeplab_tf.presets import camvid, deeplabv3, deeplabv3plus, model_zoo, stages
from deeplab_tf.presets.preset import (
    Preset,
    Published,
    describe,
    describe_run,
    is_followed,
)

__all__ = [
    "PRESETS",
    "Preset",
    "Published",
    "describe",
    "describe_run",
    "find_preset",
    "is_followed",
]

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for rows in (
        *(deeplabv3.cascades, deeplabv3.pyramids),
        *(deeplabv3plus.decoders, deeplabv3plus.resnet),
        *(deeplabv3plus.xception_65, deeplabv3plus.cityscapes),
        *(model_zoo.pascal_voc, model_zoo.cityscapes),
        *(model_zoo.ade20k_checkpoints, model_zoo.pretrained_backbones),
        *(stages.stages, camvid.recipes),
    )
    for preset in rows()
}


def find_preset(name: str) -> Preset:
    """Returns a preset by name; raises UserError, with similar names, if unknown."""
    if name not in PRESETS:
        hint = suggest_similar(name, PRESETS)
        raise UserError(
            f"there is no preset {name!r}; {hint}python -m deeplab_tf.presets lists all"
        )
    return PRESETS[name]
