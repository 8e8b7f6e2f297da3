"""Edited copies of images are recognised; different images are not."""

import time

import cv2
import numpy as np
import pytest
from drawn_scenes import draw_scene

from deeplab_tf.data.near_duplicates import Pair, find_pairs, make_thumbnail


def compress(image):
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def add_noise(image):
    noise = np.random.RandomState(5).normal(0, 12, image.shape)
    return np.clip(image + noise, 0, 255)


EDITS = {
    "compressed": compress,
    "half as large": lambda image: image[::2, ::2],
    "noisy": add_noise,
    "brighter": lambda image: np.clip(image * 1.15 + 10, 0, 255),
    "mirrored": lambda image: image[:, ::-1],
    "grey": lambda image: image.mean(-1, keepdims=True),
}


def thumbnails(images):
    return np.stack([make_thumbnail(np.asarray(image)) for image in images])


@pytest.fixture(scope="module")
def images():
    return [draw_scene(seed)[0] for seed in range(60)]


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_are_paired_with_their_originals(images, edit):
    copies = [EDITS[edit](image) for image in images[20:30]]
    found = find_pairs(thumbnails(copies), thumbnails(images))
    assert found == [Pair(i, 20 + i, edit == "mirrored") for i in range(10)]


def test_different_images_are_not_paired(images):
    assert find_pairs(thumbnails(images[:30]), thumbnails(images[30:])) == []


def test_real_images_are_not_paired(camvid):
    train, val = (
        thumbnails([cv2.imread(str(p)) for p in sorted((camvid / s).iterdir())[::10]])
        for s in ("train", "val")
    )
    assert find_pairs(val, train) == []


def test_blank_images_are_not_paired():
    blank = thumbnails([np.full((40, 40, 3), value) for value in (0, 90, 255)])
    assert find_pairs(blank, blank) == []


@pytest.mark.slow
def test_twenty_thousand_images_are_compared_in_seconds(images):
    some = np.random.RandomState(0).randint(0, 256, (20_000, 32, 32)).astype(np.uint8)
    some[123] = make_thumbnail(images[0])
    started = time.process_time()
    assert find_pairs(some[:4000], some[4000:]) == []
    assert find_pairs(thumbnails(images[:1]), some) == [Pair(0, 123, False)]
    assert time.process_time() - started < 60
