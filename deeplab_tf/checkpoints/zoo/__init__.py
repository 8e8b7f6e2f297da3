"""The checkpoints of the official model zoo.

    python -m deeplab_tf.checkpoints.zoo

lists them, and those of PyTorch projects, with their figures. Names and archives are
from `model_zoo.md` and `quantize.md` in
github.com/tensorflow/models/tree/master/research/deeplab/g3doc; models, protocols and
figures are from the presets.
"""

import dataclasses
import functools
from typing import NamedTuple

import deeplab_tf.presets
from deeplab_tf.checkpoints.zoo.mirror import find_mirror
from deeplab_tf.checkpoints.zoo.pytorch import PYTORCH_ZOO
from deeplab_tf.data.info import DatasetInfo, dataset_info
from deeplab_tf.errors import UserError, suggest_similar
from deeplab_tf.presets import Preset

# http://download.tensorflow.org/models in model_zoo.md. We use https because most
# archives have no published SHA-256.
_ADDRESS = "https://storage.googleapis.com/download.tensorflow.org/models"
_SUFFIX = ".tar.gz"


def zoo_address() -> str:
    """Returns the address of the archives: DEEPLAB_TF_ZOO, or the official one."""
    return find_mirror() or _ADDRESS


@dataclasses.dataclass(frozen=True)
class ZooCheckpoint:
    """A checkpoint of the official model zoo.

    Attributes:
        name: Name in `model_zoo.md`.
        archive: File name of the archive.
        evaluations: Presets with published figures; the first defines the model.
        sha256: SHA-256 of the archive in hexadecimal digits; "" if unknown.
    """

    name: str
    archive: str
    evaluations: tuple[Preset, ...]
    sha256: str = ""

    @property
    def preset(self) -> Preset:
        """The preset with the model and its first evaluation."""
        return self.evaluations[0]

    @property
    def url(self) -> str:
        """URL of the archive."""
        return f"{zoo_address()}/{self.archive}"

    @property
    def is_pretrained_backbone(self) -> bool:
        """Whether this is only a backbone to start training from."""
        return self.preset.published.miou is None

    @property
    def info(self) -> DatasetInfo | None:
        """The description of the classes; None for a backbone."""
        if self.is_pretrained_backbone:
            return None
        return dataset_info(self.preset.data.dataset)


class ZooModel(NamedTuple):
    """A checkpoint of the zoo and the preset with its model."""

    checkpoint: ZooCheckpoint
    preset: Preset


# Name, archive without suffix, and presets if their names differ.
_ROWS = (
    (
        "mobilenetv2_dm05_coco_voc_trainaug",
        "deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01",
    ),
    (
        "mobilenetv2_dm05_coco_voc_trainaug_8bit",
        "deeplabv3_mnv2_dm05_pascal_train_aug_8bit_2019_04_26",
    ),
    (
        "mobilenetv2_dm05_coco_voc_trainval",
        "deeplabv3_mnv2_dm05_pascal_trainval_2018_10_01",
    ),
    ("mobilenetv2_coco_voc_trainaug", "deeplabv3_mnv2_pascal_train_aug_2018_01_29"),
    (
        "mobilenetv2_coco_voc_trainaug_8bit",
        "deeplabv3_mnv2_pascal_train_aug_8bit_2019_04_26",
    ),
    ("mobilenetv2_coco_voc_trainval", "deeplabv3_mnv2_pascal_trainval_2018_01_29"),
    ("xception65_coco_voc_trainaug", "deeplabv3_pascal_train_aug_2018_01_04"),
    ("xception65_coco_voc_trainval", "deeplabv3_pascal_trainval_2018_01_04"),
    (
        "mobilenetv2_coco_cityscapes_trainfine",
        "deeplabv3_mnv2_cityscapes_train_2018_02_05",
    ),
    (
        "mobilenetv3_large_cityscapes_trainfine",
        "deeplab_mnv3_large_cityscapes_trainfine_2019_11_15",
    ),
    (
        "mobilenetv3_small_cityscapes_trainfine",
        "deeplab_mnv3_small_cityscapes_trainfine_2019_11_15",
    ),
    ("xception65_cityscapes_trainfine", "deeplabv3_cityscapes_train_2018_02_06"),
    (
        "xception71_dpc_cityscapes_trainfine",
        "deeplab_cityscapes_xception71_trainfine_2018_09_08",
    ),
    (
        "xception71_dpc_cityscapes_trainval",
        "deeplab_cityscapes_xception71_trainvalfine_2018_09_08",
    ),
    (
        "EdgeTPU-DeepLab",
        "edgetpu-deeplab_2020_03_09",
        *("edgetpu_deeplab_os32", "edgetpu_deeplab_os16"),
    ),
    (
        "EdgeTPU-DeepLab-slim",
        "edgetpu-deeplab-slim_2020_03_09",
        *("edgetpu_deeplab_slim_os32", "edgetpu_deeplab_slim_os16"),
    ),
    ("mobilenetv2_ade20k_train", "deeplabv3_mnv2_ade20k_train_2018_12_03"),
    ("xception65_ade20k_train", "deeplabv3_xception_ade20k_train_2018_05_29"),
    ("xception_41_imagenet", "xception_41_2018_05_09"),
    ("xception_65_imagenet", "deeplabv3_xception_2018_01_04"),
    (
        "xception_65_imagenet_coco",
        "xception_65_coco_pretrained_2018_10_02",
        "xception_65_coco",
    ),
    ("xception_71_imagenet", "xception_71_2018_05_09"),
    ("resnet_v1_50_beta_imagenet", "resnet_v1_50_2018_05_04"),
    ("resnet_v1_101_beta_imagenet", "resnet_v1_101_2018_05_04"),
)
_SHA256 = {
    # Open Model Zoo, models/public/deeplabv3/model.yml, commit ee686f2d.
    "mobilenetv2_coco_voc_trainaug": (
        "cd506941e4f88fd053903913761df2e76ea00c01079cecfd35855304a4a5fb48"
    ),
    # From two independent users; one of them downloaded the archive from _ADDRESS.
    "mobilenetv2_coco_voc_trainval": (
        "2b7fe43461c2d9d56b3ed6baed5547fc066361ba12ab84c8e85f0c31914c034f"
    ),
}


