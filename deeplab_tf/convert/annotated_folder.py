"""Finds the images of annotations and draws their label maps."""

import functools
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from deeplab_tf.convert import conversion, findings, folder, layout
from deeplab_tf.convert.annotations.objects import (
    IGNORE_NAME,
    AnnotatedImage,
    Annotations,
    draw_label,
)
from deeplab_tf.convert.class_list import ClassList, is_background
from deeplab_tf.convert.class_masks import background_id
from deeplab_tf.convert.options import ImageOptions, RunOptions, Splitting
from deeplab_tf.data.info import DatasetInfo, check_class_names
from deeplab_tf.errors import UnclearError, UserError, pluralize, suggest_similar
from deeplab_tf.images import strips

# YOLO keeps images in a folder images, and their label files in a folder labels.
_YOLO_FOLDERS = ("images", "labels")
_Parts = tuple[str, ...]  # of a path


def make_class_list(annotations: Annotations, name: str, **settings) -> ClassList:
    """Returns the classes of annotations, background first.

    Args:
        annotations: The annotations.
        name: Default name of the dataset.
        **settings: Fields of `DatasetInfo`.

    Raises:
        UserError: if there are no classes, or too many.
    """
    names = annotations.names()
    if len(names) == 1:
        raise UserError("the annotations have no class other than background")
    check_class_names(names, "the annotations: class_names")
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UserError(f"the annotations list two classes named {twice}")
    colors = [annotations.colors.get(n, (0, 0, 0)) for n in names]
    if len(set(colors)) == len(colors):
        settings.setdefault("colors", tuple(colors))
    return ClassList(DatasetInfo(**({"name": name, "class_names": names} | settings)))


def class_ids(annotations: Annotations, classes: ClassList) -> dict[str, int]:
    """Returns the label values of the class names in annotations.

    Raises:
        UserError: if `classes` lacks background or the class of an object.
    """
    names = classes.info.class_names
    background = background_id(classes, "pixels outside of all objects need")
    ids = {name: i for i, name in enumerate(names)}
    ids |= {"background": background, IGNORE_NAME: classes.info.ignore_label}
    for image in annotations.images:
        for item in image.objects:
            if is_background(item.name):
                ids[item.name] = background
            elif item.name not in ids:
                raise UserError(
                    f"{item.where} has the class {item.name}, which is not in "
                    f"--classes; {suggest_similar(item.name, names)}add the class, "
                    "or correct the label"
                )
    return ids


class _Index:
    """Finds the images of a folder by the names in annotation files.

    Tools write absolute paths, URLs or parts of paths: an image matches if its path
    below the folder ends with the name in the file, or the other way round. Letter case
    and Unicode form may differ.
    """

    def __init__(self, folder: str, paths: Sequence[str], is_stem: bool):
        self.folder = folder
        self.is_stem = is_stem
        self._paths: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            self._paths[self._split(path)[-1]].append(path)

    def _split(self, path: str) -> _Parts:
        """Returns the parts of a path, in one letter case and Unicode form."""
        *folders, file = layout.fold_name(path).split("/")
        left_out = ("", ".", "..", *(_YOLO_FOLDERS if self.is_stem else ()))
        stem = os.path.splitext(file)[0] if self.is_stem else file
        return (*(part for part in folders if part not in left_out), stem)

    def find(self, image: AnnotatedImage) -> str:
        """Returns the path of an image below the folder.

        Raises:
            UserError: if there is no such image, or more than one.
        """
        for name in (image.name, image.name.replace("\\", "/"), image.local_name):
            parts = self._split(name)
            known = {path: self._split(path) for path in self._paths.get(parts[-1], ())}
            found = [
                path for path, other in known.items() if _have_same_ending(parts, other)
            ]
            same = [path for path in found if known[path] == parts]
            exact = [path for path in found if path == name]
            found = exact or same or found
            if len(found) > 1:
                raise UserError(
                    f"{image.source} names the image {name}, which may be "
                    f"{' or '.join(found[:3])} in {self.folder}; rename one of them"
                )
            if found:
                return found[0]
        similar = suggest_similar(self._split(image.name)[-1], self._paths)
        raise UserError(
            f"{image.source} names the image {image.name}, but {self.folder} has no "
            f"such image; {similar}add it, or remove its annotation"
        )


def _have_same_ending(first: _Parts, second: _Parts) -> bool:
    length = min(len(first), len(second))
    return first[-length:] == second[-length:]


