"""Labels images in batches, reading ahead, and passes the labels to writers."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from deeplab_tf.labelling.writers import Writer
from deeplab_tf.progress import ProgressBar

_Key = TypeVar("_Key")


class Images(NamedTuple):
    """Pairs of a name and pixels; `total` and `unit` are for the progress bar."""

    images: Iterable[tuple[str, np.ndarray]]
    total: int | None
    unit: str


def batch_by_size(
    images: Iterable[tuple[_Key, np.ndarray]], size: int
) -> Iterator[list[tuple[_Key, np.ndarray]]]:
    """Yields batches of up to `size` consecutive images of the same size."""
    batch: list[tuple[_Key, np.ndarray]] = []
    for key, image in images:
        if batch and image.shape != batch[0][1].shape:
            yield batch
            batch = []
        batch.append((key, image))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def label_images(
    images: Images,
    labeler,
    batch_size: int,
    writers: Iterable[Writer],
    shows_progress: bool = True,
) -> int:
    """Labels images, passes the labels to the writers and returns the image count.

    `labeler` maps images `[b, h, w, channels]` of one size to labels `[b, h, w]`. The
    next batch is read while it runs.
    """
    batches, count = batch_by_size(images.images, batch_size), 0
    with (
        ThreadPoolExecutor(1) as reader,
        ProgressBar(
            total=images.total,
            desc="predicting",
            unit=images.unit,
            disable=not shows_progress,
        ) as progress,
    ):
        batch = next(batches, None)
        while batch:
            following = reader.submit(next, batches, None)
            names, pixels = zip(*batch, strict=True)
            maps = labeler(np.stack(pixels))
            for labelled in zip(names, pixels, maps, strict=True):
                for write in writers:
                    write(*labelled)
            count += len(batch)
            progress.update(len(batch))
            batch = following.result()
    return count
