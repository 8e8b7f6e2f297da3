"""Tests whether masks belong to their images, by comparing the edges of both.

The edges of an image and of a mask are drawn on a 64x64 grid, and the correlation of
the two is the score of the pair. If the masks fit, an image scores higher with its own
mask than with the mask of another image, or with its own mask mirrored.

Score differences are judged by Student's t statistic: their mean divided by its
standard error. The thresholds come from random subsets of 12 to 24 images of PASCAL
VOC, CamVid and generated shapes. Compared with shuffled masks, t was at least 4.0 for
masks that fit and at most 1.7 for masks of other images. For a different placement of
the masks, t was at most -3.6 if the masks fit, at most 4.1 for masks of other images,
and usually above 5 for misplaced masks.
"""

from typing import NamedTuple

import cv2
import numpy as np

GRID = 64
_MIN_SIDE = 32  # smaller images have too few edges
_MIN_IMAGES = 12
_UNRELATED = 3.0  # t below which masks fit no better than shuffled ones
_CLEARLY_BETTER = 5.0  # t from which masks fit better in a different placement
_SHUFFLES = 10
_EDGE_SCALE = 6  # scales the roots of gradients, 0..38, to 0..255


class Edges(NamedTuple):
    """Edges of an image, uint8 `[64, 64]`, and of its mask, bool `[64, 64]`."""

    image: np.ndarray
    label: np.ndarray


class Misfit(NamedTuple):
    """Describes a misfit; `is_placement` if masks would fit in another placement."""

    is_placement: bool
    text: str


def find_edges(small: np.ndarray, label: np.ndarray) -> Edges | None:
    """Returns the edges of an image and its label map; None if they are too small.

    Args:
        small: The image shrunk to `[64, 64, channels]`, float32 0..255.
        label: Its label map `[height, width]` at full size.
    """
    if min(label.shape) < _MIN_SIDE:
        return None
    smooth = cv2.GaussianBlur(small, (3, 3), 0).reshape(small.shape)
    across, down = (
        cv2.Sobel(smooth, cv2.CV_32F, *axis).reshape(small.shape)
        for axis in ((1, 0), (0, 1))
    )
    # The square root keeps a few strong edges from outweighing the rest.
    strength = np.sqrt(np.hypot(across, down).max(-1)) * _EDGE_SCALE
    cells = cv2.resize(label, (GRID, GRID), interpolation=cv2.INTER_NEAREST)
    is_edge = np.zeros((GRID, GRID), bool)
    for edges, values in ((is_edge, cells), (is_edge.T, cells.T)):
        differs = values[1:] != values[:-1]
        edges[1:] |= differs
        edges[:-1] |= differs
    return Edges(np.minimum(strength, 255).astype(np.uint8), is_edge)


def find_misfit(edges: list[Edges], in_order: bool) -> Misfit | None:
    """Checks whether the masks of a split fit their images; returns None if they do.

    Args:
        edges: Edges of the images and their masks.
        in_order: Whether `edges` has all images of the split, sorted by name. If so,
            masks that belong to the next or the previous image are also detected.
    """
    edges = [pair for pair in edges if pair.image.any() and pair.label.any()]
    if len(edges) < _MIN_IMAGES:
        return None
    images = _normalize(np.stack([pair.image for pair in edges]))
    masks = np.stack([pair.label for pair in edges])
    if (masks == masks[0]).all():
        return None  # shuffling equal masks would change nothing
    masks = _normalize(masks)
    own = _score(images, masks)
    placements = _list_placements(masks, in_order)
    scores = {p: _compute_t(_score(images, m) - own) for p, m in placements.items()}
    best = max(scores, key=lambda placement: scores[placement])
    if scores[best] >= _CLEARLY_BETTER:
        return Misfit(
            True,
            f"the masks fit {len(edges)} images better when {best} "
            f"(t = {scores[best]:.1f}, threshold {_CLEARLY_BETTER:g})",
        )
    offsets = range(2, min(len(edges), 2 + _SHUFFLES))
    shuffled = [_score(images, np.roll(masks, k, 0)) for k in offsets]
    t = _compute_t(own - np.mean(shuffled, 0))
    if t >= _UNRELATED:
        return None
    return Misfit(
        False,
        f"the edges of {len(edges)} masks match their own images no better than "
        f"other images (t = {t:.1f}, threshold {_UNRELATED:g})",
    )


def _list_placements(masks: np.ndarray, in_order: bool) -> dict[str, np.ndarray]:
    """Returns the masks in each other placement, by its description."""
    placements = {
        "mirrored left to right": masks[:, :, ::-1],
        "flipped upside down": masks[:, ::-1],
        "rotated by 180 degrees": masks[:, ::-1, ::-1],
    }
    if in_order:
        placements |= {
            "replaced by those of the next image": np.roll(masks, -1, 0),
            "replaced by those of the previous image": np.roll(masks, 1, 0),
        }
    return placements


def _normalize(maps: np.ndarray) -> np.ndarray:
    """Scales maps `[n, 64, 64]` to a mean of 0 and a sum of squares of 1."""
    maps = maps.astype(np.float32)
    maps -= maps.mean((1, 2), keepdims=True)
    norm = np.sqrt(np.square(maps).sum((1, 2), keepdims=True))
    return maps / np.maximum(norm, 1e-6)


def _score(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Returns the correlation of each image with its mask, -1..1, `[n]`."""
    return np.einsum("nyx,nyx->n", images, masks)


def _compute_t(differences: np.ndarray) -> float:
    """Returns the mean of the differences divided by its standard error."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() / max(error, 1e-9))
