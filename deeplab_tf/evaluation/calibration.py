"""Expected calibration error: how well confidence matches accuracy."""

import numpy as np

from deeplab_tf.config.checks import require
from deeplab_tf.data.info import is_scored

# Confidences are summed as integers, in units of 2^-24, so that the result does not
# depend on order or batch size. 2^-24 is the resolution of float32 in 0.5..1, and an
# int64 has room for 2^39 pixels. With 2^-32, it would overflow after 2^31 pixels, a
# third of the Cityscapes training set.
_UNITS = 1 << 24


class Calibration:
    """Expected calibration error and its bins (Guo et al. 2017, arXiv:1706.04599).

    Pixels are grouped by confidence into bins of equal width, (0, 1/15], (1/15, 2/15]
    and so on. The error of a bin is the difference between its accuracy and its mean
    confidence; the result is the mean over pixels (eq. 3) or the maximum (eq. 5).

    Args:
        num_classes: Number of classes; other labels are ignored.
        ignore_label: Label of pixels to ignore.
        bins: Number of bins; 15 in the paper.

    Attributes:
        counts: Pixels, correct pixels, and the sum of confidences in units of 2^-24,
            int64 `[3, bins]`; can be summed over workers.

    Raises:
        UserError: if `bins` is not positive.
    """

    needs_confidences = True

    def __init__(self, num_classes: int, ignore_label: int, bins: int = 15):
        require(bins >= 1, f"bins must be positive; received {bins}")
        self._num_classes = num_classes
        self._ignore_label = ignore_label
        self._bins = bins
        self.reset()

    def reset(self) -> None:
        """Resets the counts."""
        self.counts = np.zeros((3, self._bins), np.int64)

    def update(self, labels, predictions, confidences) -> None:
        """Counts one image.

        Args:
            labels: Ground truth, uint8 `[height, width]`.
            predictions: Predicted classes, integers `[height, width]`.
            confidences: Probabilities 0..1 of the predicted classes, float32
                `[height, width]`.

        Raises:
            UserError: if a scored confidence is NaN.
        """
        scored = is_scored(labels, self._num_classes, self._ignore_label)
        confidences = confidences[scored]
        require(
            not np.isnan(confidences).any(),
            "confidences must be in 0..1; received NaN, so some logits are not finite",
        )
        bins = self._find_bin(confidences)
        right = labels[scored] == predictions[scored]
        units = np.rint(confidences * _UNITS)
        # bincount sums in float64, which is exact for integers below 2^53.
        for count, weights in zip(self.counts, (None, right, units), strict=True):
            count += np.bincount(bins, weights, self._bins).astype(np.int64)

    def _find_bin(self, confidences) -> np.ndarray:
        # Edges are float32, like confidences, so that 1/15 is exactly on an edge. The
        # outermost edges are left out, because rounding in softmax may exceed them.
        edges = np.linspace(0, 1, self._bins + 1, dtype=np.float32)[1:-1]
        return np.digitize(confidences, edges, right=True)

    def metrics(self) -> dict:
        """Returns the calibration errors and the reliability table, ready for JSON.

        Returns:
            `bins`; `expected_calibration_error` and `maximum_calibration_error` (0..1,
            None without scored pixels); and for each bin, the mean `confidence` and
            the `accuracy` (0..1, None for empty bins) and the number of `pixels`.
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
            "confidence": _expand(confidence, filled),
            "accuracy": _expand(accuracy, filled),
            "pixels": pixels.tolist(),
        }


def _expand(values, filled) -> list:
    """Expands the values of filled bins to all bins, with None for empty bins."""
    waiting = iter(values.tolist())
    return [next(waiting) if full else None for full in filled]
