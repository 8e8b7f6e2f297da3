"""Named experiments from the papers, the model zoo and our own recipes.

`python -m deeplab_tf.presets` lists them; pass `--preset=NAME` to `train.py`,
`eval.py`, `vis.py` or `export.py` to use one. Scores are mean IoU in percent.
"""

import functools

from deeplab_tf.errors import UserError, suggest_similar
from deeplab_tf.presets import camvid, deeplabv3, deeplabv3plus, model_zoo, stages
from deeplab_tf.presets.preset import (
    Preset,
    Published,
    describe,
    describe_run,
    is_preset_followed,
)

__all__ = [
    "PRESETS",
    "Preset",
    "Published",
    "describe",
    "describe_run",
    "find_preset",
    "is_preset_followed",
]

PRESETS: dict[str, Preset]


@functools.cache
def _make_presets() -> dict[str, Preset]:
    all_rows = (
        *(deeplabv3.cascades, deeplabv3.pyramids),
        *(deeplabv3plus.decoders, deeplabv3plus.resnet),
        *(deeplabv3plus.xception_65, deeplabv3plus.cityscapes),
        *(model_zoo.pascal_voc, model_zoo.cityscapes),
        *(model_zoo.ade20k_checkpoints, model_zoo.pretrained_backbones),
        *(stages.stages, camvid.recipes),
    )
    return {preset.name: preset for rows in all_rows for preset in rows()}


def __getattr__(name: str) -> object:
    # Made on first use, because `--help` needs none of them.
    if name == "PRESETS":
        return _make_presets()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def find_preset(name: str) -> Preset:
    """Returns a preset by name; raises UserError, with similar names, if unknown."""
    presets = _make_presets()
    if name not in presets:
        hint = suggest_similar(name, presets)
        raise UserError(
            f"there is no preset {name!r}; {hint}python -m "
            "deeplab_tf.presets lists the names"
        )
    return presets[name]
