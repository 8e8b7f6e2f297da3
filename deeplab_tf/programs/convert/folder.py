r"""Converts a folder of images with masks or annotation files to TFRecords.

    deeplab-convert folder --image_dir=photos --label_dir=masks \
      --classes=classes.txt --output_dir=tfrecord

classes.txt has one class per line, in the order of the label values: `name`, `id,name`
or `name r g b`; CSV, YAML and JSON lists also work. An image and its label have the
same relative path, apart from the extension. Images with more than 3 channels or 8
bits must be .npy, TIFF or PNG files. Run the program once per --split, with the same
--output_dir. A second run with the same split adds images to it.

Records do not contain the georeference of a GeoTIFF; `deeplab-predict` reads it from
the GeoTIFF that it labels.

    deeplab-convert folder --image_dir=photos --annotations=instances.json \
      --output_dir=tfrecord

reads annotation files of labelme, COCO, YOLO segmentation, Label Studio, CVAT and
VIA, which name the classes themselves.
"""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config.options import DATA, OUTPUT
from deeplab_tf.convert.options import (
    AnnotationOptions,
    ImageOptions,
    Layout,
    RunOptions,
    Splitting,
)
from deeplab_tf.errors import UserError
from deeplab_tf.programs.convert import output

_ANNOTATION_FLAGS = ("line_width", "crowd", "label_attribute")
_MASK_FLAGS = (
    *("image_prefix", "image_suffix", "label_prefix", "label_suffix"),
    *("mask_pattern", "ignore_color", "value_map", "nearest"),
)


_FLAGS = {
    "image_dir": (flags.required_string, None, "Folder with the images."),
    "label_dir": (
        *(flags.STRING, None),
        "Folder with the masks; may be the folder of the images.",
    ),
    "annotations": (
        *(flags.STRING, None),
        "File or folder of annotations, instead of --label_dir: labelme, COCO, YOLO "
        "segmentation, Label Studio (JSON), CVAT for images 1.1 or VIA.",
    ),
    "classes": (
        *(flags.STRING, None),
        "Text file with one class per line, `name`, `id,name` or `name r g b`; a list "
        "in YAML or JSON; or a dataset_info.json. Default with --annotations: their "
        "own classes.",
    ),
}
_DETAILS = {
    "ignore_label": (
        *(flags.INTEGER, None),
        "Label value of void; default: that of dataset_info.json, else 255.",
    ),
    "ignore_color": (
        *(flags.REPEATED, []),
        "Colour r,g,b or #rrggbb of void in colour masks; may be repeated.",
    ),
    "value_map": (
        *(flags.REPEATED, []),
        "Meaning of mask values and colours, such as 255:object,0:background,7:ignore: "
        "a value in 0..65535 or a colour #rrggbb, then a class name, a class id or "
        "`ignore`. Separate entries by commas or repeat the flag.",
    ),
    "nearest": (
        *(flags.BOOLEAN, False),
        "Replace undeclared mask values and colours with the nearest declared ones, "
        "for masks that were anti-aliased, resized or saved as JPEG.",
    ),
    "channels": (
        *(flags.INTEGER, None),
        "Channels of an image; default: those of dataset_info.json, else 3.",
    ),
    "max_value": (
        *(flags.INTEGER, None),
        "Pixel value of white, such as 65535 for 16 bits or 4095 for 12; default: that "
        "of dataset_info.json, else 255.",
    ),
    "name": (
        *(flags.STRING, None),
        "Name of the dataset; default: that of --output_dir.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = output.define_flags(_FLAGS, 4, _DETAILS)
    for config in (Layout, AnnotationOptions, ImageOptions, Splitting):
        flags.define_options(values, config, DATA)
    flags.define_options(values, RunOptions, OUTPUT)
    return values


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError unless there are either masks or annotations."""
    output.check(values)
    if (values.label_dir is None) == (values.annotations is None):
        received = "neither" if values.annotations is None else "both"
        raise UserError(
            "give either --label_dir (masks) or --annotations (annotation files); "
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
            raise UserError(f"--{name} only applies to {other}; remove it")


def main(values: absl_flags.FlagValues) -> None:
    """Converts the dataset and prints the split sizes."""
    from deeplab_tf.programs.convert import folder_conversion

    folder_conversion.main(values)
