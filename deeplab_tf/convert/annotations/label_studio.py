"""Label Studio: the exports JSON and JSON-MIN."""

import functools
import posixpath
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import numpy as np

from deeplab_tf.convert.annotations import brush, drawing, fields
from deeplab_tf.convert.annotations.objects import (
    AnnotatedImage,
    Annotations,
    File,
    Object,
)
from deeplab_tf.convert.options import AnnotationOptions
from deeplab_tf.errors import UserError
from deeplab_tf.images import formats

_SIZES = {"original_width", "original_height", "image_rotation"}


def is_content(content: Any) -> bool:
    """Returns whether parsed JSON is a Label Studio export."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(task, dict) for task in content)
        and all(
            ("data" in task and ("annotations" in task or "completions" in task))
            or ("id" in task and "annotation_id" in task)
            for task in content
        )
    )


def read(file: File, options: AnnotationOptions) -> Annotations:
    """Reads a Label Studio export. Later regions cover earlier ones.

    Raises:
        UserError: if a region is invalid, or a task has several annotations.
    """
    del options
    found = Annotations("Label Studio", [])
    for i, task in enumerate(file.content):
        where = f"{file.path}: [{i}]"
        regions = list(_list_regions(task, where, found))
        name, local_name = _find_image(task.get("data", task), where)
        sizes = {_read_image_size(region, place) for place, region in regions}
        if len(sizes) > 1:
            raise UserError(f"{where} has regions that give different image sizes")
        image = AnnotatedImage(name, file.path, [], next(iter(sizes), None), local_name)
        found.images.append(image)
        for place, region in regions:
            label = _read_label(region, place)
            draw = _read_shape(region, place)
            image.objects.append(Object(label, draw, f"{place} ({label})"))
    return found


def _list_regions(
    task: dict, where: str, found: Annotations
) -> Iterator[tuple[str, dict]]:
    """Yields the labelled regions of a task with their locations, and counts others."""
    for place, region in _list_results(task, where):
        keys = [key for key in region if key.endswith("labels")]
        if "keypointlabels" in keys:
            found.notes["point(s) skipped"] += 1
        elif keys:
            yield place, region
        else:
            found.notes["result(s) without a label skipped"] += 1


def _list_results(task: dict, where: str) -> Iterator[tuple[str, dict]]:
    """Yields the values of all results of a task, with the size of its image."""
    if "data" not in task:  # JSON-MIN
        lists = {key: v for key, v in task.items() if isinstance(v, list)}
        for key, values in lists.items():
            yield from fields.read_entries(values, f"{where}.{key}")
        return
    entries = task.get("annotations", task.get("completions"))
    entries = list(fields.read_entries(entries, f"{where}.annotations"))
    valid = [(w, entry) for w, entry in entries if not entry.get("was_cancelled")]
    if len(valid) > 1:
        raise UserError(f"{where} has {len(valid)} annotations; keep one per task")
    for place, entry in valid:
        for spot, result in fields.read_entries(entry.get("result"), f"{place}.result"):
            if isinstance(result.get("value"), dict):  # relations have none
                sizes = {key: result[key] for key in result.keys() & _SIZES}
                yield spot, result["value"] | sizes


def _find_image(data: Any, where: str) -> tuple[str, str]:
    """Returns the path of a task's image, with and without its upload prefix."""
    if not isinstance(data, dict):
        raise UserError(f"{where}.data must be a JSON object; received {data!r:.60}")
    urls = {k: v for k, v in data.items() if isinstance(v, str) and "\n" not in v}
    names = {key: _parse_image_url(url) for key, url in urls.items()}
    names = {key: n for key, n in names.items() if formats.is_image_name(n)}
    if len(names) != 1 and "image" not in names:
        raise UserError(f"{where} must name one image in its data; found {len(names)}")
    name = names["image"] if "image" in names else next(iter(names.values()))
    # An upload prepends eight hexadecimal digits.
    return name, re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", name)


def _parse_image_url(url: str) -> str:
    """Returns the path of an image in the URL of a task; "" if it is invalid."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return ""
    local = urllib.parse.parse_qs(parts.query).get("d")
    if local:  # /data/local-files/?d=folder/x.jpg
        return local[0]
    name = urllib.parse.unquote(parts.path).lstrip("/")
    return posixpath.basename(name) if name.startswith("data/upload/") else name


def _read_image_size(region: dict, where: str) -> tuple[int, int]:
    """Returns height and width of the image that a region was drawn on."""
    if region.get("image_rotation"):
        raise UserError(f"{where} is on a rotated image; rotate the image file instead")
    height, width = region.get("original_height"), region.get("original_width")
    size = fields.read_size(height, width, where)
    if size is None:
        raise UserError(f"{where} has no original_width and original_height")
    return size


def _read_label(region: dict, where: str) -> str:
    labels = next(value for key, value in region.items() if key.endswith("labels"))
    if not isinstance(labels, list) or len(labels) != 1:
        raise UserError(f"{where} must have one label; received {labels!r:.60}")
    return fields.read_name(labels[0], where)


def _read_shape(region: dict, where: str) -> drawing.Draw:
    """Returns a function that draws a region, whose coordinates are in percent."""
    size = _read_image_size(region, where)
    if "rle" in region:
        return functools.partial(brush.draw, brush.read(region["rle"], where), size)
    scale = np.array(size[::-1]) / 100
    if "points" in region:
        points = fields.read_points(region["points"], f"{where}.points") * scale
        return functools.partial(drawing.draw_polygons, [points])
    keys = ["x", "y", "width", "height"]
    if "radiusX" in region:
        keys[2:] = "radiusX", "radiusY"
    percents = fields.read_numbers([region.get(key) for key in keys], where)
    x, y, *sides = (percents * np.tile(scale, 2)).tolist()
    make = drawing.make_ellipse if "radiusX" in region else drawing.make_rectangle
    degrees = fields.read_numbers(region.get("rotation", 0), f"{where}.rotation").item()
    # A rectangle turns around its corner (x, y), an ellipse around its centre.
    outline = drawing.rotate(make(x, y, *sides), degrees, (x, y))
    return functools.partial(drawing.draw_polygons, [outline])
