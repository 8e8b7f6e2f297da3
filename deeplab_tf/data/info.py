"""Descriptions of datasets: classes, colours and the ignored label."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_tf import strict_json
from deeplab_tf.arguments import check_arguments, require_type
from deeplab_tf.errors import UserError, suggest_similar

# Label values are bytes, and 255 is usually the ignored label.
MAX_CLASSES = 255
_MAX_NAME = 200  # characters, to fit into tables and drawings

_SPLIT_ALIASES = {"trainaug": "train_aug"}


def normalize_split(split: str) -> str:
    """Returns the official name of a split; `trainaug` is `train_aug`."""
    return _SPLIT_ALIASES.get(split, split)


def voc_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Returns the first `count` RGB colours of the PASCAL VOC colour map.

    Bit `3 j + c` of the index is bit `7 - j` of channel `c` (VOC devkit,
    `VOCcolormap.m`).
    """

    def channel(index: int, c: int) -> int:
        return sum((index >> (3 * j + c) & 1) << (7 - j) for j in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Classes, colours and splits of a dataset.

    Attributes:
        name: Name of the dataset, as in `--dataset`.
        class_names: One name per class id, `0..num_classes-1`.
        ignore_label: Label value of pixels without a class. In ADE20K it is 0, one of
            the class ids; in other datasets it is above the last class.
        colors: One RGB colour (0..255) per class; default: VOC's colour map.
        channels: Channels of an image.
        max_value: Pixel value that is scaled to 255: 255 for 8 bits, 65535 for 16,
            4095 for a 12-bit sensor.
        split_sizes: Number of images per split.
        class_pixels: For each split, the number of labelled pixels of each class.
        class_image_pixels: For each split and class, the number of labelled pixels in
            the images that contain the class; used to compute class frequencies.
        content_hashes: For each split, a hash of all names and pixels that does not
            depend on the order of the images.

    Raises:
        UserError: if a value is out of range, or the number of colours is wrong.
    """

    name: str
    class_names: tuple[str, ...]
    ignore_label: int = 255
    colors: tuple[tuple[int, int, int], ...] = ()
    channels: int = 3
    max_value: int = 255
    split_sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    class_pixels: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    class_image_pixels: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    content_hashes: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.class_names, str):
            raise UserError(
                f"class_names must be a list of names; received {self.class_names!r}"
            )
        for field in dataclasses.fields(self):
            value = require_type(field.name, getattr(self, field.name), field.type)
            object.__setattr__(self, field.name, value)
        if self.ignore_label not in range(256):
            raise UserError(
                f"ignore_label must be an integer in 0..255; received "
                f"{self.ignore_label!r}"
            )
        if self.channels < 1:
            raise UserError(f"channels must be at least 1; received {self.channels!r}")
        if self.max_value not in range(1, 65536):
            raise UserError(
                f"max_value must be an integer in 1..65535; received {self.max_value!r}"
            )
        colors = self.colors or voc_colors(self.num_classes)
        object.__setattr__(self, "colors", colors)
        if not self.class_names:
            raise UserError(
                f"dataset {self.name!r} has no classes; class_names must have at least "
                "one name"
            )
        if len(self.colors) != self.num_classes:
            raise UserError(
                f"dataset {self.name!r} has {self.num_classes} classes but "
                f"{len(self.colors)} colours; give one colour per class, or none"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, and of channels of the logits."""
        return len(self.class_names)

    @property
    def known_labels(self) -> str:
        """The valid label values, for messages."""
        classes = f"0..{self.num_classes - 1}"
        if self.ignore_label < self.num_classes:
            return f"{classes} ({self.ignore_label} is ignored)"
        return f"{classes} and {self.ignore_label} (ignored)"

    def to_json(self) -> str:
        """Returns the content of `dataset_info.json`."""
        return strict_json.dump(dataclasses.asdict(self))

    @classmethod
    def from_json(
        cls, text: str | bytes, source: str = "dataset_info.json"
    ) -> "DatasetInfo":
        """Parses a `dataset_info.json`; `source` names it in errors.

        Raises:
            UserError: if a key is unknown, missing or has an invalid value.
        """
        info = strict_json.from_json(cls, text, source)
        info.check_contents(f"{source}: ")
        return info

    def check_contents(self, where: str) -> None:
        """Raises `UserError` for invalid names, colours, counts or hashes."""
        check_class_names(self.class_names, f"{where}class_names")
        for i, color in enumerate(self.colors):
            check_color(color, f"{where}colors[{i}]")
        _check_counts(self.split_sizes, f"{where}split_sizes")
        for name in ("class_pixels", "class_image_pixels"):
            for split, counts in getattr(self, name).items():
                place = f"{where}{name}.{split}"
                if len(counts) != self.num_classes:
                    raise UserError(
                        f"{place} must have {self.num_classes} counts, one per class; "
                        f"received {len(counts)}"
                    )
                _check_counts(dict(enumerate(counts)), place)
        for split, digest in self.content_hashes.items():
            check_hash(digest, f"{where}content_hashes.{split}")


def check_class_names(names: Sequence[str], where: str) -> None:
    """Raises `UserError` if there are too many names, or one is invalid."""
    if len(names) > MAX_CLASSES:
        raise UserError(
            f"{where} has {len(names)} classes; at most {MAX_CLASSES} are supported, "
            f"with the ids 0..{MAX_CLASSES - 1}"
        )
    for i, name in enumerate(names):
        if not name.strip():
            raise UserError(f"{where}[{i}] is blank; every class needs a name")
        if len(name) > _MAX_NAME:
            raise UserError(
                f"{where}[{i}] has {len(name)} characters; a class name may have at "
                f"most {_MAX_NAME}"
            )
        strict_json.check_text(name, f"{where}[{i}]")


def check_color(color: Sequence[int], where: str) -> None:
    """Raises `UserError` unless a colour is three integers in 0..255."""
    is_color = len(color) == 3 and all(type(v) is int for v in color)
    if not (is_color and 0 <= min(color) <= max(color) <= 255):
        text = ",".join(map(str, color))
        raise UserError(
            f"{where} must be r,g,b with each value in 0..255; received {text}"
        )


def _check_counts(counts: Mapping[str, int] | Mapping[int, int], where: str) -> None:
    for key, count in counts.items():
        if count < 0:
            raise UserError(f"{where}[{key}] must not be negative; received {count}")


def check_hash(digest: str, where: str) -> None:
    """Raises `UserError` unless a digest is hexadecimal; `where` names its field."""
    if not re.fullmatch("[0-9a-fA-F]+", digest):
        raise UserError(f"{where} must be hexadecimal; received {digest[:80]!r}")


def generic_info(num_classes: int, ignore_label: int = 255) -> DatasetInfo:
    """Returns an info with numbered classes, for models trained on unknown datasets."""
    names = tuple(f"class_{i}" for i in range(num_classes))
    return DatasetInfo("unnamed", names, ignore_label)


_VOC = DatasetInfo(
    name="pascal_voc_seg",
    class_names=tuple(
        "background aeroplane bicycle bird boat bottle bus car cat chair cow "
        "diningtable dog horse motorbike person pottedplant sheep sofa train tv".split()
    ),
    split_sizes={"train": 1464, "train_aug": 10582, "trainval": 2913, "val": 1449},
)

_CITYSCAPES = DatasetInfo(
    name="cityscapes",
    class_names=(
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
    colors=(
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
    split_sizes={
        "train_fine": 2975,
        "train_coarse": 22973,
        "trainval_fine": 3475,
        "trainval_coarse": 23473,
        "val_fine": 500,
        "test_fine": 1525,
    },
)

# The id of each of the classes 0..18 in the labelIds files of Cityscapes.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)

_CAMVID = DatasetInfo(
    name="camvid",
    class_names=tuple(
        "sky building pole road pavement tree sign fence car pedestrian "
        "bicyclist".split()
    ),
    colors=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    ignore_label=11,
    split_sizes={"train": 367, "val": 101, "test": 233},
)

# The first of the names that `objectInfo150.txt` of the scene parsing challenge lists
# for each class, in the order of the label values 1..150.
_ADE20K_NAMES = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, "
    "cabinet, sidewalk, person, earth, door, table, mountain, plant, curtain, "
    "chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, "
    "base, box, column, signboard, chest of drawers, counter, sand, sink, "
    "skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, "
    "pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, "
    "coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, "
    "kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, "
    "towel, light, truck, tower, chandelier, awning, streetlight, booth, "
    "television, airplane, dirt track, apparel, pole, land, bannister, escalator, "
    "ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, "
    "canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, "
    "tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, "
    "microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, "
    "hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, "
    "monitor, bulletin board, shower, radiator, glass, clock, flag"
).split(", ")
_ADE20K_SIZES = {"train": 20210, "val": 2000}

_ADE20K = DatasetInfo(
    name="ade20k",
    class_names=("background", *_ADE20K_NAMES),
    ignore_label=0,
    split_sizes=_ADE20K_SIZES,
)

# The same classes, numbered from 0, as in most other code.
_ADE20K_150 = DatasetInfo(
    name="ade20k_150",
    class_names=tuple(_ADE20K_NAMES),
    split_sizes=_ADE20K_SIZES,
)

# COCO objects that belong to a VOC class.
_COCO_VOC = DatasetInfo(
    name="coco_voc", class_names=_VOC.class_names, colors=_VOC.colors
)

DATASETS = {
    info.name: info
    for info in (_VOC, _CITYSCAPES, _CAMVID, _ADE20K, _ADE20K_150, _COCO_VOC)
}


@check_arguments()
def dataset_info(name: str) -> DatasetInfo:
    """Returns the description of a dataset such as `pascal_voc_seg`.

    Raises:
        UserError: if the name is unknown.
    """
    if name not in DATASETS:
        raise UserError(
            f"there is no dataset {name!r}; {suggest_similar(name, DATASETS)}"
            f"it must be one of {', '.join(DATASETS)} or have a dataset_info.json next "
            "to its records"
        )
    return DATASETS[name]


def is_scored(labels: Any, num_classes: int, ignore_label: int) -> Any:
    """Returns a bool mask of the labels that are a class and not ignored."""
    return (labels >= 0) & (labels < num_classes) & (labels != ignore_label)
