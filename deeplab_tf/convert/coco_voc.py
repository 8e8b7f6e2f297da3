"""Converts COCO objects of the 20 PASCAL VOC classes, for pre-training.

As in DeepLabv3 (arXiv:1706.05587), images with more than 1000 annotated pixels of these
classes are kept, and all other objects are background. Crowds are ignored.
"""

import math
import os
import re
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from deeplab_tf import strict_json
from deeplab_tf.convert import conversion, pairs, run_lengths
from deeplab_tf.convert.options import RunOptions
from deeplab_tf.convert.shards import REPLACE
from deeplab_tf.data.info import dataset_info, normalize_split
from deeplab_tf.errors import UserError, import_extra
from deeplab_tf.files import file_kinds, text_files
from deeplab_tf.images import decoding
from deeplab_tf.progress import ProgressBar

_MAX_SKIPPED_PIXELS = 1000
_MAX_BYTES = 2**31  # of an instances file; those of 2017 have 0.5 GB
# VOC's classes that have another name in COCO.
_COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
}
_FIELDS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "segmentation"),
}


def _import_masks():
    return import_extra("pycocotools.mask", "coco", "COCO annotations need")


class _Object(NamedTuple):
    """An object of the 20 classes; its mask is in COCO's compressed runs."""

    class_id: int
    area: int
    runs: dict[str, Any]
    is_crowd: bool


class _Scene(NamedTuple):
    """An image and its objects, in drawing order."""

    file_name: str
    height: int
    width: int
    objects: list[_Object]

    def count_annotated_pixels(self) -> int:
        """Returns the number of pixels that belong to an object.

        The union of the runs is 15 times faster than drawing the label.
        """
        masks = _import_masks()
        everything = masks.merge([o.runs for o in self.objects])
        crowds = masks.merge([o.runs for o in self.objects if o.is_crowd])
        return int(masks.area(everything)) - int(masks.area(crowds))

    def draw(self) -> np.ndarray:
        """Returns the label map, uint8 `[height, width]`."""
        label = np.zeros((self.height, self.width), np.uint8)
        for item in self.objects:
            label[_import_masks().decode(item.runs) == 1] = item.class_id
        return label


def _sort_by_depth(objects: list[_Object]) -> list[_Object]:
    """Sorts objects from back to front.

    COCO does not say which object is in front. Small ones in front of large ones are
    more likely to be visible, so larger areas come first. Crowds come last: their
    outlines also cover the gaps between objects, so nothing inside them is certain.
    """
    return sorted(objects, key=lambda o: (o.is_crowd, -o.area))


def _read_json(path: epath.Path) -> dict[str, Any]:
    """Reads an instances file and checks that its entries have all fields."""
    file_kinds.require_file(path)
    content = strict_json.parse(
        text_files.read_content(os.fspath(path), _MAX_BYTES), str(path), _MAX_BYTES
    )
    for kind, fields in _FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(kind), list):
            raise UserError(f"{path} is not a COCO instances file: it has no {kind}")
        for number, entry in enumerate(content[kind]):
            for field in fields:
                if not isinstance(entry, dict) or field not in entry:
                    raise UserError(f"{path}: {kind}[{number}] has no {field}")
    return content


def _map_categories(path: epath.Path, categories: list[dict]) -> dict[int, int]:
    """Maps COCO category ids to VOC class ids; 0 is background."""
    by_name = {category["name"]: category["id"] for category in categories}
    class_ids = dict.fromkeys(by_name.values(), 0)
    names = dataset_info("coco_voc").class_names
    for class_id, name in enumerate(names[1:], 1):
        coco_name = _COCO_NAMES.get(name, name)
        if coco_name not in by_name:
            raise UserError(
                f"{path} has no category {coco_name!r}; it must have the categories "
                "of a COCO instances file"
            )
        class_ids[by_name[coco_name]] = class_id
    return class_ids


def _compress_counts(outline: dict, height: int, width: int) -> dict[str, Any]:
    """Compresses run lengths, or copies compressed ones, after checking them."""
    counts, size = outline["counts"], [height, width]
    counts = (
        run_lengths.decompress_counts(counts)
        if isinstance(counts, str)
        else list(counts)
    )
    if list(outline["size"]) != size:
        raise ValueError(
            f"its runs have the size {outline['size']}; it must be {size}, the height "
            "and width of the image"
        )
    # pycocotools reads uninitialised memory for missing runs.
    run_lengths.check_counts(counts, height, width)
    return _import_masks().frPyObjects({"counts": counts, "size": size}, *size)


def _compress_polygons(outline: list, height: int, width: int) -> dict[str, Any]:
    """Converts polygons to compressed run lengths, after checking them."""
    polygons = [np.array(polygon, np.float64) for polygon in outline]
    if any(polygon.ndim != 1 or polygon.size % 2 for polygon in polygons):
        raise ValueError("its polygons are not lists of x, y, x, y, ...")
    # pycocotools allocates memory for every pixel along the edges.
    limit = 2 * max(height, width)
    if not all((np.abs(polygon) <= limit).all() for polygon in polygons):
        raise ValueError("its polygons are far outside the image")
    # Fewer than three points have no area; pycocotools would take two for a box.
    polygons = [polygon.tolist() for polygon in polygons if polygon.size >= 6]
    parts = _import_masks().frPyObjects(polygons, height, width) if polygons else []
    return _import_masks().merge(parts)  # an empty list gives an empty mask


