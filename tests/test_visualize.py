"""Drawings of label maps, computed by hand."""

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


def open_png(png):
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
def test_voc_colours_match_the_devkit(index, color):
    assert voc_colors(256)[index] == color
    if index < 21:
        assert VOC.colors[index] == color


@pytest.mark.parametrize("info", DATASETS.values(), ids=lambda info: info.name)
def test_classes_of_a_dataset_have_distinct_colours(info):
    assert len(set(info.colors)) == len(set(info.class_names)) == info.num_classes


def test_labels_are_coloured_by_class():
    colors = visualize.colorize([[0, 1, 9]], TOYS)
    np.testing.assert_array_equal(colors, [[(10, 20, 30), (250, 0, 100), IGNORED]])
    assert colors.dtype == np.uint8


def test_palette_png_keeps_indices_and_colours():
    labels = np.array([[0, 1, 15], [20, 255, 0]])
    with open_png(visualize.encode_palette_png(labels, VOC)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image), labels)
        colors = np.array(image.convert("RGB"))
    expected = [
        [(0, 0, 0), (128, 0, 0), (192, 128, 128)],
        [(0, 64, 128), IGNORED, (0, 0, 0)],
    ]
    np.testing.assert_array_equal(colors, expected)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_png_keeps_pixels(shape):
    image = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    with open_png(visualize.encode_png(image)) as again:
        np.testing.assert_array_equal(np.array(again), image)


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


def test_legend_lists_classes_by_area(monkeypatch):
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


def test_legend_is_drawn_right_of_the_image():
    image = np.random.RandomState(0).randint(0, 256, (60, 20, 3)).astype(np.uint8)
    labels = np.full((60, 20), 1)
    labels[0] = 255
    framed = visualize.add_legend(image, labels, TOYS)
    assert framed.shape[0] == 60 and framed.shape[1] > 20
    np.testing.assert_array_equal(framed[:, :20], image)
    legend = framed[:, 20:].reshape(-1, 3).tolist()
    assert [250, 0, 100] in legend and [10, 20, 30] not in legend


def test_legend_taller_than_the_image_is_complete():
    labels = np.arange(21).reshape(3, 7)
    framed = visualize.add_legend(np.zeros((3, 7, 3), np.uint8), labels, VOC)
    legend = {tuple(color) for color in framed[:, 7:].reshape(-1, 3).tolist()}
    assert set(VOC.colors) <= legend


def test_legend_of_ignored_labels_leaves_the_image_unchanged():
    labels = np.full((3, 7), 255)
    framed = visualize.add_legend(np.zeros((3, 7, 3), np.uint8), labels, VOC)
    np.testing.assert_array_equal(framed[:3, :7], 0)


def test_video_legend_shows_all_classes():
    # Text of 13 pixels: rows of 19 and a margin of 6.
    strip = visualize.draw_video_legend(VOC, 480, 640)
    assert strip.shape[1:] == (640, 3) and (len(strip) - 6) % 19 == 0
    colors = {tuple(color) for color in strip.reshape(-1, 3)}
    assert {tuple(color) for color in VOC.colors[1:]} <= colors
    assert strip[6 + 7, 6 + 7].tolist() == [128, 0, 0]  # in the first box
    # The background is not listed, so one row is enough for the toys.
    assert visualize.draw_video_legend(TOYS, 480, 640).shape == (25, 640, 3)


def test_video_legend_scales_up_to_half_the_height():
    # Text of 20 pixels: a row of 30 and a margin of 10.
    assert visualize.draw_video_legend(TOYS, 1080, 1920).shape == (40, 1920, 3)
    assert visualize.draw_video_legend(VOC, 100, 640).shape == (0, 640, 3)


