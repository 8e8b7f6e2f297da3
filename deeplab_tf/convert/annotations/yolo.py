"""YOLO segmentation: a text file of polygons for each image.

Each line has a class index and the points x y x y ... as fractions of the image's width
and height. `data.yaml` or `classes.txt` names the classes.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

from deeplab_tf.convert.annotations import drawing, fields
from deeplab_tf.convert.annotations.objects import (
    AnnotatedImage,
    Annotations,
    File,
    Object,
)
from deeplab_tf.errors import UserError

NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
_FIRST_LINE = re.compile(r"\s*\d+(\s+[-+.\deE]+){4,}\s*", re.ASCII)


def is_content(lines: Sequence[str]) -> bool:
    """Returns whether the first line of a text file has a class and coordinates."""
    line = next((line for line in lines if line.strip()), "")
    return _FIRST_LINE.fullmatch(line) is not None


def is_notes(content: Any) -> bool:
    """Returns whether parsed JSON is the `notes.json` of Label Studio's YOLO export."""
    return isinstance(content, dict) and content.keys() == {"categories", "info"}


def read(file: File, class_names: tuple[str, ...]) -> Annotations:
    """Reads the label file of an image. Smaller objects cover larger ones.

    Raises:
        UserError: if a line is not a polygon, or its class has no name.
    """
    image = AnnotatedImage(file.relative, file.path, [], is_stem=True, by_area=True)
    for number, line in enumerate(file.content, 1):
        words, where = line.split(), f"line {number} of {file.path}"
        if words:
            name = _read_class(words[0], class_names, where)
            points = _read_polygon(words[1:], where)
            draw = functools.partial(drawing.draw_scaled_polygon, points)
            image.objects.append(Object(name, draw, f"{where} ({name})"))
    return Annotations("YOLO", [image], class_names)


def _read_class(word: str, class_names: tuple[str, ...], where: str) -> str:
    if not re.fullmatch(r"\d{1,6}", word, re.ASCII) or int(word) >= len(class_names):
        raise UserError(
            f"{where} has the class {word!r:.40}; only 0..{len(class_names) - 1} have "
            "a name"
        )
    return class_names[int(word)]


def _read_polygon(words: list[str], where: str):
    """Returns a function that draws a polygon from words with its coordinates."""
    if len(words) == 4:
        raise UserError(
            f"{where} is a box, not a polygon; boxes have no mask: export the labels "
            "for segmentation"
        )
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    if len(numbers) % 2:
        raise UserError(f"{where} has an odd number of coordinates, {len(numbers)}")
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    points = fields.read_points(list(pairs), where)
    # Tools round coordinates at the border.
    if points.min() < -0.01 or points.max() > 1.01:
        raise UserError(
            f"{where} has coordinates from {points.min():g} to {points.max():g}; they "
            "must be fractions of the image, 0..1"
        )
    return points
