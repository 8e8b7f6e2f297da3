"""Annotated images: their objects, before they are drawn as label maps."""

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from deeplab_tf.convert.annotations import drawing
from deeplab_tf.convert.class_list import is_background
from deeplab_tf.convert.options import AnnotationOptions
from deeplab_tf.errors import UserError, pluralize

# The name that labelme gives to pixels to ignore.
IGNORE_NAME = "__ignore__"


DEFAULTS = AnnotationOptions()


def draw_line(
    points: np.ndarray, options: AnnotationOptions, where: str
) -> drawing.Draw:
    """Returns a function that draws a line through points (x, y).

    Raises:
        UserError: if the options have no line width; `where` is the location of the
            line in the file.
    """
    if options.line_width is None:
        raise UserError(
            f"{where} is a line, which has no area; draw it as a polygon, or add "
            "--line_width=10 to draw lines 10 pixels wide"
        )
    return functools.partial(
        drawing.draw_with_pillow, "line", points, options.line_width
    )


class File(NamedTuple):
    """An annotation file.

    Attributes:
        path: The file.
        relative: Its path below the annotation folder, with forward slashes.
        content: Parsed JSON, the root of an XML document, or the lines of a text file.
    """

    path: str
    relative: str
    content: Any


class Object(NamedTuple):
    """An object of an image.

    Attributes:
        name: Name of its class.
        draw: Draws it; raises ValueError for an outline that the image cannot have.
        where: Its location in the file, for errors.
    """

    name: str
    draw: drawing.Draw
    where: str


class AnnotatedImage(NamedTuple):
    """An image of an annotation file.

    Attributes:
        name: Path of the image as in the file.
        source: The annotation file.
        objects: Its objects from back to front.
        size: Height and width in the file, or None if it does not give them.
        local_name: Another name that the image may have, or "".
        is_stem: Whether the extension of the name is not that of the image.
        by_area: Whether smaller objects cover larger ones, whatever their order.
    """

    name: str
    source: str
    objects: list[Object]
    size: tuple[int, int] | None = None
    local_name: str = ""
    is_stem: bool = False
    by_area: bool = False


@dataclasses.dataclass
class Annotations:
    """The content of one or several annotation files of the same format.

    Attributes:
        format: Name of the format.
        images: The images.
        class_names: Class names as listed in the file, or None if it has no list.
        colors: Colours of classes by name, if the file has them.
        notes: Counts of what was left out, by description.
        options: The settings used to read them.
    """

    format: str
    images: list[AnnotatedImage]
    class_names: tuple[str, ...] | None = None
    colors: dict[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    notes: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    options: AnnotationOptions = DEFAULTS

    def names(self) -> tuple[str, ...]:
        """Returns the class names, background first.

        The rest is in the order of the file's list, else in alphabetical order, so that
        the order of the images does not matter.
        """
        names = self.class_names
        if names is None:
            names = sorted({o.name for image in self.images for o in image.objects})
        others = [n for n in names if not is_background(n) and n != IGNORE_NAME]
        return ("background", *others)

    def describe(self) -> str:
        """Returns a one-line summary of images, objects and what was left out."""
        counts = {
            "class(es)": len(self.names()) - 1,
            "image(s)": len(self.images),
            "object(s)": sum(len(image.objects) for image in self.images),
            **dict(sorted(self.notes.items())),
        }
        found = (pluralize(count, noun) for noun, count in counts.items())
        return f"annotations: {self.format}, {', '.join(found)}"


class Drawing(NamedTuple):
    """A label map uint8 `[height, width]`, and what to report about it.

    `overlap` counts pixels where objects of different classes overlap; `empty` counts
    objects that cover no pixels.
    """

    label: np.ndarray
    overlap: int
    empty: int


def draw_label(
    image: AnnotatedImage, ids: Mapping[str, int], height: int, width: int
) -> Drawing:
    """Draws the label map of an image.

    `ids` are the label values by class name; uncovered pixels become "background".

    Raises:
        UserError: if an outline does not fit an image of this size.
    """
    patches = [(ids[item.name], _draw(item, height, width)) for item in image.objects]
    if image.by_area:
        # Nothing is certain inside a crowd, not even the gaps between its objects.
        ignored = ids[IGNORE_NAME]
        patches.sort(key=lambda p: (p[0] == ignored, -int(p[1].mask.sum())))
    label = np.full((height, width), ids["background"], np.uint8)
    is_drawn, is_shared = np.zeros((2, height, width), bool)
    for value, patch in patches:
        inside = patch.mask
        pixels, drawn = patch.crop(label), patch.crop(is_drawn)
        patch.crop(is_shared)[inside & drawn & (pixels != value)] = True
        pixels[inside] = value
        drawn[inside] = True
    empty = sum(not patch.mask.any() for _, patch in patches)
    return Drawing(label, int(is_shared.sum()), empty)


def _draw(item: Object, height: int, width: int) -> drawing.Patch:
    """Draws an object; an error names its location."""
    try:
        return item.draw(height, width)
    except ValueError as error:
        raise UserError(f"{item.where} in a {width}x{height} image: {error}") from error
