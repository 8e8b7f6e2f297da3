"""Scores near boundaries: mIoU in bands (trimaps) and Boundary IoU.

Both count pixels in int64 arrays, which can be summed over workers.
"""

import cv2
import numpy as np

from deeplab_tf.arguments import join_choices
from deeplab_tf.config.checks import require
from deeplab_tf.data.info import is_scored
from deeplab_tf.evaluation import confusion

_AROUND = ("void", "classes")


class TrimapCurve:
    """mIoU within bands around boundaries (DeepLabv3+, arXiv:1802.02611, Fig. 5).

    "void" bands contain all pixels within a given Euclidean distance of a void pixel,
    as in Sec. 4.4 of the paper. Use them for PASCAL VOC, where a rim of void pixels
    surrounds each object.

    "classes" bands surround the boundaries between classes. A pixel with a 4-neighbour
    of a different class has distance 1; any other pixel has 1 plus its Euclidean
    distance to the nearest of these. Void is not a class, so it has no boundaries. Use
    these bands for datasets in which classes touch, such as Cityscapes and ADE20K.

    Void pixels are not scored.

    Args:
        num_classes: Number of classes; other labels are void.
        ignore_label: Label of void pixels.
        widths: Widths of the bands in pixels: integers from 1, in ascending order. Each
            band includes the narrower ones.
        around: Type of the bands, "void" or "classes".

    Attributes:
        counts: Scored pixels of each band that are not in a narrower band, int64
            `[widths, truth, prediction]`.

    Raises:
        UserError: for invalid arguments.
    """

    needs_confidences = False

    def __init__(
        self,
        num_classes: int,
        ignore_label: int,
        widths=(1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40),
        around: str = "void",
    ):
        require(
            around in _AROUND,
            f"around must be {join_choices(_AROUND)}; received {around!r}",
        )
        require(
            _is_ascending(widths),
            f"widths must be ascending integers above 0; received {widths}",
        )
        self._num_classes = num_classes
        self._ignore_label = ignore_label
        self._widths = [int(width) for width in widths]
        self._around = around
        self.reset()

    def reset(self) -> None:
        """Resets the counts."""
        shape = (len(self._widths), self._num_classes, self._num_classes)
        self.counts = np.zeros(shape, np.int64)

    def update(self, labels, predictions, confidences=None) -> None:
        """Counts one image: ground truth and predictions `[height, width]`."""
        scored = is_scored(labels, self._num_classes, self._ignore_label)
        bands = self._find_bands(labels, scored)
        near = scored & (bands < len(self._widths))
        cells = bands[near], labels[near], predictions[near]
        self.counts += confusion.count_cells(cells, self.counts.shape)

    def _find_bands(self, labels, scored) -> np.ndarray:
        """Returns the index of each pixel's narrowest band; len(widths) if in none."""
        widths = np.array(self._widths)
        if self._around == "void":
            distances = _measure_distances(~scored)
        else:
            distances = _measure_distances(_find_class_boundaries(labels, scored))
            widths -= 1  # the rim itself is at distance 1
        # Distances are square roots of integers, rounded; these edges lie between them.
        edges = np.sqrt(widths**2 + 0.5).astype(np.float32)
        return np.digitize(distances, edges)

    def metrics(self) -> dict:
        """Returns the curve, ready for JSON.

        Returns:
            `around`, `widths` and, for each width, `miou` and `pixel_accuracy` (0..1,
            None without scored pixels) and the number of scored `pixels`.
        """
        matrices = np.cumsum(self.counts, axis=0)
        return {
            "around": self._around,
            "widths": list(self._widths),
            "miou": [
                _score_unless_empty(confusion.mean_iou, matrix) for matrix in matrices
            ],
            "pixel_accuracy": [
                _score_unless_empty(confusion.pixel_accuracy, matrix)
                for matrix in matrices
            ],
            "pixels": matrices.sum((1, 2)).tolist(),
        }


