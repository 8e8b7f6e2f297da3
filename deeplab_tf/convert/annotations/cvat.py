"""CVAT: the export "CVAT for images 1.1", an XML file."""

import functools
import re
from collections.abc import Iterator
from typing import Any, NoReturn
from xml.etree import ElementTree

import numpy as np

from deeplab_tf.convert import run_lengths
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

_KEYS = {
    "box": ("xtl", "ytl", "xbr", "ybr"),
    "ellipse": ("cx", "cy", "rx", "ry"),
    "mask": ("left", "top", "width", "height"),
}
_SHAPES = ("polygon", "polyline", *_KEYS)
_SKIPPED = {"points": "point(s) skipped", "tag": "tag(s) skipped"}


class _Builder(ElementTree.TreeBuilder):
    """Builds a tree without entities, whose expansion may take gigabytes."""

    def doctype(self, *names: str | None) -> NoReturn:
        """Refuses document type declarations, which declare entities."""
        raise UserError("a document type declaration (DOCTYPE) is not allowed")


def parse(content: bytes, path: str) -> ElementTree.Element:
    """Parses XML; raises UserError if it is broken or declares entities."""
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(content)
        return parser.close()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UserError(f"{path} is not valid XML: {error}") from error


def is_content(root: Any) -> bool:
    """Returns whether parsed content is a CVAT export."""
    is_xml = isinstance(root, ElementTree.Element)
    return is_xml and root.tag == "annotations" and root.find("version") is not None


def read(file: File, options: AnnotationOptions) -> Annotations:
    """Reads a CVAT export.

    Shapes with a larger z_order are on top; among equals, the later shape. Polylines
    have the width `options.line_width`.

    Raises:
        UserError: if a shape is invalid or belongs to a video.
    """
    path, root = file.path, file.content
    if root.find("track") is not None:
        raise UserError(
            f"{path} contains video tracks; export it as CVAT for images 1.1"
        )
    labels = [
        e for e in root.iterfind("meta//labels/label") if e.find("parent") is None
    ]
    names = dict.fromkeys(
        fields.read_name(label.findtext("name"), f"{path}: a label") for label in labels
    )
    found = Annotations("CVAT", [], tuple(names))
    found.colors.update(_read_colors(labels))
    for entry in root.iterfind("image"):
        image = _read_image(entry, path)
        found.images.append(image)
        for where, shape in _list_shapes(entry, image, found):
            label = fields.read_name(shape.get("label"), where)
            if label not in names:
                raise UserError(f"{where}: the file does not list the label {label}")
            draw = _read_shape(shape, where, options)
            image.objects.append(Object(label, draw, f"{where} ({label})"))
    return found


def _read_colors(labels) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yields name and colour of each label that has a colour."""
    for label in labels:
        color = re.fullmatch("#([0-9a-fA-F]{6})", label.findtext("color") or "")
        if color:
            red, green, blue = bytes.fromhex(color[1])
            yield label.findtext("name").strip(), (red, green, blue)


def _read_image(entry: ElementTree.Element, path: str) -> AnnotatedImage:
    name = fields.read_name(entry.get("name"), f"{path}: image {entry.get('id')}")
    height, width = (
        _read_integer(entry.get(key), f"{path}: {name}: {key}")
        for key in ("height", "width")
    )
    size = fields.read_size(height, width, f"{path}: {name}")
    return AnnotatedImage(name, path, [], size)


def _list_shapes(
    entry: ElementTree.Element, image: AnnotatedImage, found: Annotations
) -> list[tuple[str, ElementTree.Element]]:
    """Returns the shapes of an image with their locations, from back to front."""
    shapes = []
    for i, shape in enumerate(entry):
        where = f"{image.source}: {image.name}: {shape.tag} {i}"
        if shape.tag in _SKIPPED:
            found.notes[_SKIPPED[shape.tag]] += 1
        elif shape.tag in _SHAPES:
            depth = _read_integer(shape.get("z_order", "0"), f"{where}: z_order")
            shapes.append((depth, where, shape))
        else:
            raise UserError(
                f"{where}: unknown shape; it must be one of {', '.join(_SHAPES)}"
            )
    shapes.sort(key=lambda entry: entry[0])
    return [(where, shape) for _, where, shape in shapes]


def _read_integers(text: str | None, where: str) -> list[int]:
    words = re.split(r"\s*,\s*", (text or "").strip())
    if not all(re.fullmatch(r"-?\d{1,15}", word, re.ASCII) for word in words):
        raise UserError(f"{where} must be integers; received {text!r:.60}")
    return [int(word) for word in words]


def _read_integer(text: str | None, where: str) -> int:
    values = _read_integers(text, where)
    if len(values) > 1:
        raise UserError(f"{where} must be one integer; received {text!r:.60}")
    return values[0]


def _read_float(text: str | None, where: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise UserError(f"{where} must be a number; received {text!r:.60}") from None


def _read_shape(
    shape: ElementTree.Element, where: str, options: AnnotationOptions
) -> drawing.Draw:
    """Returns a function that draws a shape, by its tag."""
    if shape.tag in ("polygon", "polyline"):
        texts = re.split("[;,]", shape.get("points") or "")
        if len(texts) % 2:
            raise UserError(f"{where}: points must be x,y;x,y;...")
        numbers = [_read_float(text, f"{where}: points") for text in texts]
        points = fields.read_numbers(numbers, where).reshape(-1, 2)
        if shape.tag == "polyline":
            return draw_line(points, options, where)
        points = fields.read_points(points, where)
        return functools.partial(drawing.draw_polygons, [points])
    if shape.tag == "mask":
        return _read_mask(shape, where)
    texts = {key: shape.get(key) for key in _KEYS[shape.tag]}
    texts["rotation"] = shape.get("rotation") or "0"
    numbers = [_read_float(text, f"{where}: {key}") for key, text in texts.items()]
    *values, degrees = fields.read_numbers(numbers, where).tolist()
    if shape.tag == "ellipse":
        outline, centre = drawing.make_ellipse(*values), np.array(values[:2])
    else:
        left, top, right, bottom = values
        outline = drawing.make_rectangle(left, top, right - left, bottom - top)
        centre = outline.mean(0)
    outline = drawing.rotate(outline, degrees, centre)
    return functools.partial(drawing.draw_polygons, [outline])


def _read_mask(shape: ElementTree.Element, where: str) -> drawing.Draw:
    """Returns a function that draws a mask, which is run lengths in a box."""
    left, top, width, height = (
        _read_integer(shape.get(key), f"{where}: {key}") for key in _KEYS["mask"]
    )
    counts = _read_integers(shape.get("rle"), f"{where}: rle")
    try:
        run_lengths.check_counts(counts, height, width)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    return functools.partial(
        drawing.draw_runs, np.array(counts), (top, left, height, width), "C"
    )
