"""Masks that do not belong to their images are found; fitting masks are not."""

import re

import cv2
import numpy as np
import pytest
from drawn_scenes import draw_scene
from PIL import Image

from deeplab_tf.data.mask_fit import GRID, find_edges, find_misfit
from deeplab_tf.data.reader import Reader
from deeplab_tf.data.sources import open_split

MIRRORED = "mirrored left to right"
NEXT, PREVIOUS = (
    f"replaced by those of the {which} image" for which in ("next", "previous")
)
# A function from all masks to the mask of each image, and the expected message.
MOVES = {
    "fitting": (lambda masks: masks, None),
    "mirrored": (
        lambda masks: [m[:, ::-1] for m in masks],
        f"images better when {MIRRORED}",
    ),
    "upside down": (lambda masks: [m[::-1] for m in masks], "when flipped upside down"),
    "turned": (
        lambda masks: [m[::-1, ::-1] for m in masks],
        "when rotated by 180 degrees",
    ),
    "of the next image": (lambda masks: [*masks[1:], masks[0]], f"when {PREVIOUS}"),
    "of the previous image": (lambda masks: [masks[-1], *masks[:-1]], f"when {NEXT}"),
    "of other images": (
        lambda masks: [*masks[3:], *masks[:3]],
        "match their own images no better than other images",
    ),
}


def shrink(image):
    small = cv2.resize(image, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32)


def find_misfit_of(images, masks, in_order=True):
    pairs = zip(images, masks, strict=True)
    edges = [find_edges(shrink(i), np.ascontiguousarray(m)) for i, m in pairs]
    misfit = find_misfit(edges, in_order)
    return misfit and misfit.text


def real_samples(request, name):
    if name == "scenes":
        return [draw_scene(seed) for seed in range(24)]
    if name == "voc":
        source = open_split(None, request.getfixturevalue("voc_records"), "val")
        reader = Reader(source)
        samples = [reader.read_sample(i) for i in range(24)]
        return [(i.numpy(), label.numpy()[..., 0]) for i, label, _ in samples]
    root = request.getfixturevalue("camvid")
    # Frames that are far apart, of several videos.
    return [
        (read(path), read(root / f"trainannot/{path.stem}.png"))
        for path in sorted((root / "train").iterdir())[::15]
    ]


def read(path):
    with Image.open(path) as file:
        return np.array(file)


@pytest.fixture(scope="module", params=["scenes", "voc", "camvid"])
def samples(request):
    return real_samples(request, request.param)


@pytest.mark.parametrize("move", MOVES)
def test_masks_that_do_not_fit_are_found(samples, move):
    change, message = MOVES[move]
    images, masks = zip(*samples, strict=True)
    found = find_misfit_of(images, change(masks))
    if message is None:
        assert found is None
    else:
        assert re.search(message, found), found
    # Twelve images suffice to find a misfit, but perhaps not its kind.
    few = find_misfit_of(images[:12], change(masks[:12]))
    assert (few is None) == (message is None), few


def test_masks_of_the_next_image_in_an_unknown_order_are_unrelated():
    images, masks = zip(*(draw_scene(seed) for seed in range(24)), strict=True)
    found = find_misfit_of(images, [*masks[1:], masks[0]], in_order=False)
    assert "no better than other images" in found


@pytest.mark.parametrize("count", [1, 11])
def test_small_splits_are_not_judged(count):
    images, masks = zip(*(draw_scene(seed) for seed in range(count)), strict=True)
    assert find_misfit_of(images, [mask[:, ::-1] for mask in masks]) is None


def test_masks_without_edges_and_equal_masks_are_not_judged():
    images = [draw_scene(seed)[0] for seed in range(14)]
    empty, half = np.zeros((96, 128), np.uint8), np.zeros((96, 128), np.uint8)
    half[:48] = 1
    assert find_misfit_of(images, [empty] * 14) is None
    assert find_misfit_of(images, [half] * 14) is None


def test_small_images_are_not_judged():
    assert find_edges(np.zeros((GRID, GRID, 3), np.float32), np.zeros((31, 90))) is None


def test_edges_of_a_square_are_found_at_its_border():
    image, label = np.zeros((128, 128, 1), np.uint8), np.zeros((128, 128), np.uint8)
    image[32:96, 32:96], label[32:96, 32:96] = 200, 1
    edges = find_edges(shrink(image).reshape(GRID, GRID, 1), label)
    # On the grid of 64 cells the square covers the cells 16 to 47.
    expected = np.zeros((GRID, GRID), bool)
    expected[15:49, 15:49] = True
    expected[17:47, 17:47] = False
    corners = np.ix_([15, 48], [15, 48])
    expected[corners] = False
    np.testing.assert_array_equal(edges.label, expected)
    assert edges.image[32, 15:17].min() > 100 and edges.image[32, 20:44].max() == 0
