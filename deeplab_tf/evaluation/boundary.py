"""Scores of the pixels around boundaries, where masks are hardest.

Both classes are measures: they are fed a split image by image, in any order, and give
their metrics at the end. What they keep are int64 counts of pixels, so that the shares
of several workers may be summed.
"""

import cv2
import numpy as np

from deeplab_tf.config.checks import join_choices, require
from deeplab_tf.evaluation import confusion

_AROUND = ("void", "classes")


class TrimapCurve:
    """mIoU within bands around the boundaries (DeepLabv3+, arXiv:1802.02611, Fig. 5).

    "void" bands hold the pixels at a Euclidean distance of up to their width from a
    void pixel, one that is not scored. That is Sec. 4.4 of the paper, and right for
    PASCAL VOC, whose annotators drew a rim of void around every object.

    "classes" bands surround the boundaries between two classes. A pixel beside
    another class, above, below, left or right, is at distance 1, and every other one
    at 1 plus its Euclidean distance from the nearest of these, so that the band of
    width 1 is the rim of one pixel on both sides. Void is no class: where it meets
    one there is no boundary. That is right where classes touch and void is whatever
    nobody labelled (Cityscapes, ADE20K). It is wrong for VOC: the rims of void keep
    nearly all classes apart, and hardly a boundary is left.

    Void pixels are never scored themselves.

    Args:
        num_classes: Number of classes; labels outside are void.
        ignore_label: Label of void pixels.
        widths: Widths of the bands in pixels of the image, ascending whole numbers
            from 1; wider bands hold the narrower ones.
        around: Which boundaries, "void" or "classes".

    Attributes:
        counts: int64 `[widths, truth, prediction]`, the scored pixels of each band
            that no narrower band has.

    Raises:
        UserError: if the widths or the boundaries are none of these.
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
            f"trimaps are around {join_choices(_AROUND)}; received {around!r}",
        )
        require(
            _ascend(widths),
            f"trimap widths must be ascending whole numbers from 1; received {widths}",
        )
        self._num_classes = num_classes
        self._ignore_label = ignore_label
        self._widths = [int(width) for width in widths]
        self._around = around
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        shape = (len(self._widths), self._num_classes, self._num_classes)
        self.counts = np.zeros(shape, np.int64)

    def update(self, labels, predictions, confidences=None) -> None:
        """Counts one image.

        Args:
            labels: True classes, uint8 `[height, width]`.
            predictions: Predicted classes, integers `[height, width]`.
            confidences: Not looked at.
        """
        scored = confusion.is_scored(labels, self._num_classes, self._ignore_label)
        bands = self._bands(labels, scored)
        near = scored & (bands < len(self._widths))
        cells = bands[near], labels[near], predictions[near]
        self.counts += confusion.count_cells(cells, self.counts.shape)

    def _bands(self, labels, scored) -> np.ndarray:
        """Returns the narrowest band of every pixel; one too many outside of all."""
        widths = np.array(self._widths)
        if self._around == "void":
            distances = _distances(~scored)
        else:
            distances = _distances(_rim(labels, scored))
            widths -= 1  # the rim itself is at distance 1
        # Distances are roots of whole numbers, up to rounding: no edge is near one.
        edges = np.sqrt(widths**2 + 0.5).astype(np.float32)
        return np.digitize(distances, edges)

    def metrics(self) -> dict:
        """Returns the curve, ready for JSON.

        Returns:
            `around`; `widths`; and per width the `miou`, the `pixel_accuracy` (both
            0..1, None where nothing was scored) and the scored `pixels`.
        """
        matrices = np.cumsum(self.counts, axis=0)
        return {
            "around": self._around,
            "widths": list(self._widths),
            "miou": [_score(confusion.mean_iou, matrix) for matrix in matrices],
            "pixel_accuracy": [
                _score(confusion.pixel_accuracy, matrix) for matrix in matrices
            ],
            "pixels": matrices.sum((1, 2)).tolist(),
        }


class BoundaryIoU:
    """IoU of the inner boundaries of masks (Cheng et al. 2021, arXiv:2103.16562).

    The inner boundary of a mask is what d erosions by a 3x3 square take from it. Other
    classes, void and all that is beyond the image are outside of a mask. As for mIoU,
    intersections and unions of a class are those of the whole split.

    Void pixels are taken out of the prediction as well as of the truth before the
    boundaries are formed.

    Args:
        num_classes: Number of classes; labels outside are void.
        ignore_label: Label of void pixels.
        ratio: Width d of a boundary as a share of the image's diagonal, at least a
            pixel; 0.02 in the paper.

    Attributes:
        counts: int64 `[truth, prediction]`, the pixels by the classes on whose
            boundaries they are; the last row and column are on none.

    Raises:
        UserError: if the ratio is not positive.
    """

    needs_confidences = False

    def __init__(self, num_classes: int, ignore_label: int, ratio: float = 0.02):
        require(ratio > 0, f"boundary ratio must be positive; received {ratio}")
        self._num_classes = num_classes
        self._ignore_label = ignore_label
        self._ratio = ratio
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self.counts = np.zeros((self._num_classes + 1,) * 2, np.int64)

    def update(self, labels, predictions, confidences=None) -> None:
        """Counts one image.

        Args:
            labels: True classes, uint8 `[height, width]`.
            predictions: Predicted classes, integers `[height, width]`.
            confidences: Not looked at.
        """
        scored = confusion.is_scored(labels, self._num_classes, self._ignore_label)
        both = [self._boundaries(x, scored).ravel() for x in (labels, predictions)]
        self.counts += confusion.count_cells(both, self.counts.shape)

    def _boundaries(self, classes, scored) -> np.ndarray:
        """Returns the class of every boundary pixel; one too many elsewhere."""
        none = self._num_classes
        masks = np.where(scored, classes.astype(np.uint16), none)
        width = max(1, round(self._ratio * np.hypot(*masks.shape)))
        # What d small squares leave of a mask, one of 2 d + 1 pixels leaves as well;
        # and that is, for all masks at once, where it sees a single class.
        square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        least = cv2.erode(masks, square)
        most = cv2.dilate(
            masks, square, borderType=cv2.BORDER_CONSTANT, borderValue=none
        )
        return np.where(least == most, none, masks).astype(np.int64)

    def metrics(self) -> dict:
        """Returns the scores, ready for JSON.

        Returns:
            `ratio`; `boundary_iou`, the mean over the classes that are not absent
            (None if all are); and `per_class`, 0..1, None for a class that neither
            truth nor prediction has.
        """
        ious = confusion.iou_per_class(self.counts)[:-1].tolist()
        present = [iou for iou in ious if not np.isnan(iou)]
        return {
            "ratio": self._ratio,
            "boundary_iou": float(np.mean(present)) if present else None,
            "per_class": [None if np.isnan(iou) else iou for iou in ious],
        }


def _ascend(widths) -> bool:
    whole = np.asarray(widths)
    kept = np.unique(whole[whole >= 1].astype(int))
    return len(kept) > 0 and np.array_equal(kept, whole)


def _rim(labels, scored) -> np.ndarray:
    """Returns the scored pixels beside a scored one of another class."""
    rim = np.zeros(labels.shape, bool)
    # Rows, then columns; a transposed view writes to the same rim.
    for edge, classes, counts in ((rim, labels, scored), (rim.T, labels.T, scored.T)):
        differs = (classes[1:] != classes[:-1]) & counts[1:] & counts[:-1]
        edge[1:] |= differs
        edge[:-1] |= differs
    return rim


def _distances(pixels) -> np.ndarray:
    """Returns the Euclidean distance of every pixel from the nearest of some."""
    if not pixels.any():
        return np.full(pixels.shape, np.inf, np.float32)
    away = np.uint8(~pixels)
    return cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _score(function, matrix: np.ndarray) -> float | None:
    """Returns a score of a confusion matrix, None where it counts no pixel."""
    return function(matrix) if matrix.any() else None