def _find_presets(name: str, presets: tuple[str, ...]) -> tuple[Preset, ...]:
    """Returns the given presets of a checkpoint, or those named after it."""
    names = presets or (name, f"{name}_os8_ms_flip")
    known = deeplab_tf.presets.PRESETS
    return tuple(known[n] for n in names if n in known)


ZOO: dict[str, ZooCheckpoint]


@functools.cache
def _make_zoo() -> dict[str, ZooCheckpoint]:
    return {
        name: ZooCheckpoint(
            name, archive + _SUFFIX, _find_presets(name, presets), _SHA256.get(name, "")
        )
        for name, archive, *presets in _ROWS
    }


def __getattr__(name: str) -> object:
    # Made on first use, as the presets are.
    if name == "ZOO":
        return _make_zoo()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def find_checkpoint(name: str) -> ZooModel | None:
    """Returns a checkpoint by its name or a preset's name; None if unknown."""
    zoo = _make_zoo()
    if name in zoo:
        return ZooModel(zoo[name], zoo[name].preset)
    found = (
        ZooModel(checkpoint, preset)
        for checkpoint in zoo.values()
        for preset in checkpoint.evaluations
        if preset.name == name
    )
    return next(found, None)


def require_checkpoint(name: str) -> None:
    """Raises UserError for an unknown checkpoint; the error suggests similar ones."""
    if find_checkpoint(name) is None and name not in PYTORCH_ZOO:
        raise UserError(
            f"there is no file, folder or model zoo checkpoint called {name}; "
            f"{suggest_similar(name, [*_make_zoo(), *PYTORCH_ZOO])}"
            "python -m deeplab_tf.checkpoints.zoo lists the names"
        )


def describe_protocol(preset: Preset) -> str:
    """Describes the evaluation of a preset in a few words."""
    scales, flip = preset.evaluation.eval_scales, preset.evaluation.add_flipped_images
    scaling = f", {len(scales)} scales" if len(scales) > 1 else ""
    return (
        f"{preset.data.dataset} {preset.eval_split}, output stride "
        f"{preset.eval_output_stride}{scaling}{', flipped' if flip else ''}"
    )


def describe_checkpoint(checkpoint: ZooCheckpoint) -> str:
    """Describes a checkpoint with its archive and figures, in a few lines."""
    lines = [f"{checkpoint.name} ({checkpoint.archive})"]
    if checkpoint.is_pretrained_backbone:
        backbone = checkpoint.preset.model.backbone
        lines.append(f"  {backbone} pretrained on {checkpoint.preset.start}")
        return "\n".join(lines)
    for preset in checkpoint.evaluations:
        lines.append(f"  {describe_protocol(preset)}: {preset.published}")
    return "\n".join(lines)
