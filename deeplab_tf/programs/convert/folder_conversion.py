"""Converts a folder with the flags of datasets.folder."""

import os

from absl import flags as absl_flags
from etils import epath

from deeplab_tf import flags
from deeplab_tf.convert import annotated_folder, annotations, folder
from deeplab_tf.convert.class_list import ClassList, MaskOptions, read_class_list
from deeplab_tf.convert.options import (
    AnnotationOptions,
    ImageOptions,
    Layout,
    Splitting,
)
from deeplab_tf.convert.value_map import parse_colors
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.programs.convert import output


def main(values: absl_flags.FlagValues) -> None:
    """Converts the dataset and prints the split sizes."""
    folders = Layout(values.image_dir, values.label_dir or "")
    files = flags.read_options(values, Layout, folders)
    output.claim(values)
    convert = _convert_masks if values.annotations is None else _convert_annotations
    info = convert(
        values,
        files,
        output_dir=values.output_dir,
        division=flags.read_options(values, Splitting),
        num_shards=values.num_shards,
        options=flags.read_options(values, ImageOptions),
        run=output.read_run_options(values),
    )
    for split in info.class_pixels:
        if absent := _find_absent_classes(info, split):
            print(f"{split} has no pixels of {', '.join(absent)}")
    output.print_sizes(values.output_dir, info.split_sizes)


def _convert_masks(
    values: absl_flags.FlagValues, files: Layout, **settings
) -> DatasetInfo:
    classes = _read_class_list(values)
    print(classes.describe())
    return folder.convert(files, classes, **settings)


def _convert_annotations(
    values: absl_flags.FlagValues, files: Layout, **settings
) -> DatasetInfo:
    """Converts annotated images; prints what was read and the classes."""
    options = flags.read_options(values, AnnotationOptions)
    found = annotations.read(values.annotations, options)
    print(found.describe())
    if values.classes is None:
        name = _default_name(values)
        classes = annotated_folder.make_class_list(found, name, **_given_info(values))
    else:
        classes = _read_class_list(values)
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(classes.info.class_names))
    print(f"classes: {listed}")
    source = annotated_folder.Source(found, files.image_dir, files.missing_mask)
    return annotated_folder.convert(source, classes, **settings)


def _default_name(values: absl_flags.FlagValues) -> str:
    return os.path.basename(os.path.abspath(values.output_dir))


def _given_info(values: absl_flags.FlagValues) -> dict:
    """Returns the flags that replace fields of `DatasetInfo`."""
    fields = ("name", "ignore_label", "channels", "max_value")
    given = {field: values[field].value for field in fields}
    return {field: value for field, value in given.items() if value is not None}


def _read_class_list(values: absl_flags.FlagValues) -> ClassList:
    """Returns the classes of `--classes`, with the flags for mask values."""
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
