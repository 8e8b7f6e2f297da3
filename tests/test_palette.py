"""Colours that readers with and without colour blindness can tell apart."""

import numpy as np
import pytest

from deeplab_tf import palette, visualize
from deeplab_tf.data.info import dataset_info


def smallest_distance(colors):
    distances = palette.measure_distances(colors, colors)
    return distances[~np.eye(len(colors), dtype=bool)].min()


def test_simulation_confuses_what_colour_blind_readers_confuse():
    red, green, blue = (200, 60, 50), (115, 110, 30), (40, 60, 200)
    near, far = palette.measure_distances([red], [green, blue])[0]
    # To readers without red or green cones, this red and this green look alike.
    assert near < 12 < 25 < far
    black_and_white = palette.measure_distances([(0, 0, 0)], [(255, 255, 255)])
    assert float(black_and_white[0, 0]) == pytest.approx(100, abs=0.1)


# Twice to ten times what is just noticeable, which is 2; the colours of the datasets
# differ by 0.6, 1.7, 2.9 and 0.03 at least.
@pytest.mark.parametrize(
    "name, least",
    [("pascal_voc_seg", 6), ("cityscapes", 6), ("camvid", 9), ("ade20k", 2)],
)
def test_report_colors_are_distinguishable(name, least):
    info = dataset_info(name)
    distinct = visualize.use_distinct_colors(info)
    assert distinct.class_names == info.class_names
    assert smallest_distance(distinct.colors) > least
    assert smallest_distance(info.colors) < 3
    # In an overlay, they are closer to each other.
    assert smallest_distance(palette.blend_with_grey(distinct.colors)) > 0.58 * least
    # Correct and unscored pixels of an error map differ from each other and from all.
    others = [visualize._RIGHT_COLOR, *visualize._UNSCORED_COLORS]
    assert palette.measure_distances(distinct.colors, others).min() > least
    assert smallest_distance(others) > 12


def test_unscored_pixels_are_striped():
    info = dataset_info("camvid")
    truth = np.full((12, 12), 11, np.uint8)
    truth[:, :4] = 3
    drawn = visualize.error_map(truth, np.full_like(truth, 3), info)
    assert (drawn[:, :4] == visualize._RIGHT_COLOR).all()
    found = {tuple(color) for color in drawn[:, 4:].reshape(-1, 3).tolist()}
    assert found == set(visualize._UNSCORED_COLORS)
