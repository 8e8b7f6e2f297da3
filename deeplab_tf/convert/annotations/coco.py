"""COCO: a JSON file of images, categories and annotations."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from deeplab_tf import strict_json
from deeplab_tf.convert import run_lengths
from deeplab_tf.convert.annotations import drawing, fields
from deeplab_tf.convert.annotations.objects import (
    IGNORE_NAME,
    AnnotatedImage,
    Annotations,
    File,
    Object,
)
from deeplab_tf.convert.options import AnnotationOptions
from deeplab_tf.errors import UserError

_KEYS = ("images", "annotations", "categories")


def is_content(content: Any) -> bool:
    """Returns whether parsed JSON is a COCO instances file."""
    return isinstance(content, dict) and set(_KEYS) <= content.keys()


def read(file: File, options: AnnotationOptions) -> Annotations:
    """Reads a COCO instances file.

    Smaller objects cover larger ones. Crowds get the ignored label and are drawn over
    all objects, as in the `coco_voc` converter, unless `options.crowd` is "object".

    Raises:
        UserError: if an entry is invalid.
    """
    path, content = file.path, file.content
    names = {
        key: fields.read_name(entry.get("name"), where)
        for key, (where, entry) in _index_by_id(path, "categories", content).items()
    }
    images = {
        key: AnnotatedImage(
            fields.read_name(entry.get("file_name"), where),
            path,
            [],
            fields.read_size(entry.get("height"), entry.get("width"), where),
            by_area=True,
        )
        for key, (where, entry) in _index_by_id(path, "images", content).items()
    }
    found = Annotations("COCO", list(images.values()), tuple(names.values()))
    entries = content["annotations"]
    for where, entry in fields.read_entries(entries, f"{path}: annotations"):
        name = _look_up_id(entry, "category_id", names, where)
        image = _look_up_id(entry, "image_id", images, where)
        where = f"{where} (id {entry.get('id')}, {name}, {image.name})"
        draw = _read_segmentation(entry.get("segmentation"), image, where)
        if entry.get("iscrowd") and options.crowd != "object":
            name = IGNORE_NAME
            found.notes["crowd(s) ignored"] += 1
        image.objects.append(Object(name, draw, where))
    if options.crowd is None and found.notes:
        _refuse_categories_of_crowds(path, entries, names)
    return found


def _index_by_id(path: str, key: str, content: Any) -> dict[Any, tuple[str, dict]]:
    """Returns each entry of a list, with its location for error messages, by its id.

    Raises:
        UserError: if an id is missing or repeated.
    """
    entries: dict[Any, tuple[str, dict]] = {}
    for where, entry in fields.read_entries(content[key], f"{path}: {key}"):
        if type(entry.get("id")) not in (int, str):
            raise UserError(f"{where} has no id")
        if entry["id"] in entries:
            raise UserError(f"{where} has the id {entry['id']} of another entry")
        entries[entry["id"]] = where, entry
    return entries


def _look_up_id(entry: dict, key: str, by_id: Mapping, where: str) -> Any:
    """Returns the entry that a field names by id; raises UserError for unknown ids."""
    value = entry.get(key)
    if type(value) not in (int, str) or value not in by_id:
        raise UserError(
            f"{where} has the {key} {value!r:.60}, which is not in the file"
        )
    return by_id[value]


def _refuse_categories_of_crowds(
    path: str, entries: list[dict], names: Mapping
) -> None:
    """Refuses a category whose masks are all crowds: some tools mark them so."""
    others = {entry["category_id"] for entry in entries if not entry.get("iscrowd")}
    for key in {entry["category_id"] for entry in entries} - others:
        raise UserError(
            f"{path}: all {names[key]} objects are marked as crowds (iscrowd 1); some "
            "tools set this flag on every mask; add --crowd=object to draw them, or "
            "--crowd=ignore to ignore their pixels"
        )


def _read_segmentation(value: Any, image: AnnotatedImage, where: str) -> drawing.Draw:
    """Returns a function that draws polygons or run lengths."""
    if not value:
        raise UserError(f"{where} has no segmentation, only a box; boxes have no mask")
    if isinstance(value, dict):
        return _read_runs(value, image, where)
    if not isinstance(value, list) or not isinstance(value[0], list):
        raise UserError(
            f"{where}: segmentation must be a list of lists, or run lengths"
        )
    return functools.partial(
        drawing.draw_polygons,
        [
            _read_polygon(polygon, f"{where}: segmentation[{i}]")
            for i, polygon in enumerate(value)
        ],
    )


def _read_polygon(value: Any, where: str) -> np.ndarray:
    numbers = fields.read_numbers(value, where)
    if numbers.ndim != 1 or numbers.size % 2:
        raise UserError(f"{where} must be a list x, y, x, y, ...")
    return fields.read_points(numbers.reshape(-1, 2), where)


def _read_runs(value: dict, image: AnnotatedImage, where: str) -> drawing.Draw:
    """Returns a function that draws the run lengths of a full image."""
    counts, size = value.get("counts"), value.get("size")
    try:
        if isinstance(counts, str):
            counts = run_lengths.decompress_counts(counts)
        height, width = strict_json.convert(tuple[int, int], size, f"{where}: size")
        counts = strict_json.convert(list[int], counts, f"{where}: counts")
        run_lengths.check_counts(counts, height, width)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    if image.size not in (None, (height, width)):
        raise UserError(f"{where}: its runs are for a {width}x{height} image")
    return functools.partial(
        drawing.draw_runs, np.array(counts), (0, 0, height, width), "F"
    )
