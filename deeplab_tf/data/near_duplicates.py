"""Finds images that look the same although their files and pixels differ.

The hash of a thumbnail is the signs of its 63 lowest DCT frequencies. The thumbnails of
images with similar hashes are then compared by correlation.
"""

from typing import NamedTuple

import cv2
import numpy as np

_SIDE = 32  # of a thumbnail, in pixels
_FREQUENCIES = 8  # in each direction
# JPEG compression, rescaling and noise change up to 5 of the 63 signs, and a different
# exposure up to 13; different images of PASCAL VOC differ in at least 18.
_MAX_DISTANCE = 8
_MIN_CORRELATION = 0.95
_ROWS = 1024  # images to compare with the other split at a time
# Standard deviation, 0..255, below which a thumbnail counts as blank.
_BLANK = 2.0


class Pair(NamedTuple):
    """Positions of two similar images; `is_mirrored` if one is mirrored."""

    first: int
    second: int
    is_mirrored: bool


def make_thumbnail(image: np.ndarray) -> np.ndarray:
    """Returns a grey thumbnail, uint8 `[32, 32]`, of an image `[h, w, channels]`.

    Values are 0..255.
    """
    grey = np.ascontiguousarray(image.mean(-1, dtype=np.float32))
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return np.rint(small).astype(np.uint8)


def _hash_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """Returns the signs of the lowest frequencies, float32 `[images, 63]`."""
    points = np.pi * (np.arange(_SIDE) + 0.5) / _SIDE
    waves = np.cos(np.outer(np.arange(_FREQUENCIES), points)).astype(np.float32)
    frequencies = waves @ thumbnails.astype(np.float32) @ waves.T
    return np.sign(frequencies.reshape(len(thumbnails), -1)[:, 1:])


def _normalize(thumbnails: np.ndarray) -> np.ndarray:
    """Returns thumbnails as vectors of mean 0 and length 1, `[images, 1024]`."""
    pixels = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    pixels -= pixels.mean(1, keepdims=True)
    return pixels / np.maximum(1e-6, np.linalg.norm(pixels, axis=1, keepdims=True))


def find_pairs(first: np.ndarray, second: np.ndarray) -> list[Pair]:
    """Returns pairs of similar images from two sets of thumbnails `[n, 32, 32]`.

    Each image of `first` is paired at most once, with the most similar image of
    `second`. Blank images are never paired.
    """
    hashes = _hash_thumbnails(second)
    pairs = []
    for start in range(0, len(first), _ROWS):
        rows = first[start : start + _ROWS]
        is_blank = rows.std((1, 2)) < _BLANK
        best = {}
        for is_mirrored in (False, True):
            shown = rows[:, :, ::-1] if is_mirrored else rows
            distances = (63 - _hash_thumbnails(shown) @ hashes.T) / 2
            near = (distances <= _MAX_DISTANCE) & ~is_blank[:, None]
            for row, column in np.argwhere(near).tolist():
                score = _correlate(shown[row], second[column])
                if score >= max(_MIN_CORRELATION, best.get(row, (0,))[0]):
                    best[row] = score, column, is_mirrored
        pairs += [Pair(start + row, best[row][1], best[row][2]) for row in sorted(best)]
    return pairs


def _correlate(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the correlation of two thumbnails, -1..1."""
    one, other = _normalize(np.stack([first, second]))
    return float(one @ other)