def test_contact_sheet_shows_all_images_in_order():
    random = np.random.RandomState(0)
    sizes = [(5, 9), (7, 4), (6, 6), (3, 3)]
    images = [random.randint(0, 255, (*size, 3)).astype(np.uint8) for size in sizes]
    sheet = visualize.contact_sheet(images, columns=3)
    # Cells of 7 + 8 by 9 + 8 pixels, images 4 pixels from their corners.
    assert sheet.shape == (2 * 15, 3 * 17, 3)
    for image, (row, column) in zip(
        images, [(0, 0), (0, 1), (0, 2), (1, 0)], strict=True
    ):
        window = sheet[15 * row + 4 :, 17 * column + 4 :]
        np.testing.assert_array_equal(window[: image.shape[0], : image.shape[1]], image)
    np.testing.assert_array_equal(sheet[15:, 17:], 255)
    one = visualize.contact_sheet(images[:1])
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
def test_contact_sheet_size_is_bounded(sides):
    row = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    # Broadcast from one row to save memory.
    images = [np.broadcast_to(row[side[0] % 256], (*side, 3)) for side in sides]
    sheet = visualize.contact_sheet(images)
    assert sheet.shape[0] * sheet.shape[1] <= visualize.SHEET_SIDE**2
    rows, columns = -(-len(sides) // 3), min(3, len(sides))
    cell = sheet.shape[0] // rows, sheet.shape[1] // columns
    for i, side in enumerate(sides[:2]):
        window = sheet[:, i * cell[1] :][: cell[0], : cell[1]]
        # Each has margins of 4 pixels and keeps its colour.
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


def test_shrink_skips_pixels():
    image = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    np.testing.assert_array_equal(visualize.shrink(image, 4), image[::2, ::2])
    np.testing.assert_array_equal(visualize.shrink(image, 3), image[::3, ::3])
    assert visualize.shrink(image, 7) is image
    # The large original is not kept in memory.
    assert visualize.shrink(image, 4).base is None


@pytest.mark.parametrize(
    ("side", "has_legend"),
    [((1, 30_000), True), ((30_000, 20), True), ((1, 1_000_000), False)],
)
def test_legend_is_omitted_only_if_the_result_is_too_large(side, has_legend):
    labels = np.arange(side[0] * side[1]).reshape(side) % 21
    overlay = visualize.overlay(np.zeros((*side, 3), np.uint8), labels, VOC)
    framed = visualize.add_legend(overlay, labels, VOC)
    assert framed.shape[0] * framed.shape[1] <= visualize.SHEET_SIDE**2
    assert (framed.shape[1] > side[1]) == has_legend
    np.testing.assert_array_equal(framed[: side[0], : side[1]], overlay)


@pytest.mark.parametrize(
    ("pixel", "shown"),
    [
        ((7,), (7, 7, 7)),
        ((7, 9), (7, 7, 7)),
        ((1.4, 254.6, 300), (1, 255, 255)),
        ((-3, 2, 3, 99), (0, 2, 3)),
    ],
)
def test_any_channel_count_is_shown_as_rgb(pixel, shown):
    rgb = visualize.convert_to_rgb(np.full((2, 5, len(pixel)), pixel))
    np.testing.assert_array_equal(rgb, np.full((2, 5, 3), shown))
    assert rgb.dtype == np.uint8


def test_panel_shows_image_truth_prediction_and_legend():
    image = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)
    truth, prediction = np.zeros((2, 30, 40), np.uint8)
    truth[:10], prediction[:, :20] = 255, 2
    drawing = visualize.draw_panel(image, truth, prediction, VOC)
    assert drawing.dtype == np.uint8
    # Captions of 20 pixels, then cells of 40 + 8 by 30 + 8 pixels.
    shown = [drawing[24:54, 4 + 48 * i :][:, :40] for i in range(3)]
    np.testing.assert_array_equal(shown[0], image)
    np.testing.assert_array_equal(shown[1][:10], np.full((10, 40, 3), IGNORED))
    np.testing.assert_array_equal(shown[1][10:], 0)
    np.testing.assert_array_equal(shown[2][:, :20], np.full((30, 20, 3), VOC.colors[2]))
    np.testing.assert_array_equal(shown[2][:, 20:], 0)
    assert (drawing[:20, :144] == 0).any()
    legend = drawing[:, 144:].reshape(-1, 3).tolist()
    # The bicycle is only in the prediction.
    assert list(VOC.colors[2]) in legend and list(VOC.colors[1]) not in legend


