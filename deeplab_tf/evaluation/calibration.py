"""Whether predictions are as often right as they are confident."""

import numpy as np

from deeplab_tf.config.checks import require
from deeplab_tf.evaluation.confusion import is_scored

# Confidences are summed as whole multiples of this, so that no order or batch matters.
# It is the step of float32 in 0.5..1, and leaves room for 2^39 pixels in an int64;
# 2^-32 would be full after 2^31, and Cityscapes trains on three times as many.
_UNITS = 1 << 24


class Calibration:
    """Expected calibration error and its bins (Guo et al. 2017, arXiv:1706.04599).

    The pixels are put into bins of equal width by confidence, the upper edge belonging
    to a bin: (0, 1/15], (1/15, 2/15] and so on. The error of a bin is the difference
    between the share of its pixels that are right and their mean confidence; that of
    the whole is the mean over the pixels (eq. 3) or the maximum (eq. 5).

    It is a measure, fed a split image by image, in any order.

    Args:
        num_classes: Number of classes; labels outside count for nothing.
        ignore_label: Label of pixels that count for nothing.
        bins: Number of bins; 15 in the paper.

    Attributes:
        counts: int64 `[3, bins]`: the pixels, those that are right, and the sum of
            the confidences in units of 2^-24; of several workers these may be summed.

    Raises:
        UserError: if there is no bin.
    """

    needs_confidences = True

    def __init__(self, num_classes: int, ignore_label: int, bins: int = 15):
        require(bins >= 1, f"calibration bins must be positive; received {bins}")
        self._num_classes = num_classes
        self._ignore_label = ignore_label
        self._bins = bins
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self.counts = np.zeros((3, self._bins), np.int64)

    def update(self, labels, predictions, confidences) -> None:
        """Counts one image.

        Args:
            labels: True classes, uint8 `[height, width]`.
            predictions: Predicted classes, integers `[height, width]`.
            confidences: Probabilities of the predicted classes, float32
                `[height, width]`, 0..1.

        Raises:
            UserError: if a scored confidence is no number.
        """
        scored = is_scored(labels, self._num_classes, self._ignore_label)
        confidences = confidences[scored]
        require(
            not np.isnan(confidences).any(),
            "confidences must be in 0..1; received NaN: the logits are no numbers",
        )
        bins = self._bin(confidences)
        right = labels[scored] == predictions[scored]
        units = np.rint(confidences * _UNITS)
        # Whole numbers below 2^53 are exact in the float64 that bincount sums in.
        for count, weights in zip(self.counts, (None, right, units), strict=True):
            count += np.bincount(bins, weights, self._bins).astype(np.int64)

    def _bin(self, confidences) -> np.ndarray:
        """Returns the bin of every confidence."""
        # In float32, so that a confidence of 1/15 is on the edge and not beside it;
        # without the outermost edges, which softmax may overstep by rounding.
        edges = np.linspace(0, 1, self._bins + 1, dtype=np.float32)[1:-1]
        return np.digitize(confidences, edges, right=True)

    def metrics(self) -> dict:
        """Returns errors and reliability table, ready for JSON.

        Returns:
            `bins`, their number; `expected_calibration_error` and
            `maximum_calibration_error`, 0..1, None where nothing was scored; and per
            bin the mean `confidence`, the `accuracy` (both 0..1, None where the bin
            is empty) and the `pixels`.
        """
        pixels, right, units = self.counts
        filled = pixels > 0
        accuracy = right[filled] / pixels[filled]
        confidence = units[filled] / _UNITS / pixels[filled]
        gaps = np.abs(accuracy - confidence)
        expected = np.sum(gaps * pixels[filled]) / max(1, pixels.sum())
        return {
            "bins": self._bins,
            "expected_calibration_error": float(expected) if filled.any() else None,
            "maximum_calibration_error": max(gaps.tolist(), default=None),
            "confidence": _spread(confidence, filled),
            "accuracy": _spread(accuracy, filled),
            "pixels": pixels.tolist(),
        }


def _spread(values, filled) -> list:
    """Returns the values of the filled bins in their places, None in the others."""
    waiting = iter(values.tolist())
    return [next(waiting) if full else None for full in filled]
