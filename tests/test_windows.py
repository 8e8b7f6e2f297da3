"""Positions of windows; tests/test_inference.py tests their results."""

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.windows import window_starts


@pytest.mark.parametrize(
    ("side", "window", "starts"),
    [
        (10, 10, [0]),
        (1, 1, [0]),
        (11, 9, [0, 2]),
        (15, 9, [0, 6]),
        (16, 9, [0, 3, 7]),
        (4, 1, [0, 1, 2, 3]),
    ],
)
def test_windows_are_spread_evenly(side, window, starts):
    np.testing.assert_array_equal(window_starts(side, window), starts)


def test_windows_cover_every_side_and_overlap_by_a_third():
    side_and_window = 2 * [tf.TensorSpec([], tf.int32)]
    compiled = tf.function(window_starts, side_and_window)  # ten times as fast
    for side in range(1, 60):
        for window in range(1, side + 1):
            starts = compiled(side, window).numpy()
            assert starts[0] == 0 and starts[-1] == side - window
            assert np.all(np.diff(starts) <= max(1, window - window // 3))