def test_panel_legend_is_sorted_by_the_larger_area():
    truth, prediction = np.zeros((10, 10), np.uint8), np.full((10, 10), 2)
    truth[0] = 1
    image = visualize.draw_panel(np.zeros((10, 10, 3)), truth, prediction, VOC)
    legend = image[:, 3 * 18 :]
    # All pixels are predicted as class 2; a tenth are class 1.
    second, first = (
        np.nonzero((legend == VOC.colors[i]).all(-1))[0].min() for i in (2, 1)
    )
    assert second < first


def test_panel_of_a_large_image_is_small():
    labels = np.zeros((1024, 2048), np.uint8)
    image = np.zeros((1024, 2048, 3), np.uint8)
    drawing = visualize.draw_panel(image, labels, labels, dataset_info("cityscapes"))
    legend = drawing.shape[1] - 3 * (512 + 8)
    assert drawing.shape[0] == 20 + 256 + 8 and 0 < legend < 300


def test_error_map_shows_wrong_predictions():
    truth = np.array([[0, 1, 0, 1], [9, 7, 9, 255]], np.uint8)
    prediction = np.array([[0, 0, 1, 1], [0, 1, 1, 0]], np.int32)
    errors = visualize.error_map(truth, prediction, TOYS)
    right, light, dark = (240, 243, 238), (200, 200, 200), (130, 130, 130)
    floor, ball = TOYS.colors
    # 7 and 255 are not classes, and 9 is ignored; stripes are three pixels wide.
    expected = [[right, floor, ball, right], [light, light, dark, dark]]
    np.testing.assert_array_equal(errors, expected)
    assert errors.dtype == np.uint8


def test_ade20k_error_map_shows_predicted_ignored_class():
    info = dataset_info("ade20k")
    errors = visualize.error_map(np.array([[0, 5]]), np.array([[0, 0]]), info)
    np.testing.assert_array_equal(errors, [[(200, 200, 200), info.colors[0]]])


BLUE, RED = (59, 110, 168), (232, 175, 166)  # the latter is half transparent


def find_color(image, color):
    """Returns the rows and columns of the pixels of a colour."""
    assert image.dtype == np.uint8
    return np.nonzero((np.abs(image.astype(int) - color) <= 3).all(-1))


def test_trimap_curve_rises_with_the_scores():
    rows, columns = find_color(visualize.plot_trimap([1, 5, 40], [0.2, 0.3, 0.8]), BLUE)
    left, right = columns.min(), columns.max()
    assert rows[columns == left].min() > rows[columns == right].max()
    # The second width is at a tenth of the range: 4 of 39 pixels.
    tenth = left + (right - left) * 4 // 39
    height = np.ptp(rows)
    assert rows.max() - rows[columns == tenth].mean() == pytest.approx(
        height / 6, abs=height / 30
    )


def test_band_without_pixels_is_a_gap():
    plot = visualize.plot_trimap([10, 20, 30, 40, 50], [0.5, 0.5, None, 0.5, 0.5])
    _, columns = find_color(plot, BLUE)
    missing = np.setdiff1d(np.arange(columns.min(), columns.max()), columns)
    # From the second point to the fourth, but for their markers.
    assert len(missing) == pytest.approx(np.ptp(columns) / 2, rel=0.1)
    visualize.plot_trimap([1, 2], [None, None])


def find_bars(image, color):
    """Returns the highest and the lowest row of a colour in each column that has it."""
    rows, columns = find_color(image, color)
    return {c: (rows[columns == c].min(), rows[columns == c].max()) for c in {*columns}}


def test_reliability_diagram_has_a_bar_per_nonempty_bin():
    # Accuracy equals confidence, so there is no gap; the third bin is empty.
    shares = [0.2, 0.4, None, 0.8]
    plot = visualize.plot_reliability(shares, shares, [5, 5, 0, 90])
    found = find_bars(plot, BLUE)
    left, right = min(found), max(found)
    quarter = (right - left) / 4
    # Right of the legend, which has the same colours.
    heights = [np.ptp(found[int(left + (i + 0.8) * quarter)]) for i in (0, 1, 3)]
    assert np.array(heights) / heights[0] == pytest.approx([1, 2, 4], rel=0.05)
    assert int(left + 2.8 * quarter) not in found


