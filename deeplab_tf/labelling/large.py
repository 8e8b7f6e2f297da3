"""Labels images that are too large to be decoded at once, in overlapping tiles."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from deeplab_tf import visualize
from deeplab_tf.images.strips import RowReader
from deeplab_tf.images.tiles import Tile

# Multiples of all output strides, to align the features of tiles and image. Each pixel
# is labelled by a tile whose inner border is at least half of the overlap away.
TILE, OVERLAP = 1024, 256


def label_in_tiles(
    image: RowReader,
    labeler: Callable[[np.ndarray], np.ndarray],
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels of an image, and a smaller copy of the image for display.

    Args:
        image: The image.
        labeler: Maps images `[1, height, width, channels]` to integer labels `[1,
            height, width]`.
        tile: Side of the tiles, in pixels.
        overlap: Overlap of adjacent tiles, in pixels.

    Returns:
        Labels `[height, width]`, uint8, and every n-th pixel of every n-th row of the
        image, like `visualize.shrink`.
    """
    height, width = image.header.height, image.header.width
    labels = np.empty((height, width), np.uint8)
    step = -(-max(height, width) // visualize.SHEET_SIDE)
    rows: list[np.ndarray] = []
    top, read = -1, 0
    for place in _place_tiles(height, width, tile, overlap):
        if place.top != top:
            top = place.top
            band = image.read(top, top + place.height)
            first = max(read, top)
            first += -first % step
            rows.append(band[first - top :: step, ::step].copy())
            read = top + place.height
        left, right = place.left, place.left + place.width
        found = labeler(np.ascontiguousarray(band[None, :, left:right]))[0]
        # In an overlap, each tile labels the half that is nearer to it.
        y = overlap // 2 if place.top else 0
        x = overlap // 2 if place.left else 0
        bottom = top + place.height
        labels[top + y : bottom, left + x : right] = found[y:, x:]
    return labels, np.concatenate(rows)


def _place_tiles(height: int, width: int, tile: int, overlap: int) -> Iterator[Tile]:
    """Yields tiles row by row; the last of each row and column may be smaller."""
    tops, lefts = (
        range(0, max(1, side - overlap), tile - overlap) for side in (height, width)
    )
    for top, left in itertools.product(tops, lefts):
        yield Tile(top, left, min(tile, height - top), min(tile, width - left))
