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
    with opened(visualize.encode_palette_png(labels, VOC)) as picture:
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
    with opened(visualize.encode_png(picture)) as again:
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


def test_a_strip_of_all_classes_stands_below_a_video():
    # Text of 13 pixels: rows of 19 and a margin of 6.
    strip = visualize.draw_video_legend(VOC, 480, 640)
    assert strip.shape[1:] == (640, 3) and (len(strip) - 6) % 19 == 0
    colors = {tuple(color) for color in strip.reshape(-1, 3)}
    assert {tuple(color) for color in VOC.colors[1:]} <= colors
    assert strip[6 + 7, 6 + 7].tolist() == [128, 0, 0]  # in the first box
    # What stays clear is not listed: one class less is one row for the toys.
    assert visualize.draw_video_legend(TOYS, 480, 640).shape == (25, 640, 3)


def test_a_strip_is_the_higher_the_larger_the_video_and_never_over_half_of_it():
    # Text of 20 pixels: a row of 30 and a margin of 10.
    assert visualize.draw_video_legend(TOYS, 1080, 1920).shape == (40, 1920, 3)
    assert visualize.draw_video_legend(VOC, 100, 640).shape == (0, 640, 3)


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


@pytest.mark.parametrize(
    "sides",
    [
        [(1, 30_000), (30_000, 20)] * 6,
        [(65_000, 1), (1, 65_000)],
        [(1, 1_000_000)] * 12,
        [(3_000, 4_000)] * 12,
        [(6_000, 6_000)],
        [(60, 60)] * 10_000,
    ],
)
def test_a_contact_sheet_is_bounded_whatever_the_sides(sides):
    row = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    # Views of one row, for the originals would be large themselves.
    pictures = [np.broadcast_to(row[side[0] % 256], (*side, 3)) for side in sides]
    sheet = visualize.contact_sheet(pictures)
    assert sheet.shape[0] * sheet.shape[1] <= visualize.SHEET_SIDE**2
    rows, columns = -(-len(sides) // 3), min(3, len(sides))
    cell = sheet.shape[0] // rows, sheet.shape[1] // columns
    for i, side in enumerate(sides[:2]):
        window = sheet[:, i * cell[1] :][: cell[0], : cell[1]]
        # Each is there, between margins of 4 pixels, and keeps its colour.
        assert (window[4, 4] == side[0] % 256).all()
        assert (window[:4] == 255).all() and (window[:, :4] == 255).all()


@pytest.mark.parametrize(
    "side",
    # Overlays of Cityscapes and of PASCAL VOC with their legends.
    [(1024, 2048 + 160), (375, 500 + 160)],
)
def test_ordinary_contact_sheets_are_not_shrunk(side):
    sheet = visualize.contact_sheet([np.zeros((*side, 3), np.uint8)] * 12)
    assert sheet.shape == (4 * (side[0] + 8), 3 * (side[1] + 8), 3)


def test_pictures_are_shrunk_to_a_side_by_leaving_out_pixels():
    picture = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    np.testing.assert_array_equal(visualize.shrink(picture, 4), picture[::2, ::2])
    np.testing.assert_array_equal(visualize.shrink(picture, 3), picture[::3, ::3])
    assert visualize.shrink(picture, 7) is picture
    # The large original is not kept in memory.
    assert visualize.shrink(picture, 4).base is None


@pytest.mark.parametrize(
    ("side", "has_legend"),
    [((1, 30_000), True), ((30_000, 20), True), ((1, 1_000_000), False)],
)
def test_overlays_and_legends_of_degenerate_sides_are_bounded(side, has_legend):
    labels = np.arange(side[0] * side[1]).reshape(side) % 21
    laid_over = visualize.overlay(np.zeros((*side, 3), np.uint8), labels, VOC)
    framed = visualize.add_legend(laid_over, labels, VOC)
    assert framed.shape[0] * framed.shape[1] <= visualize.SHEET_SIDE**2
    assert (framed.shape[1] > side[1]) == has_legend
    np.testing.assert_array_equal(framed[: side[0], : side[1]], laid_over)


@pytest.mark.parametrize(
    ("pixel", "shown"),
    [
        ((7,), (7, 7, 7)),
        ((7, 9), (7, 7, 7)),
        ((1.4, 254.6, 300), (1, 255, 255)),
        ((-3, 2, 3, 99), (0, 2, 3)),
    ],
)
def test_an_image_of_any_channels_is_shown_as_rgb(pixel, shown):
    rgb = visualize.as_rgb(np.full((2, 5, len(pixel)), pixel))
    np.testing.assert_array_equal(rgb, np.full((2, 5, 3), shown))
    assert rgb.dtype == np.uint8


def test_a_panel_is_image_truth_prediction_and_legend():
    image = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)
    truth, prediction = np.zeros((2, 30, 40), np.uint8)
    truth[:10], prediction[:, :20] = 255, 2
    picture = visualize.panel(image, truth, prediction, VOC)
    assert picture.dtype == np.uint8
    # Captions of 20 pixels, then cells of 40 + 8 by 30 + 8 pixels.
    shown = [picture[24:54, 4 + 48 * i :][:, :40] for i in range(3)]
    np.testing.assert_array_equal(shown[0], image)
    np.testing.assert_array_equal(shown[1][:10], np.full((10, 40, 3), IGNORED))
    np.testing.assert_array_equal(shown[1][10:], 0)
    np.testing.assert_array_equal(shown[2][:, :20], np.full((30, 20, 3), VOC.colors[2]))
    np.testing.assert_array_equal(shown[2][:, 20:], 0)
    assert (picture[:20, :144] == 0).any()
    legend = picture[:, 144:].reshape(-1, 3).tolist()
    # The bicycle is in the prediction alone.
    assert list(VOC.colors[2]) in legend and list(VOC.colors[1]) not in legend


