"""VGG Image Annotator, version 2: a project or an export of annotations as JSON."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from deeplab_tf.convert.annotations import drawing, fields
from deeplab_tf.convert.annotations.objects import (
    AnnotatedImage,
    Annotations,
    File,
    Object,
    draw_line,
)
from deeplab_tf.convert.options import AnnotationOptions
from deeplab_tf.errors import UserError

_IMAGES = "_via_img_metadata"
_NUMBERS = {
    "rect": ("x", "y", "width", "height"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
}


def is_content(content: Any) -> bool:
    """Returns whether parsed JSON is a VIA project or export."""
    if not isinstance(content, dict):
        return False
    images = content.get(_IMAGES, content)
    return (
        isinstance(images, dict)
        and (_IMAGES in content or bool(images))
        and all(
            isinstance(image, dict) and {"filename", "regions"} <= image.keys()
            for image in images.values()
        )
    )


def read(file: File, options: AnnotationOptions) -> Annotations:
    """Reads a VIA project or export. Later regions cover earlier ones.

    `options.label_attribute` names the class; polylines have the width
    `options.line_width`.

    Raises:
        UserError: if a region is invalid, or the attribute that names its class is
            unknown.
    """
    path, content = file.path, file.content
    images = content.get(_IMAGES, content)
    attribute = _find_attribute(path, images, options)
    found = Annotations("VIA", [], _list_choices(content, attribute))
    for key, entry in images.items():
        name = fields.read_name(entry["filename"], f"{path}: {key}.filename")
        image = AnnotatedImage(name, path, [])
        found.images.append(image)
        for where, region in _list_regions(path, key, entry):
            shape = region["shape_attributes"]
            if shape.get("name") == "point":
                found.notes["point(s) skipped"] += 1
                continue
            label = _read_label(region["region_attributes"], attribute, where)
            draw = _read_shape(shape, where, options)
            image.objects.append(Object(label, draw, f"{where} ({label})"))
    return found


def _list_regions(path: str, key: str, entry: dict) -> Iterator[tuple[str, dict]]:
    """Yields regions (version 2: a list; version 1: a map) with their locations."""
    regions = entry["regions"]
    if isinstance(regions, dict):
        regions = list(regions.values())
    for where, region in fields.read_entries(regions, f"{path}: {key}.regions"):
        for part in ("shape_attributes", "region_attributes"):
            if not isinstance(region.get(part), dict):
                raise UserError(f"{where} has no {part}")
        yield where, region


def _find_attribute(path: str, images: dict, options: AnnotationOptions) -> str:
    """Returns the region attribute that names the class."""
    if options.label_attribute is not None:
        return options.label_attribute
    names = {
        name: None
        for key, entry in images.items()
        for _, region in _list_regions(path, key, entry)
        for name in region["region_attributes"]
    }
    if len(names) > 1:
        raise UserError(
            f"{path} has the region attributes {', '.join(names)}; give the one that "
            f"names the class, such as --label_attribute={next(iter(names))}"
        )
    return next(iter(names), "class")


def _list_choices(content: dict, attribute: str) -> tuple[str, ...] | None:
    """Returns the choices of an attribute in a project, or None for free text."""
    values: Any = content
    for key in ("_via_attributes", "region", attribute, "options"):
        values = values.get(key) if isinstance(values, dict) else None
    return tuple(values) if isinstance(values, dict) and values else None


def _read_label(attributes: dict, attribute: str, where: str) -> str:
    value = attributes.get(attribute)
    if isinstance(value, dict):  # of checkboxes
        checked = [name for name, is_checked in value.items() if is_checked]
        if len(checked) != 1:
            raise UserError(
                f"{where} must have one value of {attribute}; found {len(checked)}"
            )
        value = checked[0]
    return fields.read_name(value, f"{where}.region_attributes.{attribute}")


def _read_shape(shape: dict, where: str, options: AnnotationOptions) -> drawing.Draw:
    """Returns a function that draws the shape of a region."""
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        columns = [
            fields.read_numbers(shape.get(key), f"{where}.{key}")
            for key in ("all_points_x", "all_points_y")
        ]
        if columns[0].ndim != 1 or columns[0].shape != columns[1].shape:
            raise UserError(f"{where} has different numbers of x and y coordinates")
        points = np.stack(columns, -1)
        if kind == "polyline":
            return draw_line(points, options, where)
        points = fields.read_points(points, where)
        return functools.partial(drawing.draw_polygons, [points])
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise UserError(
            f"{where}: unknown shape {kind!r:.40}; it must be polygon, polyline, "
            f"{', '.join(_NUMBERS)} or point"
        )
    numbers = [shape.get(key) for key in _NUMBERS[kind]]
    x, y, *sides = fields.read_numbers(numbers, where).tolist()
    if kind == "rect":
        outline = drawing.make_rectangle(x, y, *sides)
    else:
        theta = fields.read_numbers(shape.get("theta", 0), f"{where}.theta").item()
        outline = drawing.make_ellipse(x, y, sides[0], sides[-1])
        outline = drawing.rotate(outline, np.rad2deg(theta), (x, y))
    return functools.partial(drawing.draw_polygons, [outline])
