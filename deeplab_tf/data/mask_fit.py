"""Tests whether masks belong to their images, by comparing the edges of both.

Edges of images and masks are drawn on a grid of 64x64 cells. The score of an image and
a mask is the correlation of their edges. Where masks fit, an image scores higher with
its own mask than with those of other images and than with its own mask mirrored.

Differences of scores are judged by Student's t, their mean divided by its standard
error. In random subsets of 12 to 24 images of PASCAL VOC, CamVid and generated shapes,
fitting masks had a t of at least 4.0 against shuffled ones, and masks of other images
at most 1.7. Against another placement, fitting masks had at most -3.6, masks of other
images at most 4.1, and wrongly placed masks usually more than 5.
"""

from typing import NamedTuple

import cv2
import numpy as np

GRID = 64
_MIN_SIDE = 32  # smaller images have too few edges
_MIN_IMAGES = 12
_UNRELATED = 3.0  # t below which own masks fit no better than shuffled ones
_CLEARLY_BETTER = 5.0  # t from which another placement of the masks fits better
_SHUFFLES = 10
_EDGE_SCALE = 6  # brings the roots of gradients, 0..38, to 0..255


class Edges(NamedTuple):
    """Edges of an image, uint8 `[64, 64]`, and of its mask, bool `[64, 64]`."""

    image: np.ndarray
    label: np.ndarray


class Misfit(NamedTuple):
    """How masks do not fit; `is_placement` if they fit better in another placement."""

    is_placement: bool
    text: str


def find_edges(small: np.ndarray, label: np.ndarray) -> Edges | None:
    """Returns the edges of an image and its label map; None if it is too small.

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
    # The root keeps a few strong edges from outweighing all others.
    strength = np.sqrt(np.hypot(across, down).max(-1)) * _EDGE_SCALE
    cells = cv2.resize(label, (GRID, GRID), interpolation=cv2.INTER_NEAREST)
    is_edge = np.zeros((GRID, GRID), bool)
    for edges, values in ((is_edge, cells), (is_edge.T, cells.T)):
        differs = values[1:] != values[:-1]
        edges[1:] |= differs
        edges[:-1] |= differs
    return Edges(np.minimum(strength, 255).astype(np.uint8), is_edge)


def find_misfit(edges: list[Edges], in_order: bool) -> Misfit | None:
    """Returns how the masks of a split do not fit their images, or None if they fit.

    Args:
        edges: Edges of the images.
        in_order: Whether these are all images in the order of their names, so that
            masks may be tested for being one image ahead or late.
    """
    edges = [pair for pair in edges if pair.image.any() and pair.label.any()]
    if len(edges) < _MIN_IMAGES:
        return None
    images = _normalize(np.stack([pair.image for pair in edges]))
    masks = np.stack([pair.label for pair in edges])
    if (masks == masks[0]).all():
        return None  # shuffling changes nothing
    masks = _normalize(masks)
    own = _score(images, masks)
    placements = _list_placements(masks, in_order)
    scores = {p: _compute_t(_score(images, m) - own) for p, m in placements.items()}
    best = max(scores, key=lambda placement: scores[placement])
    if scores[best] >= _CLEARLY_BETTER:
        return Misfit(
            True,
            f"{best}, the masks fit {len(edges)} images better than as they are "
            f"(t = {scores[best]:.1f}, at least {_CLEARLY_BETTER:g})",
        )
    offsets = range(2, min(len(edges), 2 + _SHUFFLES))
    shuffled = [_score(images, np.roll(masks, k, 0)) for k in offsets]
    t = _compute_t(own - np.mean(shuffled, 0))
    if t >= _UNRELATED:
        return None
    return Misfit(
        False,
        f"the edges of {len(edges)} masks match their own images no better than "
        f"other images (t = {t:.1f}, below {_UNRELATED:g})",
    )


def _list_placements(masks: np.ndarray, in_order: bool) -> dict[str, np.ndarray]:
    """Returns the masks in other placements, by their descriptions."""
    placements = {
        "mirrored left to right": masks[:, :, ::-1],
        "upside down": masks[:, ::-1],
        "turned by 180 degrees": masks[:, ::-1, ::-1],
    }
    if in_order:
        placements |= {
            "exchanged for those of the next image": np.roll(masks, -1, 0),
            "exchanged for those of the previous image": np.roll(masks, 1, 0),
        }
    return placements


def _normalize(maps: np.ndarray) -> np.ndarray:
    """Returns maps `[n, 64, 64]` with mean 0 and a sum of squares of 1."""
    maps = maps.astype(np.float32)
    maps -= maps.mean((1, 2), keepdims=True)
    norm = np.sqrt(np.square(maps).sum((1, 2), keepdims=True))
    return maps / np.maximum(norm, 1e-6)


def _score(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Returns the correlation of each image with its mask, -1..1, `[n]`."""
    return np.einsum("nyx,nyx->n", images, masks)


def _compute_t(differences: np.ndarray) -> float:
    """Returns the mean of some differences divided by its standard error."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() / max(error, 1e-9))
