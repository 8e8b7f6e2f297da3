"""Reads class lists: classes, colours, ignored colours, dataset_info.json."""

import json
import re

import pytest
from etils import epath

from deeplab_tf.convert.class_list import MaskOptions, read_class_list
from deeplab_tf.data.info import DatasetInfo, voc_colors
from deeplab_tf.errors import UserError


@pytest.fixture
def read_text(tmp_path):
    """A function that writes a string to a file and reads it as a class list."""

    def write_and_read(text, file="classes.txt", **settings):
        path = epath.Path(tmp_path / file)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_class_list(path, "mine", **settings)

    return write_and_read


def test_class_names_are_read_one_per_line(read_text):
    classes = read_text("road\n\n  side walk \r\n# a comment\nlow plants\n")
    assert classes.info.class_names == ("road", "side walk", "low plants")
    assert classes.info.name == "mine"
    assert (classes.info.ignore_label, classes.info.channels) == (255, 3)
    assert not classes.has_colors and classes.color_ids() == {}
    assert classes.info.colors == voc_colors(3)


def test_colors_and_ignore_colors_are_read(read_text):
    text = "road 128 64 128\nside walk 0 0 192\n"
    classes = read_text(text, options=MaskOptions(((0, 0, 0),)))
    assert classes.info.class_names == ("road", "side walk")
    assert classes.info.colors == ((128, 64, 128), (0, 0, 192))
    assert classes.color_ids() == {(128, 64, 128): 0, (0, 0, 192): 1, (0, 0, 0): 255}


def test_dataset_info_with_and_without_colors(read_text):
    info = {"name": "street", "class_names": ["a", "b"], "ignore_label": 9}
    classes = read_text(json.dumps(info), "dataset_info.json")
    assert (classes.info.name, classes.info.class_names) == ("street", ("a", "b"))
    assert classes.info.ignore_label == 9 and not classes.has_colors
    full_info = DatasetInfo(
        "street",
        ("a", "b"),
        colors=((9, 9, 9), (1, 2, 3)),
        channels=4,
        max_value=4095,
        split_sizes={"train": 7},
        content_hashes={"train": "ab"},
    )
    classes = read_text(full_info.to_json())
    assert classes.has_colors
    assert classes.info == DatasetInfo(
        "street", ("a", "b"), colors=((9, 9, 9), (1, 2, 3)), channels=4, max_value=4095
    )


def test_flags_override_the_file(read_text):
    info = DatasetInfo("street", ("a", "b"), ignore_label=9, channels=4)
    found = read_text(info.to_json(), ignore_label=7, channels=1, name="other").info
    assert (found.name, found.ignore_label, found.channels) == ("other", 7, 1)
    assert read_text("a\nb", max_value=4095).info.max_value == 4095


INVALID = {
    "duplicate colour": (
        "a 1 2 3\nb 0 0 0\nc 1 2 3",
        "classes.txt gives the classes a and c the same colour, (1, 2, 3)",
    ),
    "invalid colour": (
        "a 1 2 256",
        "the colour in line 1 of {} must be r,g,b with each value in 0..255; "
        "received 1,2,256",
    ),
    "negative colour": ("a 1 -2 3", "value in 0..255; received 1,-2,3"),
    "too many classes": (
        "".join(f"c{i}\n" for i in range(256)),
        "classes.txt: class_names has 256 classes; at most 255 are",
    ),
    "broken JSON": ('{"name": "a",', "classes.txt: line 1, column 14: Expecting"),
    "unknown JSON key": (
        '{"class_names": ["a"], "names": ["a"]}',
        'classes.txt: unknown key "names"',
    ),
    "invalid JSON colour": (
        '{"name": "a", "class_names": ["x"], "colors": [[1, 2]]}',
        "classes.txt: colors[0] must have 3 values; received 2",
    ),
    "not UTF-8": (b"\xff\x00", "classes.txt: line 1 is not UTF-8 (byte 0xff)"),
    "not UTF-16": (b"\xff\xfe\x00", "classes.txt is neither UTF-8 nor UTF-16; save"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_class_list_is_refused(read_text, tmp_path, kind):
    text, message = INVALID[kind]
    message = message.replace("{}", str(tmp_path / "classes.txt"))
    with pytest.raises(UserError, match=re.escape(message)):
        read_text(text)


def test_missing_class_list_is_refused(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match=f"--classes={path} is not a file"):
            read_class_list(epath.Path(path), "mine")


def test_ignore_color_must_not_be_a_class_color(read_text):
    with pytest.raises(
        UserError, match=r"ignore_color=1,2,3 is the colour .* class b "
    ):
        read_text("a 0 0 0\nb 1 2 3\n", options=MaskOptions(((1, 2, 3),)))
    with pytest.raises(
        UserError, match=r"--ignore_color needs a colour for each class"
    ):
        read_text("a\nb\n", options=MaskOptions(((1, 2, 3),)))
