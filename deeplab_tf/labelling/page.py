"""Writes predictions.html, a self-contained page of labelled images.

The template is `evaluation/templates/predictions.html`.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import pluralize
from deeplab_tf.evaluation.page import (
    describe_class,
    describe_origin,
    embed_jpeg,
    embed_labels,
    fit,
    shrink_labels,
    write_page,
)
from deeplab_tf.labelling.writers import Writer, scale_to_rgb

PAGE_FILE = "predictions.html"
# Up to so many images, thumbnails have sides of at most so many pixels.
_SIDES = ((60, 480), (300, 256), (1000, 160))
_SMALLEST = 112
_QUALITY = 70  # of JPEG
_MOST_BYTES = 14_000_000  # of all thumbnails; more would make the page slow
_NAMED_CLASSES = 6  # listed below an image


@contextlib.contextmanager
def write_predictions_page(
    folder: str, info: DatasetInfo, count: int, command: Sequence[str]
) -> Iterator[Writer]:
    """Writes a page of all images with their labels.

    Args:
        folder: Folder to write to.
        info: Names of the classes.
        count: Expected number of images, which determines the size of thumbnails.
        command: Arguments of the command line that created the page.
    """
    tf.io.gfile.makedirs(folder)
    info = visualize.use_distinct_colors(info)
    side = next((side for most, side in _SIDES if count <= most), _SMALLEST)
    shown: list[dict] = []
    pixels, bytes_left, omitted = np.zeros(info.num_classes), _MOST_BYTES, 0

    def add(name: str, image: np.ndarray, labels: np.ndarray) -> None:
        nonlocal bytes_left, omitted
        counts = np.bincount(labels.ravel(), minlength=info.num_classes)
        counts = counts[: info.num_classes]
        pixels[:] += counts / max(1, counts.sum())
        if not omitted:
            described = _describe_image(name, image, labels, counts, info, side)
            thumbnails = described["thumbnails"].values()
            bytes_left -= sum(len(thumbnail["data"]) for thumbnail in thumbnails)
        if bytes_left < 0:
            omitted += 1
        else:
            shown.append(described)

    yield add
    omission = pluralize(omitted, "image(s) at the end (is|are)") if omitted else ""
    path = os.path.join(folder, PAGE_FILE)
    total = len(shown) + omitted
    classes = [
        (describe_class(label, info), pixels[label] / max(1, total))
        for label in np.argsort(-pixels, kind="stable").tolist()
        if pixels[label]
    ]
    write_page(
        path,
        "predictions.html",
        title="Predictions",
        headline={"Images": f"{total:,}", "Classes": f"{len(classes):,}"},
        sections=[
            ("Images", "images", {"shown": shown, "omitted": omission}),
            ("Classes", "shares", classes),
            ("How to reproduce", "origin", describe_origin(command)),
        ],
    )
    print(f"written: {path}")


def _describe_image(
    name: str,
    image: np.ndarray,
    labels: np.ndarray,
    counts: np.ndarray,
    info: DatasetInfo,
    side: int,
) -> dict:
    """Returns thumbnails and class shares of an image, for the template."""
    size = fit(labels.shape, side)
    small = shrink_labels(labels, size)
    order = [x for x in np.argsort(-counts, kind="stable").tolist() if counts[x]]
    named = order[:_NAMED_CLASSES]
    return {
        "name": name,
        "thumbnails": {
            "Image": embed_jpeg(scale_to_rgb(image, info), name, size, _QUALITY),
            "Prediction": embed_labels(small, info, f"Prediction of {name}"),
        },
        "classes": [
            describe_class(x, info) | {"share": counts[x] / counts.sum()} for x in named
        ],
        "unnamed": len(order) - len(named),
    }
