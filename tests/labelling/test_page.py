"""The page of predictions."""

import numpy as np
import pytest
from html_pages import Page

from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.labelling import page as pages
from deeplab_tf.labelling.page import PAGE_FILE, write_predictions_page

INFO = DatasetInfo("toys", ("floor", "ball", "<b>bear</b>"))


def write_page(folder, images, count=None, info=INFO):
    """Returns the page of named images and labels."""
    command = ["deeplab-predict", "--html"]
    with write_predictions_page(
        str(folder), info, count or len(images), command
    ) as add:
        for name, image, labels in images:
            add(name, image, labels)
    return Page((folder / PAGE_FILE).read_text())


def make_image(name, labels, channels=3, dtype=np.uint8):
    labels = np.array(labels, np.uint8)
    return name, np.full((*labels.shape, channels), 100, dtype), labels


def test_images_are_shown_with_the_shares_of_their_classes(tmp_path):
    page = write_page(
        tmp_path,
        [
            make_image("one", [[0, 0, 0, 2]] * 4),
            make_image("sub/two", [[1]], channels=5, dtype=np.uint16),
        ],
    )
    assert page.headings == ["Images", "Classes", "How to reproduce"]
    assert page.rows == [
        ["Class", "Pixels, %"],
        ["ball", "50.00"],
        ["floor", "37.50"],
        ["<b>bear</b>", "12.50"],
    ]
    assert "floor 75.0%" in page.text and "<b>bear</b> 25.0%" in page.text
    _, prediction, *_ = (pixels for _, pixels in page.images)
    colors = visualize.use_distinct_colors(INFO).colors
    np.testing.assert_array_equal(prediction[0], [*[colors[0]] * 3, colors[2]])
    assert [a["data-viewer"] for _, a in page.tags if "data-viewer" in a] == [
        "one",
        "sub/two",
    ]


@pytest.mark.parametrize("count, side", [(60, 480), (61, 256), (1001, 112)])
def test_more_images_have_smaller_thumbnails(tmp_path, count, side):
    labels = np.zeros((500, 1000), np.uint8)
    page = write_page(tmp_path, [make_image("wide", labels)], count)
    assert {pixels.shape for _, pixels in page.images} == {(side // 2, side, 3)}


def test_page_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_MOST_BYTES", 5000)
    images = [make_image(f"image {i}", np.zeros((9, 9))) for i in range(20)]
    page = write_page(tmp_path, images)
    shown = len(page.images) // 2
    assert 1 <= shown < 20
    left_out = f"{20 - shown} images at the end are left out"
    assert f"To keep the page small, {left_out}." in page.text
    assert "<dd>20</dd>" in page.source
