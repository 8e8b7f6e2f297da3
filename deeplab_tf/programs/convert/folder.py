r"""Converts a folder of images with masks or annotation files to TFRecords.

    deeplab-convert folder --image_dir=photos --label_dir=masks \
      --classes=classes.txt --output_dir=tfrecord

classes.txt has one class per line, in the order of the label values: `name`, `id,name`
or `name r g b`; CSV, YAML and JSON lists are read as well. An image and its label have
the same name up to the extension, and are in subfolders of the same names, if any.
Images with other numbers of channels or bit depths are .npy, .tif or PNG. Run it once
per --split; all runs share one --output_dir. A second run into a split adds to it.

Records hold the pixels of a GeoTIFF without its place on earth. `deeplab-predict` reads
that from the GeoTIFF that it labels.

    deeplab-convert folder --image_dir=photos --annotations=instances.json \
      --output_dir=tfrecord

reads the annotation files of labelme, COCO, YOLO segmentation, Label Studio, CVAT and
VIA, which name the classes themselves.
"""

import functools
import os
from collections.abc import Iterable

from absl import flags
from etils import epath

from deeplab_tf.convert import annotated_folder, annotations, folder
from deeplab_tf.convert.class_list import ClassList, MaskOptions, read_class_list
from deeplab_tf.convert.layout import MISSING_MASK, Layout
from deeplab_tf.convert.shards import RunOptions
from deeplab_tf.convert.splitting import Splitting
from deeplab_tf.convert.tiling import ImageOptions
from deeplab_tf.convert.value_map import parse_colors
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.programs.convert.output import claim_output, define_output, print_sizes

_ANNOTATION_FLAGS = ("line_width", "crowd", "label_attribute")
_MASK_FLAGS = (
    *("image_prefix", "image_suffix", "label_prefix", "label_suffix"),
    *("mask_pattern", "ignore_color", "value_map", "nearest"),
)


def define_flags() -> flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = flags.FlagValues()
    _define_layout(values)
    _define_annotations(values)
    _define_masks(values)
    _define_images(values)
    _define_splits(values)
    define_output(values, 4)
    flags.DEFINE_boolean(
        "skip_broken",
        False,
        "List images that cannot be converted in skipped.txt and continue, instead of "
        "stopping at the first.",
        flag_values=values,
    )
    return values


def _define_layout(values: flags.FlagValues) -> None:
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    string("image_dir", None, "Folder with the images.", required=True)
    string(
        "label_dir",
        None,
        "Folder with the masks; may be that of the images.",
    )
    string(
        "image_prefix", "", "Start of the name of every image; others are no images."
    )
    string("image_suffix", "", "End of the name of every image, such as _rgb.")
    string("label_prefix", "", "Start of the name of every mask, such as mask_.")
    string(
        "label_suffix",
        "",
        "Text between name and extension of a label file, such as _L.",
    )
    string(
        "mask_pattern",
        "",
        "Paths in --label_dir of masks of one class each, in which pixels that are not "
        "0 are the class, such as {image}_{class}.png. {image} is the name of the "
        "image; or {index}, its number in sorted order, from 1; * is any text. Where "
        "masks overlap, the later class wins.",
    )
    flags.DEFINE_enum(
        "missing_mask",
        "error",
        MISSING_MASK,
        "What to do about an image without a mask: stop, take all of it for the class "
        "background, or leave it out.",
        flag_values=values,
    )


def _define_annotations(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "annotations",
        None,
        "File or folder of annotations, instead of --label_dir: labelme, COCO, YOLO "
        "segmentation, Label Studio (JSON), CVAT for images 1.1 or VIA.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "line_width",
        None,
        "Width in pixels to draw annotated lines with; default: they are refused.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "crowd",
        None,
        ("ignore", "object"),
        "What COCO's crowds are: ignored pixels, or objects like others. Default: "
        "ignored, but a category with only crowds is refused.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "label_attribute",
        None,
        "Region attribute that names the class in files of VIA; default: the only one.",
        flag_values=values,
    )


def _define_masks(values: flags.FlagValues) -> None:
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    string(
        "classes",
        None,
        "Text file with one class per line, `name`, `id,name` or `name r g b`; a list "
        "in YAML or JSON; or a dataset_info.json. Default with --annotations: their "
        "own classes.",
    )
    integer(
        "ignore_label",
        None,
        "Label value of void; default: that of dataset_info.json, else 255.",
    )
    multi = functools.partial(flags.DEFINE_multi_string, flag_values=values)
    multi(
        "ignore_color",
        [],
        "Colour r,g,b or #rrggbb of void in painted labels; may be repeated.",
    )
    multi(
        "value_map",
        [],
        "Meaning of mask values and colours, such as 255:object,0:background,7:ignore: "
        "a value of 0..65535 or a colour #rrggbb, then a class name, a class id or "
        "`ignore`. Separate entries by commas or repeat the flag.",
    )
    flags.DEFINE_bool(
        "nearest",
        False,
        "Snap other mask values and colours to the nearest declared one, for masks "
        "that are anti-aliased, were resized, or are JPEGs.",
        flag_values=values,
    )


