"""Image formats are recognised by suffix, and other files are counted."""

import pytest

from deeplab_tf.images import formats


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.JPG", True), ("b/c.HeIc", True), ("a.npy", True), ("a.dng", False)],
)
def test_images_are_recognised_by_suffix(name, expected):
    assert formats.is_image_name(name) == expected


def test_non_image_files_are_counted_by_suffix(capsys):
    formats.report_other_formats(["a.CR2", "b.cr2", "README"], "photos")
    assert capsys.readouterr().err == (
        "ignored 3 non-image files in photos: 2 .cr2, 1 without suffix\n"
    )
    formats.report_other_formats([], "photos")
    assert capsys.readouterr().err == ""
