"""Labels images in batches, reading ahead, and passes them to writers."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from deeplab_tf.labelling.writers import Writer


class Images(NamedTuple):
    """Images to label.

    Attributes:
        images: Name and pixels, uint8 RGB `[h, w, 3]`, of each.
        total: Their number; None where it is not known.
        unit: Name of one, for the progress bar.
    """

    images: Iterable[tuple[str, np.ndarray]]
    total: int | None
    unit: str


def _batches(images, size: int) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Yields consecutive images of one size, in their order."""
    batch = []
    for name, image in images:
        if batch and image.shape != batch[0][1].shape:
            yield batch
            batch = []
        batch.append((name, image))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def label_images(
    images: Images, labeler, batch_size: int, writers: Iterable[Writer]
) -> int:
    """Labels images, passes them to the writers and returns their number.

    Args:
        images: The images; the next ones are read while the model works.
        labeler: `uint8 [b, h, w, 3] -> int32 [b, h, w]`.
        batch_size: Images of one size per call of it, at most.
        writers: Take each image with its labels, in the order of the images.
    """
    batches = _batches(images.images, batch_size)
    with (
        ThreadPoolExecutor(1) as reader,
        tqdm(total=images.total, desc="predicting", unit=images.unit) as progress,
    ):
        batch = next(batches, None)
        while batch:
            following = reader.submit(next, batches, None)
            names, pixels = zip(*batch, strict=True)
            maps = labeler(np.stack(pixels))
            for labelled in zip(names, pixels, maps, strict=True):
                for write in writers:
                    write(*labelled)
            progress.update(len(batch))
            batch = following.result()
    return progress.n
