"""Where labelled images go: to pictures, to an archive, to a video.

Each is open as long as it is entered, and tells what it wrote.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.evaluation.submission import SUBMISSIONS
from deeplab_tf.files import outputs
from deeplab_tf.images.videos import Video, write_video

# Pictures that are also shown together.
_SHOWN = 12
_OVERVIEW = "overview.png"
_SUFFIXES = ("_label.png", "_color.png", "_overlay.png")

# Name, uint8 RGB `[h, w, 3]` and labels `[h, w]` of an image that was labelled.
Sink = Callable[[str, np.ndarray, np.ndarray], None]


def write_pictures(
    image: np.ndarray, labels: np.ndarray, info: DatasetInfo, prefix: str
) -> np.ndarray:
    """Writes `<prefix>_label.png`, `_color.png` and `_overlay.png`.

    Args:
        image: uint8 RGB `[height, width, 3]`.
        labels: Class ids `[height, width]`.
        info: Names and colours of the classes.
        prefix: Path of the pictures up to the underscore.

    Returns:
        The overlay with its legend, uint8 `[h, w, 3]`.
    """
    laid_over = visualize.overlay(image, labels, info)
    with_legend = visualize.add_legend(laid_over, labels, info)
    contents = (
        visualize.png_bytes(labels.astype(np.uint8)),
        visualize.palette_png_bytes(labels, info),
        visualize.png_bytes(with_legend),
    )
    for suffix, content in zip(_SUFFIXES, contents, strict=True):
        outputs.write_bytes(content, prefix + suffix)
    return with_legend


def picture_names(images: Iterable[str]) -> list[str]:
    """Returns the names of all files that `pictures` writes for some images.

    Args:
        images: Names of the images, without suffix.
    """
    names = [image + suffix for image in images for suffix in _SUFFIXES]
    return [*names, _OVERVIEW]


@contextlib.contextmanager
def pictures(folder: str, info: DatasetInfo) -> Iterator[Sink]:
    """Writes the pictures of every image, and at the end some together.

    Args:
        folder: Where to write them.
        info: Names and colours of the classes.
    """
    tf.io.gfile.makedirs(folder)
    overlays = []

    def add(name, image, labels):
        laid_over = write_pictures(image, labels, info, os.path.join(folder, name))
        if len(overlays) < _SHOWN:
            overlays.append(visualize.shrink(laid_over, visualize.SHEET_SIDE))

    yield add
    overview = os.path.join(folder, _OVERVIEW)
    outputs.write_bytes(
        visualize.png_bytes(visualize.contact_sheet(overlays)), overview
    )
    print(f"written: {overview}, the first {len(overlays)}")


@contextlib.contextmanager
def submission(
    benchmark: str, path: str, info: DatasetInfo, overwrite: bool
) -> Iterator[Sink]:
    """Packs the labels of every image as the server of a benchmark takes them.

    Args:
        benchmark: Name among `SUBMISSIONS`.
        path: Archive to write.
        info: The classes.
        overwrite: Whether to replace a file that is not our earlier output, too.

    Raises:
        UserError: if classes, path or an image are not those of the benchmark.
    """
    with SUBMISSIONS[benchmark](path, info, overwrite=overwrite) as archive:
        yield lambda name, image, labels: archive.add(name, labels)
    print(f"written: {path}, for the server of {benchmark}")


def video_file(video: Video) -> str:
    """Returns the name of the file that `overlay_video` writes."""
    return f"{video.name}_overlay.mp4"


@contextlib.contextmanager
def overlay_video(folder: str, video: Video, info: DatasetInfo) -> Iterator[Sink]:
    """Writes every frame with its colours, above a legend that stays the same.

    Args:
        folder: Where to write `<name of the video>_overlay.mp4`.
        video: Where the frames are from.
        info: Names and colours of the classes.

    Raises:
        UserError: if the file cannot be written.
    """
    tf.io.gfile.makedirs(folder)
    path = os.path.join(folder, video_file(video))
    height, width = video.size
    legend = visualize.legend_strip(info, height, width)
    with write_video(path, video.rate, (height + len(legend), width)) as write:

        def add(name, image, labels):
            write(np.concatenate([visualize.overlay(image, labels, info), legend]))

        yield add
    print(f"written: {path}")


@contextlib.contextmanager
def label_maps(folder: str, info: DatasetInfo) -> Iterator[Sink]:
    """Writes the labels of every frame, as VOC keeps them.

    Args:
        folder: Where to write `<name>.png` of each.
        info: Colours of the classes.
    """
    tf.io.gfile.makedirs(folder)

    def add(name, image, labels):
        path = os.path.join(folder, f"{name}.png")
        outputs.write_bytes(visualize.palette_png_bytes(labels, info), path)

    yield add
    print(f"written: {folder}")
