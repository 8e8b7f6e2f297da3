"""Label PNGs of every kind, each written with its own bytes."""

import re
import struct
import zlib

import numpy as np
import pytest
from etils import epath
from PIL import Image

from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.convert.color_labels import read_label
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError

COLORS = ((128, 64, 128), (0, 0, 192), (0, 0, 0))
NAMES = ("road", "walk", "tree")
PLAIN = ClassList(DatasetInfo("mine", NAMES))
COLORED = ClassList(DatasetInfo("mine", NAMES, colors=COLORS), True)
WITH_VOID = COLORED._replace(ignore_color=(255, 0, 255))
IDS = np.array([[0, 1, 2, 2], [1, 0, 2, 0]], np.uint8)
PAINTED = np.array(COLORS, np.uint8)[IDS]


@pytest.fixture
def read(tmp_path):
    """Returns the class ids that an image in a file means."""

    def save_and_read(image, classes, file_format="PNG"):
        path = epath.Path(tmp_path / "mask.png")
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, file_format)
        return read_label(path, classes)

    return save_and_read


def palette_image(indices, colors):
    image = Image.fromarray(np.array(indices, np.uint8), "P")
    image.putpalette(np.array(colors, np.uint8).tobytes())
    return image


def png(depth, width, *rows):
    """Returns a grey PNG with that many bits per pixel; rows are packed bytes."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, len(rows), depth, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("classes", [PLAIN, COLORED, WITH_VOID])
def test_one_channel_is_class_ids(read, classes):
    label = np.where(IDS == 1, 255, IDS).astype(np.uint8)
    found = read(Image.fromarray(label), classes)
    np.testing.assert_array_equal(found, label)
    assert found.dtype == np.uint8
    # 16 bits with small values.
    found = read(Image.fromarray(label.astype(np.uint16)), classes)
    np.testing.assert_array_equal(found, label)
    assert found.dtype == np.uint8


def test_16_bits_with_large_values_are_no_class_ids(read):
    with pytest.raises(
        UserError, match=r"mask.png has the value 300; class ids are 0\.\.255"
    ):
        read(Image.fromarray(IDS.astype(np.uint16) * 150), PLAIN)


def test_few_bits_are_class_ids_and_not_shades(read):
    np.testing.assert_array_equal(
        read(png(4, 3, b"\x0f\x20", b"\x01\x30"), PLAIN), [[0, 15, 2], [0, 1, 3]]
    )
    np.testing.assert_array_equal(read(png(2, 4, b"\x1b"), PLAIN), [[0, 1, 2, 3]])
    np.testing.assert_array_equal(
        read(png(1, 8, b"\x53"), PLAIN), [[0, 1, 0, 1, 0, 0, 1, 1]]
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_are_mapped_and_alpha_is_dropped(read, mode):
    image = Image.fromarray(PAINTED)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(IDS * 100))
    np.testing.assert_array_equal(read(image, COLORED), IDS)


def test_the_color_of_void_becomes_the_ignore_label(read):
    pixels = PAINTED.copy()
    pixels[0, 3] = 255, 0, 255
    info = DatasetInfo("mine", NAMES, 7, COLORS)
    expected = [[0, 1, 2, 7], [1, 0, 2, 0]]
    classes = ClassList(info, True, (255, 0, 255))
    np.testing.assert_array_equal(read(Image.fromarray(pixels), classes), expected)


def test_an_unknown_color_is_named_with_place_and_extent(read):
    pixels = PAINTED.copy()
    pixels[0, 3] = pixels[1, 1] = 127, 64, 128  # off by one
    pixels[1, 2] = 1, 1, 1
    message = (
        "mask.png has the colour (127, 64, 128), which is not a class, first at "
        "(x, y) = (3, 0), in 2 of 8 pixels"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        read(Image.fromarray(pixels), COLORED)
    pixels = PAINTED.copy()
    pixels[0, 0] = 255  # beyond every known colour
    with pytest.raises(
        UserError, match=r"colour \(255, 255, 255\), which is not a class"
    ):
        read(Image.fromarray(pixels), COLORED)


def test_paint_needs_colors_in_the_list(read):
    with pytest.raises(UserError, match=r"mask.png is in colour, but the classes have"):
        read(Image.fromarray(PAINTED), PLAIN)
    grey = np.repeat(IDS[..., None], 3, 2)
    with pytest.raises(
        UserError, match=r"mask.png is a grey mask saved in colour; sav"
    ):
        read(Image.fromarray(grey), PLAIN)


def test_a_palette_of_the_class_colors_is_paint(read):
    """As a quantised mask, in which the indices are in order of occurrence."""
    order = [2, 0, 1]
    indices = np.argsort(order)[IDS]
    colors = [COLORS[i] for i in order]
    # Colours that do not occur do not matter.
    image = palette_image(indices, [*colors, (5, 5, 5)])
    np.testing.assert_array_equal(read(image, COLORED), IDS)
    image = palette_image([[0, 3]], [*colors, (255, 0, 255)])
    np.testing.assert_array_equal(read(image, WITH_VOID), [[2, 255]])
    # Without colours in the list an index is an index.
    np.testing.assert_array_equal(read(palette_image(indices, colors), PLAIN), indices)


def test_a_palette_of_other_colors_is_indices(read):
    other = [(9, 9, 9), (8, 8, 8), (7, 7, 7)]
    np.testing.assert_array_equal(read(palette_image(IDS, other), COLORED), IDS)
    # And where the known ones stand at their own index, such as VOC's with its void.
    colors = [*COLORS, *[(1, 1, 1)] * 252, (224, 224, 192)]
    label = [[0, 1, 2, 255]]
    np.testing.assert_array_equal(read(palette_image(label, colors), COLORED), label)


def test_a_palette_with_one_unknown_color_is_no_indices(read):
    colors = [COLORS[2], (0, 0, 191), COLORS[0]]
    message = (
        "mask.png has the colour (0, 0, 191), which is not a class, but (0, 0, 0) at "
        "index 0 is that of class 2; correct its palette"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        read(palette_image([[0, 1, 2]], colors), COLORED)


def test_black_and_white_in_one_channel_is_not_taken_for_void(read):
    info = DatasetInfo("mine", ("ground", "thing"), colors=((0,) * 3, (255,) * 3))
    classes = ClassList(info, True)
    mask = Image.fromarray(np.array([[0, 255]], np.uint8))
    with pytest.raises(
        UserError, match=r"one channel with the values \[0, 255\]: are "
    ):
        read(mask, classes)
    np.testing.assert_array_equal(read(mask.convert("RGB"), classes), [[0, 1]])
    np.testing.assert_array_equal(read(mask, PLAIN), [[0, 255]])
    # 1 is no grey of a class, so these are labels.
    labels = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    np.testing.assert_array_equal(read(labels, classes), [[0, 1, 255]])


def test_lossy_and_broken_labels_are_refused(read):
    with pytest.raises(UserError, match=r"mask.png is JPEG; labels must be PNG"):
        read(Image.fromarray(PAINTED), COLORED, "JPEG")
    with pytest.raises(
        UserError, match=r"mask.png has mode LA; a label must be a PNG with"
    ):
        read(Image.fromarray(IDS).convert("LA"), COLORED)
    with pytest.raises(UserError, match=r"mask.png is broken: "):
        read(png(8, 2, b"\0\1")[:40], COLORED)
