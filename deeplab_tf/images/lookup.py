"""Counts and translates the values and colours of pixels.

OpenCV is several times faster here than NumPy, which converts to 64 bits first.
"""

import cv2
import numpy as np

COLORS = 1 << 24
# calcHist counts in float32, which is exact up to here.
_MAX_COUNTED = 1 << 24


def count_values(pixels: np.ndarray) -> np.ndarray:
    """Returns the number of pixels of each value, int64 `[values]`.

    Args:
        pixels: uint8 or uint16 `[height, width]`.
    """
    if pixels.dtype != np.uint8:
        return np.bincount(pixels.ravel())
    counts = np.zeros(256, np.int64)
    rows = max(1, _MAX_COUNTED // max(1, pixels.shape[1]))
    for top in range(0, len(pixels), rows):
        part = pixels[top : top + rows]
        histogram = cv2.calcHist([part], [0], None, [256], [0, 256])
        counts += histogram.ravel().astype(int)
    return counts


def pack_colors(colors: np.ndarray) -> np.ndarray:
    """Packs colours, uint8 `[height, width, 3]`, into integers 0xRRGGBB, uint32."""
    padded = cv2.cvtColor(colors, cv2.COLOR_RGB2BGRA)
    return padded.view("<u4")[..., 0] & np.uint32(COLORS - 1)


def unpack_colors(keys: np.ndarray) -> np.ndarray:
    """Unpacks integers 0xRRGGBB `[...]` into colours, uint8 `[..., 3]`."""
    channels = [keys >> 16 & 255, keys >> 8 & 255, keys & 255]
    return np.stack(channels, -1).astype(np.uint8)


def look_up(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns the table entry of each key.

    Args:
        table: uint8 `[entries]`.
        keys: Valid indices, unsigned `[height, width]`.
    """
    if keys.dtype != np.uint8:
        return np.take(table, keys)
    return cv2.LUT(keys, np.resize(table, 256))  # OpenCV needs all 256 entries
