"""Warnings about predictions of a single class."""

import numpy as np
import pytest

from deeplab_tf.training.collapse import find_collapse


def test_collapsed_predictions_are_reported():
    names = ("background", "cat", "dog")
    warning = find_collapse(np.array([9990, 10, 0]), np.array([71, 20, 9]), names)
    assert warning.startswith(
        "99.9% of the predictions are 'background', which is 71% of the ground truth: "
    )
    assert "learning rate" in warning and "\n" not in warning


@pytest.mark.parametrize(
    ("predicted", "truth"),
    [
        ([9989, 11], [71, 29]),
        # The ground truth has hardly any other class.
        ([10000, 0], [95, 5]),
        ([0, 10000], [5, 95]),
        ([0, 0], [71, 29]),
        ([100, 0], [0, 0]),
    ],
)
def test_predictions_without_collapse_are_not_reported(predicted, truth):
    names = ("background", "cat")
    assert find_collapse(np.array(predicted), np.array(truth), names) is None
