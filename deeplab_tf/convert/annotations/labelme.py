"""labelme: a JSON file for each image."""

import base64
import functools
import io
import posixpath
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
from deeplab_tf.images import image_files

_LINES = ("line", "linestrip")
_POINTS = ("point", "points")


def is_content(content: Any) -> bool:
    """Returns whether parsed JSON is a labelme file."""
    return isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys()


def read(file: File, options: AnnotationOptions) -> Annotations:
    """Reads a labelme file. Later shapes cover earlier ones.

    Lines have the width `options.line_width`.

    Raises:
        UserError: if a shape is invalid.
    """
    path, relative, content = file
    name = fields.read_name(content["imagePath"], f"{path}: imagePath")
    folder = posixpath.dirname(relative)
    name = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = fields.read_size(height, width, path)
    found = Annotations("labelme", [AnnotatedImage(name, path, [], size)])
    for where, shape in fields.read_entries(content["shapes"], f"{path}: shapes"):
        kind = shape.get("shape_type") or "polygon"
        if kind in _POINTS:
            found.notes["point(s) skipped"] += 1
            continue
        label = fields.read_name(shape.get("label"), f"{where}.label")
        where = f"{where} ({kind} {label})"
        draw = _read_shape(kind, shape, where, options)
        found.images[0].objects.append(Object(label, draw, where))
    return found


def _read_shape(
    kind: str, shape: dict[str, Any], where: str, options: AnnotationOptions
) -> drawing.Draw:
    """Returns a function that draws a shape of the given kind."""
    points = fields.read_points(shape.get("points"), f"{where}.points", minimum=2)
    if kind == "mask":
        mask, (left, top) = _decode_mask(shape.get("mask"), where), points[0].tolist()
        return functools.partial(drawing.draw_mask, mask, int(top), int(left))
    pillow = drawing.draw_with_pillow
    if kind in _LINES:
        return draw_line(points, options, where)
    if kind == "circle" and len(points) == 2:
        radius = np.hypot(*(points[1] - points[0]))
        box = np.stack([points[0] - radius, points[0] + radius])
        return functools.partial(pillow, "ellipse", box, None)
    if kind == "rectangle" and len(points) == 2:
        return functools.partial(pillow, "rectangle", np.sort(points, axis=0), None)
    # Some programs that write labelme files give all four corners.
    if kind not in ("polygon", "rectangle", "rotation", "oriented_rectangle"):
        raise UserError(
            f"{where}: unknown shape of {len(points)} points; it must be a polygon, "
            "rectangle, circle, mask, line or linestrip"
        )
    points = fields.read_points(points, f"{where}.points")
    return functools.partial(pillow, "polygon", points, None)


def _decode_mask(text: Any, where: str) -> np.ndarray:
    try:
        content = base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}.mask is not base64: {error}") from error
    image = image_files.open_image(f"{where}.mask", io.BytesIO(content))
    return np.asarray(image_files.decode(f"{where}.mask", image).convert("L")) > 0
