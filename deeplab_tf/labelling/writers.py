"""Writes labels as image files, as a submission archive or as a video.

Each writer is a context manager that prints the path of its output at the end.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import pluralize
from deeplab_tf.evaluation.submission import SUBMISSIONS
from deeplab_tf.files import outputs
from deeplab_tf.images import georeference
from deeplab_tf.images.videos import Video, write_video

_OVERVIEW_IMAGES = 12
_OVERVIEW = "overview.png"
GEOTIFF_SUFFIX = "_label.tif"
_SUFFIXES = ("_label.png", "_color.png", "_overlay.png")

# Called with an image's name, pixels `[h, w, channels]` and labels `[h, w]`.
Writer = Callable[[str, np.ndarray, np.ndarray], None]


def scale_to_rgb(image: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Converts an image of the dataset to uint8 RGB `[height, width, 3]`."""
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return image
    return visualize.convert_to_rgb(image * np.float32(255 / info.max_value))


def _write_images(
    image: np.ndarray, labels: np.ndarray, info: DatasetInfo, prefix: str
) -> np.ndarray:
    """Writes the three outputs of an image and returns the overlay with its legend."""
    # The overlay of a large image is smaller than the image.
    shown = visualize.shrink(labels, max(image.shape[:2]))
    overlay = visualize.overlay(scale_to_rgb(image, info), shown, info)
    overlay = visualize.add_legend(overlay, shown, info)
    contents = (
        visualize.encode_png(labels.astype(np.uint8, copy=False)),
        visualize.encode_palette_png(labels, info),
        visualize.encode_png(overlay),
    )
    for suffix, content in zip(_SUFFIXES, contents, strict=True):
        outputs.write_bytes(content, prefix + suffix)
    return overlay


def list_image_outputs(images: Iterable[str]) -> list[str]:
    """Returns the names of the files that `write_images` writes for these images."""
    names = [image + suffix for image in images for suffix in _SUFFIXES]
    return [*names, _OVERVIEW]


@contextlib.contextmanager
def write_images(
    folder: str, info: DatasetInfo, has_overview: bool = True
) -> Iterator[Writer]:
    """Writes the labels, colours and overlay of every image, and an overview."""
    tf.io.gfile.makedirs(folder)
    overlays = []

    def add(name, image, labels):
        prefix = os.path.join(folder, name)
        tf.io.gfile.makedirs(os.path.dirname(prefix))
        overlay = _write_images(image, labels, info, prefix)
        if has_overview and len(overlays) < _OVERVIEW_IMAGES:
            overlays.append(visualize.shrink(overlay, visualize.SHEET_SIDE))

    yield add
    if not has_overview:
        return
    overview = os.path.join(folder, _OVERVIEW)
    outputs.write_bytes(
        visualize.encode_png(visualize.contact_sheet(overlays)), overview
    )
    print(f"written: {overview}, with {pluralize(len(overlays), 'overlay(s)')}")


@contextlib.contextmanager
def write_geotiffs(folder: str, paths: Mapping[str, str]) -> Iterator[Writer]:
    """Writes the labels of GeoTIFFs as georeferenced `<name>_label.tif`.

    The writer ignores other images.

    Args:
        folder: Folder to write to.
        paths: Maps the name of each output to its GeoTIFF.
    """

    def add(name, image, labels):
        if name in paths:
            reference = georeference.read_georeference(paths[name])
            content = georeference.encode_labels(labels.astype(np.uint8), reference)
            outputs.write_bytes(content, os.path.join(folder, name + GEOTIFF_SUFFIX))

    yield add
    print(f"written: {pluralize(len(paths), 'label map(s)')} as GeoTIFF")


@contextlib.contextmanager
def write_submission(
    benchmark: str, path: str, info: DatasetInfo, overwrite: bool
) -> Iterator[Writer]:
    """Packs the labels of all images into an archive for a benchmark's server.

    Raises:
        UserError: if the benchmark has different classes, file names or image sizes.
    """
    with SUBMISSIONS[benchmark](path, info, overwrite=overwrite) as archive:
        yield lambda name, image, labels: archive.add(os.path.basename(name), labels)
    print(f"written: {path}, for the {benchmark} server")


def make_overlay_name(video: Video) -> str:
    """Returns the file name of the video that `write_overlay_video` writes."""
    return f"{video.name}_overlay.mp4"


@contextlib.contextmanager
def write_overlay_video(
    folder: str, video: Video, info: DatasetInfo
) -> Iterator[Writer]:
    """Writes `<video>_overlay.mp4`: the overlays, with a constant legend below."""
    tf.io.gfile.makedirs(folder)
    path = os.path.join(folder, make_overlay_name(video))
    height, width = video.size
    legend = visualize.draw_video_legend(info, height, width)
    with write_video(path, video.rate, (height + len(legend), width)) as write:

        def add(name, image, labels):
            write(np.concatenate([visualize.overlay(image, labels, info), legend]))

        yield add
    print(f"written: {path}")


@contextlib.contextmanager
def write_label_maps(folder: str, info: DatasetInfo) -> Iterator[Writer]:
    """Writes the labels of every frame to `<name>.png` with a palette, as in VOC."""
    tf.io.gfile.makedirs(folder)

    def add(name, image, labels):
        path = os.path.join(folder, f"{name}.png")
        outputs.write_bytes(visualize.encode_palette_png(labels, info), path)

    yield add
    print(f"written: {folder}")


@contextlib.contextmanager
def write_colored(folder: str, colormap: np.ndarray) -> Iterator[Writer]:
    """Writes images and coloured labels, numbered from 0, as the official vis.py does.

    `colormap` has the colour of each label, uint8 `[256, 3]`.
    """
    tf.io.gfile.makedirs(folder)
    numbers = itertools.count()

    def add(name, image, labels):
        prefix = os.path.join(folder, f"{next(numbers):06d}")
        image = visualize.encode_png(visualize.convert_to_rgb(image))
        outputs.write_bytes(image, f"{prefix}_image.png")
        colored = visualize.encode_png(colormap[labels])
        outputs.write_bytes(colored, f"{prefix}_prediction.png")

    yield add
    print(f"written: {folder}")


@contextlib.contextmanager
def write_raw(folder: str, ids: Sequence[int] | None = None) -> Iterator[Writer]:
    """Writes labels as grey `<name>.png`, as the official vis.py does.

    `ids` are the values to write for the classes; None writes the classes.
    """
    tf.io.gfile.makedirs(folder)
    values = None if ids is None else np.array(ids, np.uint8)
    numbers = itertools.count()

    def add(name, image, labels):
        name = os.path.basename(name) or f"{next(numbers):06d}"
        labels = labels.astype(np.uint8) if values is None else values[labels]
        path = os.path.join(folder, f"{name}.png")
        outputs.write_bytes(visualize.encode_png(labels), path)

    yield add
    print(f"written: {folder}")