def test_reliability_gap_spans_accuracy_to_confidence():
    accuracies, confidences = [0.5, 0.6], [0.25, 0.9]
    plot = visualize.plot_reliability(confidences, accuracies, [1, 1])
    blue, red = find_bars(plot, BLUE), find_bars(plot, RED)
    # Within the second bin, where the gap stands on the bar.
    column = (min(blue) + 7 * max(blue)) // 8
    bottom, unit = blue[column][1], np.ptp(blue[column]) / 0.6
    low, high = ((bottom - row) / unit for row in red[column][::-1])
    assert (low, high) == pytest.approx((0.6, 0.9), abs=0.02)
    even = visualize.plot_reliability(accuracies, accuracies, [1, 1])
    assert max(find_bars(plot, RED)) > max(find_bars(even, RED))


def test_empty_reliability_diagram_is_drawn():
    plot = visualize.plot_reliability([None] * 3, [None] * 3, [0] * 3)
    assert plot.dtype == np.uint8 and plot.ndim == 3


def cell_colors(counts, names=("a", "b", "c")):
    """Returns the colours of the corners of the cells, which have no text."""
    plot = visualize.plot_confusion(np.diag(np.ones(len(names))), names)
    assert plot.dtype == np.uint8
    # The darkest blue is where the share is 1: from the first cell to the last.
    rows, columns = np.nonzero((plot == (8, 48, 107)).all(-1))
    top, left = rows.min(), columns.min()
    height, width = rows.max() + 1 - top, columns.max() + 1 - left
    plot = visualize.plot_confusion(counts, names)
    count = len(names)
    places = (np.arange(count) + 0.15) / count
    rows, columns = (top + places * height).astype(int), (left + places * width)
    return plot[np.ix_(rows, columns.astype(int))]


def test_confusion_plot_has_truth_in_rows():
    colors = cell_colors(np.array([[0, 90, 10], [4, 0, 0], [0, 0, 0]]))
    darkest, nothing, absent = (8, 48, 107), (247, 251, 255), (230, 230, 230)
    # 90% is dark, but not the darkest; 10% is light, but not nothing.
    assert darkest[1] < colors[0, 1, 1] < 100 < 200 < colors[0, 2, 1] < nothing[1]
    for color in (colors[0, 0], colors[1, 1], colors[1, 2]):
        assert tuple(color) == nothing
    assert tuple(colors[1, 0]) == darkest
    np.testing.assert_array_equal(colors[2], np.full((3, 3), absent))


def test_numbers_are_drawn_only_where_legible():
    few = visualize.plot_confusion(np.eye(2) * 100 + [[0, 1], [0, 0]], ("a", "b"))
    none = visualize.plot_confusion(np.eye(2) * 100, ("a", "b"))
    # 1% in an otherwise light cell adds something dark.
    assert (few.max(-1) < 90).sum() > (none.max(-1) < 90).sum()
    names = [f"class {i}" for i in range(60)]
    many = visualize.plot_confusion(np.eye(60), names)
    # 60 cells, all of one colour.
    _, columns = np.nonzero((many == (8, 48, 107)).all(-1))
    side = (columns.max() + 1 - columns.min()) / 60
    assert len(columns) == pytest.approx(60 * side**2, rel=0.01)


def test_class_names_are_drawn_verbatim():
    plain = visualize.plot_confusion(np.eye(2), ("x", "x"))
    named = visualize.plot_confusion(np.eye(2), ("$\\frac$ 车", "猫"))
    assert named.shape != plain.shape


def test_drawing_keeps_pyplot_state():
    import matplotlib.pyplot as plt

    before = plt.get_backend(), plt.get_fignums()
    visualize.plot_confusion(np.eye(2), ("a", "b"))
    assert (plt.get_backend(), plt.get_fignums()) == before
