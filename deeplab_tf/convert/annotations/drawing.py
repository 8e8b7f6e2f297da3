"""Draws the outlines of annotated objects.

Two rules are in use. labelme counts every pixel that the outline touches; its shapes
are drawn with Pillow, as labelme does. All other tools measure in continuous
coordinates, where pixel `i` covers `[i, i + 1)`: a pixel belongs to a polygon if its
centre lies inside. These are drawn as pycocotools draws them, pixel for pixel.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from deeplab_tf.convert import run_lengths

# pycocotools traces outlines on a grid of fifths of a pixel.
_GRID = 5
_MAX_POINTS = 1 << 20  # of an outline traced at once, to bound memory


class Patch(NamedTuple):
    """The part of an image that an object may cover: mask bool `[rows, columns]`."""

    top: int
    left: int
    mask: np.ndarray

    def crop(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the patch's region of an image `[height, width]`, writable."""
        rows, columns = self.mask.shape
        return pixels[self.top : self.top + rows, self.left : self.left + columns]


# Draws an object into an image of a height and a width.
Draw = Callable[[int, int], Patch]


def draw_polygons(polygons: Sequence[np.ndarray], height: int, width: int) -> Patch:
    """Draws the pixels whose centres are inside any polygon, `[points, 2]` (x, y)."""
    points = np.concatenate(polygons)
    check_points(points, height, width)
    size = (width, height)
    left, top = np.clip(np.floor(points.min(0)) - 1, 0, size).astype(int).tolist()
    right, bottom = np.clip(np.ceil(points.max(0)) + 1, 0, size).astype(int).tolist()
    mask = np.zeros((bottom - top, right - left), bool)
    for polygon in polygons:
        edges = np.abs(np.roll(polygon, -1, axis=0) - polygon)
        if edges.max(1).sum() > height * width + 1000:
            raise ValueError("its outline is longer than the image has pixels")
        mask |= _fill_polygon(polygon, (top, bottom), (left, right))
    return Patch(top, left, mask)


def draw_scaled_polygon(points: np.ndarray, height: int, width: int) -> Patch:
    """Draws a polygon whose coordinates are fractions of width and height."""
    return draw_polygons([points * (width, height)], height, width)


def check_points(points: np.ndarray, height: int, width: int) -> None:
    """Raises `ValueError` for a point farther outside than the longer image side."""
    side = max(height, width)
    far = ((points < -side) | (points > 2 * side)).any(-1)
    if far.any():
        x, y = points[far][0].tolist()
        raise ValueError(f"the point ({x:g}, {y:g}) is far outside the image")


