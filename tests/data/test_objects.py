"""Objects are counted and measured by class, against sizes drawn by hand."""

import numpy as np

from deeplab_tf.data.objects import ObjectSizes, measure_objects


def test_objects_are_measured():
    label = np.zeros((40, 60), np.uint8)
    label[2:5, 2:5] = 1  # 3x3
    label[10:20, 10:50] = 1  # 400 pixels, 40 long
    label[30, 7] = 2
    label[31, 8] = 2  # diagonal neighbours are one object
    label[36:, 55:] = 9  # ignored
    found = measure_objects(label, 10, 9)
    assert found[:, 0].tolist() == [0, 1, 1, 2]
    assert sorted(map(tuple, found[1:].tolist())) == [(1, 3, 3), (1, 20, 40), (2, 1, 2)]
    sizes = ObjectSizes(10)
    sizes.add(found)
    assert sizes.counts.tolist() == [1, 2, 1] + [0] * 7
    assert sizes.median_sides[1:4].tolist() == [3, 1, 0]
    assert sizes.tiny_shares(16)[:3].tolist() == [0, 0.5, 1]
    # 9 of 409 pixels.
    np.testing.assert_allclose(sizes.tiny_pixel_shares(16)[1], 9 / 409)
    assert sizes.huge_shares(39)[1] == 0.5 and sizes.huge_shares(40)[1] == 0


def test_large_labels_are_subsampled():
    label = np.zeros((2048, 1024), np.uint8)
    label[400:480, 300:360] = 1
    (found,) = measure_objects(label, 2, 0).tolist()
    # An area of 4800 pixels has a side of 69.3.
    assert found[0] == 1 and found[1] == 69 and found[2] == 80


def test_labels_without_classes_have_no_objects():
    assert measure_objects(np.full((5, 5), 255, np.uint8), 3, 255).shape == (0, 3)
    assert measure_objects(np.full((5, 5), 7, np.uint8), 3, 255).shape == (0, 3)
