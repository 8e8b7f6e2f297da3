"""Checkpoints of PyTorch projects: torchvision, MMSegmentation and Hugging Face.

Addresses, sizes and figures are those of the packages: torchvision 0.29.1
(`torchvision.models.segmentation`), MMSegmentation 1.2.2 (`metafile.yaml` of its
configurations), transformers 5.24.0.
"""

import dataclasses
import os
import re

from deeplab_tf.checkpoints.zoo.mirror import find_mirror
from deeplab_tf.data.info import dataset_info

# The start of the SHA-256, which both projects append to the names of their files.
_HASH = re.compile(r"-([0-9a-f]{8})\.pth$")
_TORCHVISION = "https://download.pytorch.org/models"
_MMSEGMENTATION = "https://download.openmmlab.com/mmsegmentation/v0.5"
_VOC, _CITYSCAPES, _ADE20K = "pascal_voc_seg", "cityscapes", "ade20k"


@dataclasses.dataclass(frozen=True)
class PyTorchCheckpoint:
    """A checkpoint of a project that uses PyTorch.

    Attributes:
        name: Its name, without that of the project.
        project: The project that trained it.
        licence: Licence that the project states.
        source: Its published address: a URL, or the handle of a model on a hub.
        dataset: The dataset with its classes, as in `--dataset`.
        trained_on: Training images.
        protocol: Evaluation of the published figures; the output stride is that of the
            model.
        miou: Published mIoU in per cent; None if there is none.
        miou_multi_scale: With several scales and mirrored images, if published.
        pixel_accuracy: Published pixel accuracy in per cent, if any.
        mebibytes: Size of the file, if published.
        has_background: Whether class 0 of the dataset is a class of the model.
    """

    name: str
    project: str
    licence: str
    source: str
    dataset: str
    trained_on: str
    protocol: str
    miou: float | None = None
    miou_multi_scale: float | None = None
    pixel_accuracy: float | None = None
    mebibytes: float | None = None
    has_background: bool = True

    @property
    def url(self) -> str:
        """The address to download from: on the mirror, if there is one."""
        mirror = find_mirror()
        if mirror is None or self.is_on_hub:
            return self.source
        return f"{mirror}/{os.path.basename(self.source)}"

    @property
    def is_on_hub(self) -> bool:
        """Whether the client of a hub downloads it."""
        return "://" in self.source and not self.source.startswith("https:")

    @property
    def figures(self) -> str:
        """The published figures, in words."""
        parts = {
            "mIoU": self.miou,
            "with 6 scales and mirrored images": self.miou_multi_scale,
            "pixel accuracy": self.pixel_accuracy,
        }
        given = [f"{name} {x:g}%" for name, x in parts.items() if x is not None]
        return ", ".join(given) or "no figures"

    @property
    def sha256(self) -> str:
        """The first digits of the SHA-256; "" if unknown."""
        found = _HASH.search(self.source)
        return found[1] if found else ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class of the model."""
        names = dataset_info(self.dataset).class_names
        return names if self.has_background else names[1:]


# Name of the function in torchvision, file, mIoU, pixel accuracy, MiB.
_TORCHVISION_ROWS = (
    (
        "deeplabv3_resnet50",
        "deeplabv3_resnet50_coco-cd0a2569.pth",
        *(66.4, 92.4, 160.515),
    ),
    (
        "deeplabv3_resnet101",
        "deeplabv3_resnet101_coco-586e9e4e.pth",
        *(67.4, 92.4, 233.217),
    ),
    (
        "deeplabv3_mobilenet_v3_large",
        "deeplabv3_mobilenet_v3_large-fc3c493d.pth",
        *(60.3, 91.2, 42.301),
    ),
    (
        "lraspp_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large-d234d4ea.pth",
        *(57.9, 91.2, 12.49),
    ),
)
# End of the name; start of the name, end of the file name, mIoU, mIoU with several
# scales and mirrored images.
_MMSEGMENTATION_ROWS = {
    "512x1024_80k_cityscapes": (
        ("deeplabv3_r18", "20201225_021506-23dffbe2", 76.7, 78.27),
        ("deeplabv3_r50", "20200606_113404-b92cfdd4", 79.32, 80.57),
        ("deeplabv3_r101", "20200606_113503-9e428899", 80.2, 81.21),
        ("deeplabv3plus_r18", "20201226_080942-cff257fe", 76.89, 78.76),
        ("deeplabv3plus_r50", "20200606_114049-f9fb496d", 80.09, 81.13),
        ("deeplabv3plus_r101", "20200606_114143-068fcfe9", 80.97, 82.03),
    ),
    "512x512_160k_ade20k": (
        ("deeplabv3_r50", "20200615_123227-5d0ee427", 42.66, 44.09),
        ("deeplabv3_r101", "20200615_105816-b1f72b3b", 45.0, 46.66),
        ("deeplabv3plus_r50", "20200615_124504-6135c7e0", 43.95, 44.93),
        ("deeplabv3plus_r101", "20200615_123232-38ed86bb", 45.47, 46.35),
    ),
    "512x512_40k_voc12aug": (
        ("deeplabv3_r50", "20200613_161546-2ae96e7e", 77.68, 78.78),
        ("deeplabv3_r101", "20200613_161432-0017d784", 77.92, 79.18),
        ("deeplabv3plus_r50", "20200613_161759-e1b43aa9", 76.81, 77.57),
        ("deeplabv3plus_r101", "20200613_205333-faf03387", 78.62, 79.53),
    ),
}
# Last part of the name: dataset, training images, evaluation.
_MMSEGMENTATION_DATA = {
    "cityscapes": (_CITYSCAPES, "train_fine", "val_fine, 1024x2048"),
    "ade20k": (_ADE20K, "train", "val, shorter side 512"),
    "voc12aug": (_VOC, "train_aug", "val, shorter side 512"),
}


def _make_torchvision_row(name: str, file: str, miou, accuracy, size):
    return PyTorchCheckpoint(
        f"{name}_coco_with_voc_labels_v1",
        project="torchvision",
        licence="BSD-3-Clause",
        source=f"{_TORCHVISION}/{file}",
        dataset=_VOC,
        trained_on="COCO, classes of PASCAL VOC",
        protocol="COCO val2017, shorter side 520",
        miou=miou,
        pixel_accuracy=accuracy,
        mebibytes=size,
    )


def _make_mmsegmentation_row(data: str, network: str, ending: str, *mious: float):
    dataset, trained_on, protocol = _MMSEGMENTATION_DATA[data.rpartition("_")[2]]
    name, head = f"{network}-d8_{data}", network.partition("_")[0]
    miou, multi_scale = mious
    return PyTorchCheckpoint(
        name,
        project="MMSegmentation",
        licence="Apache-2.0",
        source=f"{_MMSEGMENTATION}/{head}/{name}/{name}_{ending}.pth",
        dataset=dataset,
        trained_on=f"{dataset} {trained_on}",
        protocol=f"{dataset} {protocol}",
        miou=miou,
        miou_multi_scale=multi_scale,
        has_background=dataset != _ADE20K,
    )


_ROWS = (
    *(_make_torchvision_row(*row) for row in _TORCHVISION_ROWS),
    *(
        _make_mmsegmentation_row(data, *row)
        for data, rows in _MMSEGMENTATION_ROWS.items()
        for row in rows
    ),
    PyTorchCheckpoint(
        "deeplabv3_mobilenet_v2_1.0_513",
        project="Hugging Face",
        licence="other",
        source="hf://google/deeplabv3_mobilenet_v2_1.0_513",
        dataset=_VOC,
        trained_on="pascal_voc_seg (an official checkpoint, converted)",
        protocol="513x513",
    ),
)
PYTORCH_ZOO = {row.name: row for row in _ROWS}


def find_address(name: str) -> str | None:
    """Returns the address of a checkpoint by its name; None if unknown."""
    row = PYTORCH_ZOO.get(name)
    return row and row.url


def find_sha256(url: str) -> str:
    """Returns the first digits of the SHA-256 of a URL; "" if unknown."""
    rows = PYTORCH_ZOO.values()
    return next((row.sha256 for row in rows if row.url == url), "")


def describe_pytorch_checkpoint(row: PyTorchCheckpoint) -> str:
    """Describes a checkpoint with its figures, in two lines."""
    size = "" if row.mebibytes is None else f", {row.mebibytes:.0f} MiB"
    return (
        f"{row.name} ({row.project}, {row.licence}{size})\n"
        f"  trained on {row.trained_on}; {row.protocol}: {row.figures}"
    )