def _fill_polygon(
    polygon: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray:
    """Returns the pixels inside a polygon, by the even-odd rule along columns."""
    (top, bottom), (left, right) = rows, columns
    crossings = np.zeros((bottom - top + 1, right - left), np.uint8)
    for x, y in _trace_columns(polygon):
        inside = (x >= left) & (x < right)
        y = y.clip(top, bottom)
        np.add.at(crossings, (y[inside] - top, x[inside] - left), 1)
    return np.bitwise_xor.accumulate(crossings & 1, axis=0)[:-1].astype(bool)


def _trace_columns(polygon: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields columns and rows where a polygon crosses the centre of a column.

    Follows `rleFrPoly` of pycocotools: edges are traced in fifths of a pixel.
    """
    # C rounds towards zero.
    start = np.trunc(_GRID * polygon + 0.5).astype(np.int64)
    delta = np.roll(start, -1, axis=0) - start
    steps = np.abs(delta).max(1)
    start, delta, steps = start[steps > 0], delta[steps > 0], steps[steps > 0]
    bounds = np.searchsorted(
        np.cumsum(steps), np.arange(_MAX_POINTS, steps.sum(), _MAX_POINTS)
    )
    for part in np.split(np.arange(len(steps)), bounds):
        u, v = _trace_edges(start[part], delta[part], steps[part])
        change = np.flatnonzero(np.diff(u))
        column = np.minimum(u[change], u[change + 1])
        is_centre = column % _GRID == _GRID // 2
        row = np.minimum(v[change], v[change + 1])[is_centre]
        yield column[is_centre] // _GRID, -((_GRID // 2 - row) // _GRID)


def _trace_edges(start, delta, steps) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of the grid points along edges, including both ends."""
    is_flat = np.abs(delta[:, 0]) >= np.abs(delta[:, 1])
    # Edges are traced in increasing order of the longer direction.
    is_reversed = np.where(is_flat, delta[:, 0], delta[:, 1]) < 0
    origin = np.where(is_reversed[:, None], start + delta, start)
    slope = np.where(is_reversed[:, None], -delta, delta) / steps[:, None]
    edge = np.repeat(np.arange(len(steps)), steps + 1)
    step = np.arange(edge.size) - (np.cumsum(steps + 1) - steps - 1)[edge]
    step = np.where(is_reversed[edge], steps[edge] - step, step)
    traced = np.trunc(origin[edge] + slope[edge] * step[:, None] + 0.5)
    exact = origin[edge] + step[:, None]
    is_flat = is_flat[edge]
    u = np.where(is_flat, exact[:, 0], traced[:, 0]).astype(np.int64)
    return u, np.where(is_flat, traced[:, 1], exact[:, 1]).astype(np.int64)


def make_rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    """Returns the corners of a rectangle, `[4, 2]`; x and y are its upper left."""
    right, bottom = x + width, y + height
    return np.array([(x, y), (right, y), (right, bottom), (x, bottom)], np.float64)


def make_ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """Returns a polygon `[points, 2]` around an ellipse centred at (x, y).

    It deviates from the ellipse by at most 0.05 pixels.
    """
    count = 36 + int(10 * min(max(radius_x, radius_y, 0), 1e6) ** 0.5)
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], -1)


def rotate(points: np.ndarray, degrees: float, around) -> np.ndarray:
    """Rotates points `[n, 2]` around a point, clockwise, as y points down."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (points - around) @ np.array([[c, s], [-s, c]]) + around


def draw_mask(mask: np.ndarray, top: int, left: int, height: int, width: int) -> Patch:
    """Returns the patch of a mask at (`top`, `left`) of a `height` x `width` image.

    Raises:
        ValueError: if the mask does not fit.
    """
    _check_box((top, left, *mask.shape), height, width)
    return Patch(top, left, mask)


def draw_runs(
    counts: np.ndarray,
    box: tuple[int, int, int, int],
    order: str,
    height: int,
    width: int,
) -> Patch:
    """Draws run lengths inside a box (top, left, height, width).

    `order` is as in `run_lengths.decode`.
    """
    _check_box(box, height, width)
    top, left, rows, columns = box
    return Patch(top, left, run_lengths.decode(counts, rows, columns, order))


def _check_box(box: tuple[int, int, int, int], height: int, width: int) -> None:
    """Raises ValueError if a box does not fit into the image."""
    top, left, rows, columns = box
    if not (0 <= top <= height - rows and 0 <= left <= width - columns):
        raise ValueError(f"its mask, {columns}x{rows} at ({left}, {top}), does not fit")


def draw_with_pillow(
    method: str, points: np.ndarray, line_width: int | None, height: int, width: int
) -> Patch:
    """Draws a shape as labelme does, including its outline.

    `method` is a method of `ImageDraw`: polygon, rectangle, ellipse, or line with a
    `line_width` in pixels.
    """
    check_points(points, height, width)
    image = Image.new("L", (width, height))
    style = (
        {"fill": 1, "width": line_width} if line_width else {"fill": 1, "outline": 1}
    )
    getattr(ImageDraw.Draw(image), method)([tuple(p) for p in points.tolist()], **style)
    left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    return Patch(top, left, np.asarray(image.crop((left, top, right, bottom))) == 1)
