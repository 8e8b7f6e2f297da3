"""Label maps as pictures, by hand arithmetic."""

import io

import numpy as np
import pytest
from PIL import Image

from deeplab_tf import visualize
from deeplab_tf.data.info import DATASETS, DatasetInfo, dataset_info, voc_colors

VOC = dataset_info("pascal_voc_seg")
TOYS = DatasetInfo(
    "toys", ("floor", "ball"), ignore_label=9, colors=((10, 20, 30), (250, 0, 100))
)
IGNORED = (224, 224, 192)


def opened(png):
    return Image.open(io.BytesIO(png))


@pytest.mark.parametrize(
    ("index", "color"),
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (2, (0, 128, 0)),
        (15, (192, 128, 128)),
        (20, (0, 64, 128)),
        (255, (224, 224, 192)),
    ],
)
def test_voc_colours_are_those_of_the_devkit(index, color):
    assert voc_colors(256)[index] == color
    if index < 21:
        assert VOC.colors[index] == color


@pytest.mark.parametrize("info", DATASETS.values(), ids=lambda info: info.name)
def test_every_class_of_a_dataset_has_its_own_colour(info):
    assert len(set(info.colors)) == len(set(info.class_names)) == info.num_classes


def test_labels_take_the_colours_of_their_classes():
    colors = visualize.colorize([[0, 1, 9]], TOYS)
    np.testing.assert_array_equal(colors, [[(10, 20, 30), (250, 0, 100), IGNORED]])
    assert colors.dtype == np.uint8


def test_a_palette_png_keeps_indices_and_colours():
    labels = np.array([[0, 1, 15], [20, 255, 0]])
    with opened(visualize.palette_png_bytes(labels, VOC)) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture), labels)
        colors = np.array(picture.convert("RGB"))
    expected = [
        [(0, 0, 0), (128, 0, 0), (192, 128, 128)],
        [(0, 64, 128), IGNORED, (0, 0, 0)],
    ]
    np.testing.assert_array_equal(colors, expected)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_a_png_keeps_its_pixels(shape):
    picture = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    with opened(visualize.png_bytes(picture)) as again:
        np.testing.assert_array_equal(np.array(again), picture)


def test_overlay_mixes_image_and_colour():
    image = np.full((1, 3, 3), 100, np.uint8)
    mixed = visualize.overlay(image, np.array([[0, 1, 9]]), TOYS, opacity=0.25)
    # 0.75 * 100 + 0.25 * colour, to the nearest integer (half to even).
    expected = [[(78, 80, 82), (138, 75, 100), (131, 131, 123)]]
    np.testing.assert_array_equal(mixed, expected)
    assert mixed.dtype == np.uint8


def test_overlay_leaves_the_background_clear():
    image = np.random.RandomState(0).randint(0, 256, (2, 2, 3)).astype(np.uint8)
    labels = np.array([[0, 0], [0, 15]])
    mixed = visualize.overlay(image, labels, VOC)
    np.testing.assert_array_equal(mixed[labels == 0], image[labels == 0])
    # 0.4 of the image and 0.6 of (192, 128, 128).
    expected = 0.4 * image[1, 1] + [115.2, 76.8, 76.8]
    np.testing.assert_allclose(mixed[1, 1], expected, atol=0.5)


def test_the_legend_lists_the_classes_that_occur_largest_first(monkeypatch):
    written = []
    draw = visualize.ImageDraw.Draw

    class Recorder:
        def __init__(self, canvas):
            self.rectangle = draw(canvas).rectangle

        def text(self, place, text, **_):
            written.append(text)

    monkeypatch.setattr(visualize.ImageDraw, "Draw", Recorder)
    labels = np.array([[15, 15, 15, 0], [7, 255, 15, 15]])
    visualize.add_legend(np.zeros((2, 4, 3), np.uint8), labels, VOC)
    assert written == ["person 62.5%", "background 12.5%", "car 12.5%"]


def test_the_legend_stands_at_the_right_of_the_untouched_picture():
    picture = np.random.RandomState(0).randint(0, 256, (60, 20, 3)).astype(np.uint8)
    labels = np.full((60, 20), 1)
    labels[0] = 255
    framed = visualize.add_legend(picture, labels, TOYS)
    assert framed.shape[0] == 60 and framed.shape[1] > 20
    np.testing.assert_array_equal(framed[:, :20], picture)
    legend = framed[:, 20:].reshape(-1, 3).tolist()
    assert [250, 0, 100] in legend and [10, 20, 30] not in legend


def test_a_legend_longer_than_the_picture_is_shown_whole():
    labels = np.arange(21).reshape(3, 7)
    framed = visualize.add_legend(np.zeros((3, 7, 3), np.uint8), labels, VOC)
    legend = {tuple(color) for color in framed[:, 7:].reshape(-1, 3).tolist()}
    assert set(VOC.colors) <= legend


def test_a_legend_of_nothing_is_no_error():
    labels = np.full((3, 7), 255)
    framed = visualize.add_legend(np.zeros((3, 7, 3), np.uint8), labels, VOC)
    np.testing.assert_array_equal(framed[:3, :7], 0)


def test_a_contact_sheet_shows_every_picture_whole_and_in_order():
    random = np.random.RandomState(0)
    sizes = [(5, 9), (7, 4), (6, 6), (3, 3)]
    pictures = [random.randint(0, 255, (*size, 3)).astype(np.uint8) for size in sizes]
    sheet = visualize.contact_sheet(pictures, columns=3)
    # Cells of 7 + 8 by 9 + 8 pixels, pictures 4 pixels from their corners.
    assert sheet.shape == (2 * 15, 3 * 17, 3)
    for picture, (row, column) in zip(
        pictures, [(0, 0), (0, 1), (0, 2), (1, 0)], strict=True
    ):
        window = sheet[15 * row + 4 :, 17 * column + 4 :]
        np.testing.assert_array_equal(
            window[: picture.shape[0], : picture.shape[1]], picture
        )
    np.testing.assert_array_equal(sheet[15:, 17:], 255)
    one = visualize.contact_sheet(pictures[:1])
    assert one.shape == (13, 17, 3)