def _define_images(values: flags.FlagValues) -> None:
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    integer(
        "channels",
        None,
        "Channels of an image; default: those of dataset_info.json, else 3.",
    )
    integer(
        "max_value",
        None,
        "Pixel value of white, such as 65535 for 16 bits or 4095 for 12; default: that "
        "of dataset_info.json, else 255.",
    )
    string("name", None, "Name of the dataset; default: that of --output_dir.")
    flags.DEFINE_boolean(
        "apply_exif",
        None,
        "Turn images upright by their EXIF orientation, if labels are upright; "
        "--noapply_exif if labels fit the stored pixels. Default: refuse images for "
        "which both are possible.",
        flag_values=values,
    )
    integer(
        "tile",
        0,
        "Side of the tiles that larger images and masks are cut into, such as 2048; "
        "the record of a tile is named NAME@TOP,LEFT, in pixels. Images above 134 "
        "megapixels need it; those above 200 must be PNG, TIFF or .npy.",
    )
    integer("tile_overlap", 0, "Pixels that adjacent tiles share, such as 128.")


def _define_splits(values: flags.FlagValues) -> None:
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    string("split", "train", "Name of the split.")
    flags.DEFINE_float(
        "val_share",
        0.0,
        "Share of the images to put into the split val, exact to one image; images "
        "with the same classes are divided alike. Images added later move no others.",
        flag_values=values,
    )
    string(
        "group_by",
        "",
        "Keeps images together that --val_share must not divide: folder, or a regular "
        "expression of the part of the name that they share, such as ^video[0-9]+.",
    )


def _pick(fields: Iterable[str], values: flags.FlagValues) -> dict:
    return {field: values[field].value for field in fields}


def main(values: flags.FlagValues) -> None:
    """Converts the dataset and prints the split sizes."""
    _check_labels(values)
    claim_output(values)
    convert = _convert_masks if values.annotations is None else _convert_annotations
    info = convert(
        values,
        output_dir=values.output_dir,
        division=Splitting(**_pick(Splitting._fields, values)),
        num_shards=values.num_shards,
        options=ImageOptions(**_pick(ImageOptions._fields, values)),
        run=RunOptions(adds=not values.overwrite, skip_broken=values.skip_broken),
    )
    for split in info.class_pixels:
        if absent := _find_absent_classes(info, split):
            print(f"no pixel in {split} is {', '.join(absent)}")
    print_sizes(values.output_dir, info.split_sizes)


def _check_labels(values: flags.FlagValues) -> None:
    """Raises `UserError` unless there are either masks or annotations."""
    if (values.label_dir is None) == (values.annotations is None):
        received = "neither" if values.annotations is None else "both"
        raise UserError(
            "give --label_dir for masks, or --annotations for the files of a tool; "
            f"received {received}"
        )
    if values.annotations is None:
        if values.classes is None:
            raise UserError("--label_dir needs --classes, a file with the class names")
        unused, other = _ANNOTATION_FLAGS, "annotations"
    else:
        unused, other = _MASK_FLAGS, "masks"
    for name in unused:
        if values[name].value != values[name].default:
            raise UserError(f"--{name} is for {other}; remove it")


def _convert_masks(values: flags.FlagValues, **settings) -> DatasetInfo:
    classes = _read_class_list(values)
    print(classes.describe())
    files = Layout(**_pick(Layout._fields, values))
    return folder.convert(files, classes, **settings)


def _convert_annotations(values: flags.FlagValues, **settings) -> DatasetInfo:
    options = annotations.Options(**_pick(_ANNOTATION_FLAGS, values))
    found = annotations.read(values.annotations, options)
    print(found.describe())
    if values.classes is None:
        name = _default_name(values)
        classes = annotated_folder.make_class_list(found, name, **_given_info(values))
    else:
        classes = _read_class_list(values)
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(classes.info.class_names))
    print(f"classes: {listed}")
    source = annotated_folder.Source(found, values.image_dir, values.missing_mask)
    return annotated_folder.convert(source, classes, **settings)


def _default_name(values: flags.FlagValues) -> str:
    return os.path.basename(os.path.abspath(values.output_dir))


def _given_info(values: flags.FlagValues) -> dict:
    """Returns the flags that replace fields of `DatasetInfo`."""
    given = _pick(("name", "ignore_label", "channels", "max_value"), values)
    return {field: value for field, value in given.items() if value is not None}


def _read_class_list(values: flags.FlagValues) -> ClassList:
    options = MaskOptions(
        parse_colors(values.ignore_color, "--ignore_color"),
        values.value_map,
        # Masks of one class each need no declared values.
        values.nearest and not values.mask_pattern,
    )
    classes = read_class_list(
        epath.Path(values.classes),
        _default_name(values),
        options,
        **_given_info(values),
    )
    return classes._replace(nearest=values.nearest)


def _find_absent_classes(info: DatasetInfo, split: str) -> list[str]:
    """Returns the names of the classes without a pixel in a split."""
    pixels = zip(info.class_names, info.class_pixels[split], strict=True)
    return [
        name
        for i, (name, count) in enumerate(pixels)
        if not count and i != info.ignore_label
    ]
