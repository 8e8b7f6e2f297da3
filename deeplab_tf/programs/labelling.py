"""Images through a model, read ahead and in batches, to where labels go."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from deeplab_tf.programs.label_sinks import Sink


class Source(NamedTuple):
    """Images to label.

    Attributes:
        images: Name and pixels, uint8 RGB `[h, w, 3]`, of each.
        total: How many they are, None where that is not known.
        unit: What to call one.
    """

    images: Iterable[tuple[str, np.ndarray]]
    total: int | None
    unit: str


def _batches(images, size: int) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Yields images that follow each other and have one size, in their order."""
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


def label_all(source: Source, labeler, batch_size: int, sinks: Iterable[Sink]) -> int:
    """Labels images, hands them to the sinks and returns how many they were.

    Args:
        source: The images; the next ones are read while the model works.
        labeler: `uint8 [b, h, w, 3] -> int32 [b, h, w]`.
        batch_size: Images of one size per call of it, at most.
        sinks: Where each image goes with its labels, in the order of the images.
    """
    batches = _batches(source.images, batch_size)
    with (
        ThreadPoolExecutor(1) as reader,
        tqdm(total=source.total, desc="predicting", unit=source.unit) as progress,
    ):
        batch = next(batches, None)
        while batch:
            following = reader.submit(next, batches, None)
            names, images = zip(*batch, strict=True)
            labels = labeler(np.stack(images))
            for labelled in zip(names, images, labels, strict=True):
                for sink in sinks:
                    sink(*labelled)
            progress.update(len(batch))
            batch = following.result()
    return progress.n
