"""Places overlapping tiles on a large image."""

import itertools
from typing import NamedTuple


class Tile(NamedTuple):
    """A region of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def place_tiles(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Returns tiles that cover an image, row by row.

    The last tile of each row and column ends at the border of the image. All tiles
    have the same size: `tile` per side, or the side of the image if it is smaller.
    """
    rows, columns = min(tile, height), min(tile, width)

    def starts(side: int, length: int) -> list[int]:
        last = side - length
        return sorted({*range(0, last, tile - overlap), last})

    corners = itertools.product(starts(height, rows), starts(width, columns))
    return [Tile(top, left, rows, columns) for top, left in corners]
