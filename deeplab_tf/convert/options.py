"""Options of a conversion, which are flags of `datasets.folder`."""

import dataclasses
import os
import re
from collections.abc import Callable

from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.options import COUNT, FRACTION, document_fields, option

_VAL = "val"


@document_fields
@dataclasses.dataclass(frozen=True)
class Layout:
    """The folders of images and masks, and how their names differ."""

    image_dir: str = option(flag="", help="Folder of the images, with subfolders.")
    label_dir: str = option(
        flag="",
        help="Folder of the masks, with the same subfolders; may be `image_dir`.",
    )
    image_prefix: str = option(
        "", help="Start of the name of every image; other files are skipped."
    )
    image_suffix: str = option(
        "", help="End of the name of every image, before the extension, such as _rgb."
    )
    label_prefix: str = option(
        "", help="Start of the name of every mask, such as mask_."
    )
    label_suffix: str = option(
        "", help="End of the name of every mask, before the extension, such as _L."
    )
    missing_mask: str = option(
        "error",
        ("error", "background", "skip"),
        "What to do with an image without a mask: error stops, background labels it "
        "entirely as the class background, skip leaves it out.",
    )
    mask_pattern: str = option(
        "",
        help="Pattern of the masks in --label_dir, for one mask per class, such as "
        "{image}_{class}.png; pixels that are not 0 belong to the class. {image} is "
        "the name of the image; {index}, its number in sorted order from 1; * matches "
        "any text. Where masks overlap, the later class wins.",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def is_shared(self) -> bool:
        """Whether images and masks are in one folder."""
        return os.path.realpath(self.image_dir) == os.path.realpath(self.label_dir)


@document_fields
@dataclasses.dataclass(frozen=True)
class AnnotationOptions:
    """Settings that annotation files do not contain; None refuses unclear files."""

    line_width: int | None = option(
        None,
        COUNT,
        "Width in pixels of annotated lines; default: lines are refused.",
    )
    crowd: str | None = option(
        None,
        ("ignore", "object"),
        "How to label COCO crowds: as ignored pixels (ignore) or like other objects "
        "(object). Default: ignore, but a category with only crowds is refused.",
    )
    label_attribute: str | None = option(
        None,
        help="Region attribute that names the class in VIA files; default: the only "
        "one.",
    )

    def __post_init__(self) -> None:
        check_fields(self)


@document_fields
@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Options for converting images to records."""

    apply_exif: bool | None = option(
        False,
        flag_default=None,
        help="Rotate images by their EXIF orientation, if labels are upright; "
        "--noapply_exif if labels fit the stored pixels. Default of the flag (None): "
        "refuse images for which both are possible.",
    )
    tile: int = option(
        0,
        help="Side of the tiles that larger images and masks are cut into, such as "
        "2048; the record of a tile is named NAME@TOP,LEFT, in pixels. Images above "
        "134 megapixels need it; those above 200 must be PNG, TIFF or .npy.",
    )
    tile_overlap: int = option(
        0, help="Minimum overlap of adjacent tiles in pixels, such as 128."
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.tile != 0 or self.tile_overlap == 0,
            "--tile_overlap has no effect without --tile",
        )
        require(
            self.tile >= 0 and 0 <= self.tile_overlap <= self.tile // 2,
            "--tile must be positive and --tile_overlap between 0 and half of it; "
            f"received {self.tile} and {self.tile_overlap}",
        )


@document_fields
@dataclasses.dataclass(frozen=True)
class Splitting:
    """Options for dividing samples into splits."""

    split: str = option("train", help="Name of the split.")
    val_share: float = option(
        0.0,
        FRACTION,
        "Share of the images to put into the split val, to within one image; images "
        "with the same classes are divided in the same proportion. Adding images later "
        "does not move earlier ones.",
    )
    group_by: str = option(
        "",
        help="Which images --val_share keeps together: folder keeps those in the same "
        "folder; a regular expression, such as ^video[0-9]+, keeps those whose names "
        "match the same text.",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            re.fullmatch(r"\w+", self.split) is not None,
            f"--split must be letters, digits and underscores; received {self.split!r}",
        )
        require(
            not (self.val_share and self.split == _VAL),
            "--val_share creates the split val, so --split must be a different one",
        )
        require(not self.group_by or self.val_share > 0, "--group_by needs --val_share")


@document_fields
@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options for earlier records and broken files."""

    adds: bool = option(
        False,
        flag="",
        help="Keep the images of earlier runs in their splits, instead of replacing "
        "the splits.",
    )
    skip_broken: bool = option(
        False,
        help="List images that cannot be converted in skipped.txt and continue, "
        "instead of stopping at the first.",
    )
    # Writes shards in other processes, see `shard_tasks.RunTasks`; None: in threads.
    run_tasks: Callable | None = None