class Source(NamedTuple):
    """Annotations and the folder of their images.

    Attributes:
        annotations: The annotations.
        image_dir: Folder of the images, with subfolders.
        missing_mask: How to treat an image that is not in the annotations; see
            `layout.Layout`.
    """

    annotations: Annotations
    image_dir: str
    missing_mask: str = "error"

    def find_images(self, skipped_folder: str = "") -> dict[str, AnnotatedImage]:
        """Returns the annotations of images, by path below `image_dir`, sorted.

        Args:
            skipped_folder: Subfolder of `image_dir` to leave out.

        Raises:
            UserError: if an image is missing or has several annotations, or if an image
                has none and `missing_mask` is "error".
        """
        images = self.annotations.images
        sources = [image.source for image in images]
        paths = layout.list_images(
            self.image_dir, "image_dir", [skipped_folder], read=sources
        )
        index = _Index(self.image_dir, paths, any(image.is_stem for image in images))
        found: dict[str, AnnotatedImage] = {}
        for image in images:
            path = index.find(image)
            if path in found:
                raise UserError(
                    f"{found[path].source} has the image {found[path].name}, and "
                    f"{image.source} has {image.name}: both are {path} in "
                    f"{self.image_dir}"
                )
            found[path] = image
        root = epath.Path(self.image_dir)
        missing = {path: root / path for path in paths if path not in found}
        reason = f"the annotations ({self.annotations.format}) have no entry"
        kept = layout.handle_missing_masks(missing, self.missing_mask, reason)
        found |= {path: AnnotatedImage(path, "", []) for path in kept}
        return {path: found[path] for path in sorted(found)}


class _Oddities(NamedTuple):
    """Overlapping pixels and empty objects of an image."""

    path: epath.Path
    overlap: int
    empty: int


class LabelMaps:
    """Draws the label maps of images and counts overlaps and empty objects.

    Args:
        ids: Label values by class name; see `class_ids`.
        info: The dataset.
        apply_exif: As in `ImageOptions`.
    """

    def __init__(
        self, ids: Mapping[str, int], info: DatasetInfo, apply_exif: bool | None
    ):
        self.ids = ids
        self.info = info
        self.apply_exif = apply_exif
        self._oddities: dict[epath.Path, _Oddities] = {}

    def draw(self, path: epath.Path, image: AnnotatedImage) -> np.ndarray:
        """Returns the label map of an image file, uint8 `[height, width]`."""
        height, width = self._find_size(path, image)
        drawn = draw_label(image, self.ids, height, width)
        findings.add(_Oddities(path, drawn.overlap, drawn.empty))
        return drawn.label

    def add(self, finding: _Oddities) -> None:
        """Counts the oddities of an image, which may be drawn more than once."""
        self._oddities[finding.path] = finding

    def _find_size(self, path: epath.Path, image: AnnotatedImage) -> tuple[int, int]:
        """Returns the size of the label map.

        Uses the size in the annotation file if it fits the image, upright or turned;
        the converter compares it with the image after applying EXIF.
        """
        header = strips.read_header(path)
        size, orientation = (header.height, header.width), header.orientation
        turned = size[::-1] if orientation > 4 else size
        if image.size is not None:
            if image.size not in (size, size[::-1]):
                raise UserError(
                    f"{image.source} gives {path} the size {image.size[1]}x"
                    f"{image.size[0]}, but it is {size[1]}x{size[0]}"
                )
            return image.size
        if self.apply_exif is None and orientation != 1 and image.objects:
            raise UnclearError(
                f"{path} has the EXIF orientation {orientation}; add --apply_exif if "
                "it was annotated upright, as viewers show it, or --noapply_exif if not"
            )
        return turned if self.apply_exif else size

    def report(self) -> None:
        """Prints lines about overlaps and objects without pixels, if any."""
        odd = self._oddities.values()
        overlaps = [item.overlap for item in odd if item.overlap]
        if overlaps:
            print(
                f"objects of different classes overlap in {sum(overlaps):,} pixels of "
                f"{pluralize(len(overlaps), 'image(s)')}; the upper ones were kept"
            )
        if empty := sum(item.empty for item in odd):
            print(pluralize(empty, "object(s) (covers|cover) no pixels"))


def convert(
    source: Source,
    classes: ClassList,
    output_dir: str,
    division: Splitting = folder.ALL_INTO_TRAIN,
    num_shards: int = 4,
    options: ImageOptions = folder.REFUSE_UNCLEAR,
    run: RunOptions = folder.ADD,
) -> DatasetInfo:
    """Converts annotated images, and reports overlapping objects.

    Args:
        source: The images and their annotations.
        classes: The classes, from the annotations (`make_class_list`) or another list
            of at least the same names and background.
        output_dir: Folder of the TFRecords; images of other runs stay in it.
        division: Names of the splits and the share of the validation images.
        num_shards: Files per split.
        options: How images become records.
        run: How to treat earlier records and broken images.

    Returns:
        The info as written next to the shards.

    Raises:
        UserError: if an image is missing or has another size, or an outline is invalid.
    """
    ids = class_ids(source.annotations, classes)
    maps = LabelMaps(ids, classes.info, options.apply_exif)
    root = epath.Path(source.image_dir)
    samples = [
        conversion.Sample(
            os.path.splitext(path)[0],
            root / path,
            (epath.Path(image.source),) if image.source else (),
            functools.partial(maps.draw, root / path, image),
        )
        for path, image in source.find_images(output_dir).items()
    ]
    recipe = repr((sorted(ids.items()), source.annotations.options))
    found = folder.FoundSamples(samples, maps, recipe)
    return folder.convert_samples(
        found, classes, output_dir, division, num_shards, options, run
    )