def test_the_legend_of_a_panel_begins_with_what_is_large_in_either():
    truth, prediction = np.zeros((10, 10), np.uint8), np.full((10, 10), 2)
    truth[0] = 1
    picture = visualize.panel(np.zeros((10, 10, 3)), truth, prediction, VOC)
    legend = picture[:, 3 * 18 :]
    # All pixels are predicted as the second, a tenth is the first.
    second, first = (
        np.nonzero((legend == VOC.colors[i]).all(-1))[0].min() for i in (2, 1)
    )
    assert second < first


def test_a_panel_of_a_large_image_is_small():
    labels = np.zeros((1024, 2048), np.uint8)
    image = np.zeros((1024, 2048, 3), np.uint8)
    picture = visualize.panel(image, labels, labels, dataset_info("cityscapes"))
    legend = picture.shape[1] - 3 * (512 + 8)
    assert picture.shape[0] == 20 + 256 + 8 and 0 < legend < 300


def test_an_error_map_shows_what_was_predicted_where_it_is_wrong():
    truth = np.array([[0, 1, 0, 1], [9, 7, 9, 255]], np.uint8)
    prediction = np.array([[0, 0, 1, 1], [0, 1, 1, 0]], np.int32)
    errors = visualize.error_map(truth, prediction, TOYS)
    right, unscored = (240, 243, 238), (200, 200, 200)
    floor, ball = TOYS.colors
    # 7 and 255 are no classes, and 9 is ignored.
    expected = [[right, floor, ball, right], [unscored] * 4]
    np.testing.assert_array_equal(errors, expected)
    assert errors.dtype == np.uint8


def test_an_error_map_of_ade20k_shows_the_ignored_class_where_it_is_predicted():
    info = dataset_info("ade20k")
    errors = visualize.error_map(np.array([[0, 5]]), np.array([[0, 0]]), info)
    np.testing.assert_array_equal(errors, [[(200, 200, 200), info.colors[0]]])


BLUE, RED = (59, 110, 168), (232, 175, 166)  # the latter is half transparent


def drawn_in(picture, color):
    """Returns the rows and columns of the pixels of a colour."""
    assert picture.dtype == np.uint8
    return np.nonzero((np.abs(picture.astype(int) - color) <= 3).all(-1))


def test_the_trimap_curve_rises_with_the_scores():
    rows, columns = drawn_in(visualize.plot_trimap([1, 5, 40], [0.2, 0.3, 0.8]), BLUE)
    left, right = columns.min(), columns.max()
    assert rows[columns == left].min() > rows[columns == right].max()
    # The second of the widths stands at a tenth of the way: 4 of 39 pixels.
    tenth = left + (right - left) * 4 // 39
    height = np.ptp(rows)
    assert rows.max() - rows[columns == tenth].mean() == pytest.approx(
        height / 6, abs=height / 30
    )


def test_a_band_without_pixels_is_a_gap_in_the_curve():
    picture = visualize.plot_trimap([10, 20, 30, 40, 50], [0.5, 0.5, None, 0.5, 0.5])
    _, columns = drawn_in(picture, BLUE)
    missing = np.setdiff1d(np.arange(columns.min(), columns.max()), columns)
    # From the second point to the fourth, but for their markers.
    assert len(missing) == pytest.approx(np.ptp(columns) / 2, rel=0.1)
    visualize.plot_trimap([1, 2], [None, None])


