"""Reads and checks the fields of annotation files.

In all functions, `where` is the location of a value in its file, for errors.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from deeplab_tf.errors import UserError

_MAX_NUMBER = 1e9


def read_entries(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a JSON list with their locations, such as `shapes[3]`.

    Raises:
        UserError: if it is not a list of objects.
    """
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list")
    for i, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise UserError(f"{where}[{i}] must be an object")
        yield f"{where}[{i}]", entry


def read_points(value: Any, where: str, minimum: int = 3) -> np.ndarray:
    """Returns points (x, y) as float64 `[points, 2]`.

    Raises:
        UserError: unless they are finite and at least `minimum`.
    """
    points = read_numbers(value, where)
    if points.ndim != 2 or points.shape[1] != 2:
        raise UserError(f"{where} must be a list of points [x, y]")
    if len(points) < minimum:
        raise UserError(
            f"{where} has {len(points)} points; at least {minimum} are needed"
        )
    return points


def read_numbers(value: Any, where: str) -> np.ndarray:
    """Returns a list of numbers below 1e9, at any depth, as a float64 array."""
    try:
        numbers = np.array(value)
    except ValueError:  # of different depths
        numbers = np.array("")
    if numbers.size == 0 or numbers.dtype.kind not in "iuf":
        raise UserError(f"{where} must be a list of numbers")
    if not (np.abs(numbers) < _MAX_NUMBER).all():  # also refuses NaN
        raise UserError(f"{where} has a number that is not finite or is too large")
    return numbers.astype(np.float64)


def read_size(height: Any, width: Any, where: str) -> tuple[int, int] | None:
    """Returns the size of an image, or None if both sides are missing."""
    if height is None and width is None:
        return None
    for side in (height, width):
        if type(side) is not int or side < 1:
            raise UserError(
                f"{where}: height and width must be positive integers; received "
                f"{height!r} and {width!r}"
            )
    return height, width


def read_name(value: Any, where: str) -> str:
    """Returns the name of a class or file; raises UserError for other types."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} must be a name; received {value!r:.60}")
    return value.strip()