def _read_object(path, annotation: dict, class_id: int, image: dict) -> _Object:
    """Returns the object of an annotation, after checking its outline."""
    outline = annotation["segmentation"]
    make_runs = _compress_polygons if isinstance(outline, list) else _compress_counts
    try:
        runs = make_runs(outline, image["height"], image["width"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"annotation {annotation['id']} of {path}, in the {image['width']}x"
            f"{image['height']} image {image['file_name']}, is broken: {error}"
        ) from error
    is_crowd = bool(annotation.get("iscrowd", 0))
    ignore_label = dataset_info("coco_voc").ignore_label
    area = int(_import_masks().area(runs))
    return _Object(ignore_label if is_crowd else class_id, area, runs, is_crowd)


def _check_images(path: epath.Path, image_dir: epath.Path, images: list[dict]) -> None:
    """Raises `UserError` unless every image has a file and a valid size."""
    if not image_dir.is_dir():
        raise UserError(f"--image_dir={image_dir} is not a folder")
    listed = {str(image["file_name"]) for image in images}
    entries = pairs.find_entries(
        pairs.list_folder(image_dir), lambda p: p.name if p.name in listed else None
    )
    for image in images:
        name = str(image["file_name"])
        entries.find(name, f"{path} lists {name}, but {image_dir} has no such image")
        sides = image["height"], image["width"]
        is_valid = all(isinstance(side, int) and side > 0 for side in sides)
        if not is_valid or math.prod(sides) > decoding.MAX_PIXELS:
            raise UserError(
                f"{path}: the height and width of {image['file_name']} are {sides}; "
                f"they must be positive, with at most {decoding.MAX_PIXELS:,} pixels"
            )


def _read_objects(
    path: epath.Path, content: dict, images: dict[Any, dict]
) -> dict[Any, list[_Object]]:
    """Returns the objects of the 20 classes by image id."""
    class_ids = _map_categories(path, content["categories"])
    objects: dict[Any, list[_Object]] = {}
    for annotation in ProgressBar(content["annotations"], desc="outlines", unit="obj"):
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        for field, known in (("image_id", images), ("category_id", class_ids)):
            if annotation[field] not in known:
                raise UserError(
                    f"annotation {annotation['id']} of {path} has the {field} "
                    f"{annotation[field]!r}, which is not in the file"
                )
        if class_ids[category_id]:
            item = _read_object(
                path, annotation, class_ids[category_id], images[image_id]
            )
            if item.area:
                objects.setdefault(image_id, []).append(item)
    return objects


def _read_scenes(path: epath.Path, image_dir: epath.Path) -> list[_Scene]:
    """Returns the images with enough annotated pixels, sorted by file name.

    Objects stay compressed, at about a hundred bytes each; their masks, or polygons of
    Python numbers, would need gigabytes.
    """
    content = _read_json(path)
    _check_images(path, image_dir, content["images"])
    images = {image["id"]: image for image in content["images"]}
    scenes = [
        _Scene(
            images[image_id]["file_name"],
            images[image_id]["height"],
            images[image_id]["width"],
            _sort_by_depth(objects),
        )
        for image_id, objects in _read_objects(path, content, images).items()
    ]
    kept = [
        scene
        for scene in scenes
        if scene.count_annotated_pixels() > _MAX_SKIPPED_PIXELS
    ]
    if not kept:
        raise UserError(
            f"{path} contains no images with more than {_MAX_SKIPPED_PIXELS} annotated "
            "pixels of VOC's classes"
        )
    return sorted(kept, key=lambda scene: scene.file_name)


def convert(
    annotations: str,
    image_dir: str,
    output_dir: str,
    split: str,
    num_shards: int = 100,
    run: RunOptions = REPLACE,
) -> dict[str, int]:
    """Converts one split.

    Args:
        annotations: An instances file such as `instances_train2017.json`.
        image_dir: Folder of its images; other images are ignored.
        output_dir: Folder of the TFRecords; an error leaves nothing in it.
        split: Name of the split.
        num_shards: Files of the split; with 100, COCO's train has about 150 MB each.
        run: How to treat earlier records; which processes write shards.

    Returns:
        Number of images that were kept, by split.

    Raises:
        UserError: if a file is missing or broken, a value is out of range, or
            pycocotools is not installed.
    """
    _import_masks()  # before reading the annotations
    if not re.fullmatch(r"\w+", split):
        raise UserError(f"split must be letters, digits and _; received {split!r}")
    split = normalize_split(split)
    path, folder = epath.Path(annotations), epath.Path(image_dir)
    samples = [
        conversion.Sample(
            epath.Path(scene.file_name).stem,
            folder / scene.file_name,
            (path,),
            scene.draw,
        )
        for scene in _read_scenes(path, folder)
    ]
    info = dataset_info("coco_voc")
    written = conversion.convert(
        {split: samples}, info, output_dir, num_shards, run=run
    )
    return {split: written.split_sizes[split]}