class BoundaryIoU:
    """IoU of the inner boundaries of masks (Cheng et al. 2021, arXiv:2103.16562).

    The inner boundary of a mask consists of the pixels that d erosions by a 3x3 square
    remove. Other classes, void pixels and everything beyond the image are outside the
    mask. As for mIoU, intersections and unions are summed over the dataset. First, void
    pixels are removed from ground truth and prediction.

    Args:
        num_classes: Number of classes; other labels are void.
        ignore_label: Label of void pixels.
        ratio: Width d of a boundary as a fraction of the image diagonal, rounded to at
            least one pixel; 0.02 in the paper.

    Attributes:
        counts: Pixels by the class whose boundary they are on, int64 `[truth,
            prediction]`; the last row and column count pixels on no boundary.

    Raises:
        UserError: if the ratio is not positive.
    """

    needs_confidences = False

    def __init__(self, num_classes: int, ignore_label: int, ratio: float = 0.02):
        require(ratio > 0, f"ratio must be positive; received {ratio}")
        self._num_classes = num_classes
        self._ignore_label = ignore_label
        self._ratio = ratio
        self.reset()

    def reset(self) -> None:
        """Resets the counts."""
        self.counts = np.zeros((self._num_classes + 1,) * 2, np.int64)

    def update(self, labels, predictions, confidences=None) -> None:
        """Counts one image: ground truth and predictions `[height, width]`."""
        scored = is_scored(labels, self._num_classes, self._ignore_label)
        both = [self._find_boundaries(x, scored).ravel() for x in (labels, predictions)]
        self.counts += confusion.count_cells(both, self.counts.shape)

    def _find_boundaries(self, classes, scored) -> np.ndarray:
        """Returns the class of each boundary pixel; num_classes elsewhere."""
        none = self._num_classes
        masks = np.where(scored, classes.astype(np.uint16), none)
        width = max(1, round(self._ratio * np.hypot(*masks.shape)))
        # d erosions by a 3x3 square equal one erosion by a square of side 2d + 1. All
        # masks are eroded at once: a pixel stays if its square has a single class.
        square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        least = cv2.erode(masks, square)
        most = cv2.dilate(
            masks, square, borderType=cv2.BORDER_CONSTANT, borderValue=none
        )
        return np.where(least == most, none, masks).astype(np.int64)

    def metrics(self) -> dict:
        """Returns the scores, ready for JSON.

        Returns:
            `ratio`; `boundary_iou`, the mean over all classes with a boundary (None if
            there are none); and `per_class`, 0..1, None for classes without a boundary.
        """
        ious = confusion.iou_per_present_class(self.counts)[:-1].tolist()
        present = [iou for iou in ious if not np.isnan(iou)]
        return {
            "ratio": self._ratio,
            "boundary_iou": float(np.mean(present)) if present else None,
            "per_class": [None if np.isnan(iou) else iou for iou in ious],
        }


def _is_ascending(widths) -> bool:
    widths = np.asarray(widths)
    valid = np.unique(widths[widths >= 1].astype(int))
    return len(valid) > 0 and np.array_equal(valid, widths)


def _find_class_boundaries(labels, scored) -> np.ndarray:
    """Returns a mask of scored pixels next to a scored pixel of another class."""
    rim = np.zeros(labels.shape, bool)
    # Compares rows, then columns by transposing the arrays, which share memory.
    for edge, classes, counts in ((rim, labels, scored), (rim.T, labels.T, scored.T)):
        differs = (classes[1:] != classes[:-1]) & counts[1:] & counts[:-1]
        edge[1:] |= differs
        edge[:-1] |= differs
    return rim


def _measure_distances(pixels) -> np.ndarray:
    """Returns each pixel's Euclidean distance to the nearest pixel of a mask."""
    if not pixels.any():
        return np.full(pixels.shape, np.inf, np.float32)
    away = np.uint8(~pixels)
    return cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _score_unless_empty(function, matrix: np.ndarray) -> float | None:
    """Returns a score of a confusion matrix, or None if it is empty."""
    return function(matrix) if matrix.any() else None
