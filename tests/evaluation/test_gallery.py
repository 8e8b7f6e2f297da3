"""The gallery keeps the first, best and worst images of a split."""

import numpy as np
import pytest

from deeplab_tf.evaluation.gallery import Gallery

TRUTH = np.array([[0, 0, 1, 1]], np.uint8)
# By the number of wrong pixels, mIoU 1, (2/3 + 1/2) / 2, (1/2 + 0) / 2, ...
PREDICTIONS = {
    "all": [0, 0, 1, 1],
    "most": [0, 0, 0, 1],
    "half": [0, 0, 0, 0],
    "none": [1, 1, 0, 0],
}
SCORES = {"all": 1.0, "most": 7 / 12, "half": 1 / 4, "none": 0.0}


def add_images(gallery, names, truth=TRUTH):
    for name in names:
        image = np.full((1, 4, 1), 7.4)
        gallery.update(name, image, truth, np.array([PREDICTIONS[name]], np.int32))


def names(scored):
    return [each.name for each in scored]


def test_extremes_are_sorted_by_score():
    gallery = Gallery(2, 255, extremes=2)
    add_images(gallery, ["most", "none", "all", "half"])
    assert names(gallery.worst) == ["none", "half"]
    assert names(gallery.best) == ["all", "most"]
    for scored in (*gallery.worst, *gallery.best):
        assert scored.miou == pytest.approx(SCORES[scored.name])
        assert scored.image.shape == (1, 4, 3) and scored.image.dtype == np.uint8


def test_no_image_is_both_worst_and_best():
    gallery = Gallery(2, 255, extremes=3)
    add_images(gallery, ["most", "none", "all", "half"])
    assert names(gallery.worst) == ["none", "half", "most"]
    assert names(gallery.best) == ["all"]


def test_first_of_equal_scores_is_kept():
    gallery = Gallery(2, 255, extremes=1)
    for name in "abc":
        gallery.update(name, np.zeros((1, 4, 3)), TRUTH, TRUTH.astype(np.int32))
    assert names(gallery.worst) == ["a"]


def test_first_images_are_kept_regardless_of_score():
    gallery = Gallery(2, 255, first=3)
    add_images(gallery, ["none", "all", "half", "most"])
    assert names(gallery.first) == ["none", "all", "half"]
    assert not gallery.worst and not gallery.best
    gallery.reset()
    add_images(gallery, ["most"])
    assert names(gallery.first) == ["most"]


def test_images_without_a_scored_pixel_are_not_extremes():
    gallery = Gallery(2, 255, first=1, extremes=2)
    add_images(gallery, ["none"], np.full_like(TRUTH, 255))
    assert not gallery.worst and not gallery.best
    assert gallery.first[0].miou is None


def test_names_that_occur_again_are_numbered():
    gallery = Gallery(2, 255, extremes=3)
    truth = np.array([[0, 1]], np.uint8)
    for prediction in ([[0, 1]], [[1, 0]], [[1, 1]]):
        image = np.zeros((1, 2, 3), np.uint8)
        gallery.update("a", image, truth, np.array(prediction, np.uint8))
    # Class 0 has an IoU of 1, 0 and 0; class 1 of 1, 0 and 1/2.
    assert gallery.scores == {"a": 1, "a (2)": 0, "a (3)": 0.25}
    assert [scored.name for scored in gallery.worst] == ["a (2)", "a (3)", "a"]
