"""Run lengths of binary masks, as in COCO's annotations."""

from collections.abc import Sequence

import numpy as np


def decompress_counts(counts: str) -> list[int]:
    """Returns the run lengths in COCO's compressed text.

    Each character minus "0" has five bits of a two's complement number, lowest first;
    the sixth bit says that more follow. From the fourth length on, each is stored minus
    the one two before it.

    Raises:
        ValueError: for other characters, a length of more than 13 characters, or an
            unfinished one.
    """
    lengths, value, shift = [], 0, 0
    for character in counts:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its compressed runs are not in COCO's format")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("its compressed runs end within a length")
    return lengths


def check_counts(counts: Sequence[int], height: int, width: int) -> None:
    """Raises `ValueError` if runs are negative or do not fill a mask of this size."""
    if sum(counts) != height * width or min(counts) < 0:
        raise ValueError(f"its runs do not fill {width}x{height} pixels")


def decode(counts: Sequence[int], height: int, width: int, order: str) -> np.ndarray:
    """Returns the mask of run lengths, bool `[height, width]`.

    The first length counts pixels outside. Pixels are in `order` "F", column by column,
    or "C", row by row.

    Raises:
        ValueError: if the runs are negative or do not fill the mask.
    """
    check_counts(counts, height, width)
    is_inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_inside, counts).reshape(height, width, order=order)