def bars(picture, color):
    """Returns the highest and the lowest row of a colour in each column that has it."""
    rows, columns = drawn_in(picture, color)
    return {c: (rows[columns == c].min(), rows[columns == c].max()) for c in {*columns}}


def test_a_reliability_diagram_has_a_bar_for_each_bin_with_pixels():
    # Right as often as it is confident, so that there is no gap; the third is empty.
    shares = [0.2, 0.4, None, 0.8]
    picture = visualize.plot_reliability(shares, shares, [5, 5, 0, 90])
    found = bars(picture, BLUE)
    left, right = min(found), max(found)
    quarter = (right - left) / 4
    # Right of the legend, which has the same colours.
    heights = [np.ptp(found[int(left + (i + 0.8) * quarter)]) for i in (0, 1, 3)]
    assert np.array(heights) / heights[0] == pytest.approx([1, 2, 4], rel=0.05)
    assert int(left + 2.8 * quarter) not in found


def test_a_gap_reaches_from_the_accuracy_to_the_confidence():
    accuracies, confidences = [0.5, 0.6], [0.25, 0.9]
    picture = visualize.plot_reliability(confidences, accuracies, [1, 1])
    blue, red = bars(picture, BLUE), bars(picture, RED)
    # Within the second bin, where the gap stands on the bar.
    column = (min(blue) + 7 * max(blue)) // 8
    bottom, unit = blue[column][1], np.ptp(blue[column]) / 0.6
    low, high = ((bottom - row) / unit for row in red[column][::-1])
    assert (low, high) == pytest.approx((0.6, 0.9), abs=0.02)
    even = visualize.plot_reliability(accuracies, accuracies, [1, 1])
    assert max(bars(picture, RED)) > max(bars(even, RED))


def test_a_reliability_diagram_of_nothing_is_no_error():
    picture = visualize.plot_reliability([None] * 3, [None] * 3, [0] * 3)
    assert picture.dtype == np.uint8 and picture.ndim == 3


def cells(counts, names=("a", "b", "c")):
    """Returns the colours of the corners of the cells, which have no text."""
    picture = visualize.plot_confusion(np.diag(np.ones(len(names))), names)
    assert picture.dtype == np.uint8
    # The darkest blue is where the share is 1: from the first cell to the last.
    rows, columns = np.nonzero((picture == (8, 48, 107)).all(-1))
    top, left = rows.min(), columns.min()
    height, width = rows.max() + 1 - top, columns.max() + 1 - left
    picture = visualize.plot_confusion(counts, names)
    count = len(names)
    places = (np.arange(count) + 0.15) / count
    rows, columns = (top + places * height).astype(int), (left + places * width)
    return picture[np.ix_(rows, columns.astype(int))]


def test_a_confusion_picture_is_the_truth_by_rows():
    colors = cells(np.array([[0, 90, 10], [4, 0, 0], [0, 0, 0]]))
    darkest, nothing, absent = (8, 48, 107), (247, 251, 255), (230, 230, 230)
    # 90 % is dark, but not the darkest; 10 % is light, but not nothing.
    assert darkest[1] < colors[0, 1, 1] < 100 < 200 < colors[0, 2, 1] < nothing[1]
    for color in (colors[0, 0], colors[1, 1], colors[1, 2]):
        assert tuple(color) == nothing
    assert tuple(colors[1, 0]) == darkest
    np.testing.assert_array_equal(colors[2], np.full((3, 3), absent))


def test_figures_stand_where_they_can_be_read():
    few = visualize.plot_confusion(np.eye(2) * 100 + [[0, 1], [0, 0]], ("a", "b"))
    none = visualize.plot_confusion(np.eye(2) * 100, ("a", "b"))
    # 1 % in an otherwise light cell adds something dark.
    assert (few.max(-1) < 90).sum() > (none.max(-1) < 90).sum()
    names = [f"class {i}" for i in range(60)]
    many = visualize.plot_confusion(np.eye(60), names)
    # 60 cells, all of one colour.
    _, columns = np.nonzero((many == (8, 48, 107)).all(-1))
    side = (columns.max() + 1 - columns.min()) / 60
    assert len(columns) == pytest.approx(60 * side**2, rel=0.01)


def test_class_names_are_written_as_they_are():
    plain = visualize.plot_confusion(np.eye(2), ("x", "x"))
    named = visualize.plot_confusion(np.eye(2), ("$\\frac$ 车", "猫"))
    assert named.shape != plain.shape


def test_drawing_leaves_the_state_of_pyplot_alone():
    import matplotlib.pyplot as plt

    before = plt.get_backend(), plt.get_fignums()
    visualize.plot_confusion(np.eye(2), ("a", "b"))
    assert (plt.get_backend(), plt.get_fignums()) == before
