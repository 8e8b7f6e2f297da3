"""Reads masks in every PNG format: class ids, colours and palettes."""

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
WITHOUT_COLORS = ClassList(DatasetInfo("mine", NAMES))
WITH_COLORS = ClassList(DatasetInfo("mine", NAMES, colors=COLORS), True)
WITH_VOID = WITH_COLORS._replace(ignore_colors=((255, 0, 255),))
IDS = np.array([[0, 1, 2, 2], [1, 0, 2, 0]], np.uint8)
COLOR_MASK = np.array(COLORS, np.uint8)[IDS]


@pytest.fixture
def read_mask(tmp_path):
    """A function that saves an image and reads it as class ids."""

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


def grey_png(depth, width, *rows):
    """Returns a grey PNG with `depth` bits per pixel; rows are packed bytes."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, len(rows), depth, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("classes", [WITHOUT_COLORS, WITH_COLORS, WITH_VOID])
def test_one_channel_is_read_as_class_ids(read_mask, classes):
    label = np.where(IDS == 1, 255, IDS).astype(np.uint8)
    label_read = read_mask(Image.fromarray(label), classes)
    np.testing.assert_array_equal(label_read, label)
    assert label_read.dtype == np.uint8
    # 16 bits with small values.
    label_read = read_mask(Image.fromarray(label.astype(np.uint16)), classes)
    np.testing.assert_array_equal(label_read, label)
    assert label_read.dtype == np.uint8


def test_16_bit_mask_with_large_values_is_refused(read_mask):
    with pytest.raises(
        UserError,
        match=r"mask.png contains the value 150 in 2 of 8 .*; valid labels are 0..2 ",
    ):
        read_mask(Image.fromarray(IDS.astype(np.uint16) * 150), WITHOUT_COLORS)


def test_low_bit_depth_masks_are_read_as_class_ids(read_mask):
    classes = ClassList(DatasetInfo("many", tuple(f"c{i}" for i in range(16))))
    np.testing.assert_array_equal(
        read_mask(grey_png(4, 3, b"\x0f\x20", b"\x01\x30"), classes),
        [[0, 15, 2], [0, 1, 3]],
    )
    np.testing.assert_array_equal(
        read_mask(grey_png(2, 4, b"\x1b"), classes), [[0, 1, 2, 3]]
    )
    np.testing.assert_array_equal(
        read_mask(grey_png(1, 8, b"\x53"), classes), [[0, 1, 0, 1, 0, 0, 1, 1]]
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_are_mapped_and_alpha_is_dropped(read_mask, mode):
    image = Image.fromarray(COLOR_MASK)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(IDS * 100))
    np.testing.assert_array_equal(read_mask(image, WITH_COLORS), IDS)


def test_ignore_color_becomes_the_ignore_label(read_mask):
    pixels = COLOR_MASK.copy()
    pixels[0, 3] = 255, 0, 255
    info = DatasetInfo("mine", NAMES, 7, COLORS)
    expected = [[0, 1, 2, 7], [1, 0, 2, 0]]
    classes = ClassList(info, True, ((255, 0, 255),))
    np.testing.assert_array_equal(read_mask(Image.fromarray(pixels), classes), expected)


def test_unknown_color_is_reported_with_position_and_count(read_mask):
    pixels = COLOR_MASK.copy()
    pixels[0, 3] = pixels[1, 1] = 127, 64, 128  # off by one
    pixels[1, 2] = 1, 1, 1
    message = (
        "mask.png has the colour (127, 64, 128), which is not a class, first at "
        "(x, y) = (3, 0), in 2 of 8 pixels"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        read_mask(Image.fromarray(pixels), WITH_COLORS)
    pixels = COLOR_MASK.copy()
    pixels[0, 0] = 255  # larger than every known colour
    with pytest.raises(
        UserError, match=r"colour \(255, 255, 255\), which is not a class"
    ):
        read_mask(Image.fromarray(pixels), WITH_COLORS)


def test_color_mask_needs_class_colors(read_mask):
    with pytest.raises(UserError, match=r"mask.png is in colour, but the classes have"):
        read_mask(Image.fromarray(COLOR_MASK), WITHOUT_COLORS)
    # Unless the colours are class ids in three channels.
    grey = np.repeat(IDS[..., None], 3, 2)
    np.testing.assert_array_equal(read_mask(Image.fromarray(grey), WITHOUT_COLORS), IDS)
    with pytest.raises(UserError, match=r"colour \(1, 1, 1\), which is not a class"):
        read_mask(Image.fromarray(grey), WITH_COLORS)


def test_palette_of_class_colors_is_mapped_by_color(read_mask):
    """Tests quantised masks, whose indices are in order of occurrence."""
    order = [2, 0, 1]
    indices = np.argsort(order)[IDS]
    colors = [COLORS[i] for i in order]
    # Unused palette colours are ignored.
    image = palette_image(indices, [*colors, (5, 5, 5)])
    np.testing.assert_array_equal(read_mask(image, WITH_COLORS), IDS)
    image = palette_image([[0, 3]], [*colors, (255, 0, 255)])
    np.testing.assert_array_equal(read_mask(image, WITH_VOID), [[2, 255]])
    # Without class colours, indices are class ids.
    np.testing.assert_array_equal(
        read_mask(palette_image(indices, colors), WITHOUT_COLORS), indices
    )


def test_palette_of_other_colors_is_read_as_indices(read_mask):
    other = [(9, 9, 9), (8, 8, 8), (7, 7, 7)]
    np.testing.assert_array_equal(
        read_mask(palette_image(IDS, other), WITH_COLORS), IDS
    )
    # Also if known colours are at their own index, as in VOC's palette.
    colors = [*COLORS, *[(1, 1, 1)] * 252, (224, 224, 192)]
    label = [[0, 1, 2, 255]]
    np.testing.assert_array_equal(
        read_mask(palette_image(label, colors), WITH_COLORS), label
    )


@pytest.mark.parametrize(
    "colors, reason",
    [
        (
            [COLORS[2], (0, 0, 191), COLORS[0]],
            "(0, 0, 0) at index 0 is that of class 2",
        ),
        ([COLORS[0], (0, 0, 191), COLORS[2]], "(0, 0, 191) at index 1 is not its own"),
    ],
)
def test_palette_with_one_unknown_color_is_refused(read_mask, colors, reason):
    message = (
        "mask.png has the colour (0, 0, 191), which is not a class, but "
        f"{reason}; correct its palette"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        read_mask(palette_image([[0, 1, 2]], colors), WITH_COLORS)


def test_black_and_white_are_class_colors_or_refused(read_mask):
    info = DatasetInfo("mine", ("ground", "thing"), colors=((0,) * 3, (255,) * 3))
    classes = ClassList(info, True)
    mask = Image.fromarray(np.array([[0, 255]], np.uint8))
    np.testing.assert_array_equal(read_mask(mask, classes), [[0, 1]])
    np.testing.assert_array_equal(read_mask(mask.convert("RGB"), classes), [[0, 1]])
    explicit = classes._replace(ignores_explicitly=True)
    with pytest.raises(UserError, match=r"add --value_map=0:ground,255:thing, for"):
        read_mask(mask, explicit)
    with pytest.raises(UserError, match=r"add --value_map=255:NAME; if it is unla"):
        read_mask(mask, WITHOUT_COLORS)
    np.testing.assert_array_equal(
        read_mask(mask, WITHOUT_COLORS._replace(ignores_explicitly=True)), [[0, 255]]
    )
    # No class has the grey 1, so these are class ids.
    labels = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    np.testing.assert_array_equal(read_mask(labels, classes), [[0, 1, 255]])


def test_lossy_and_broken_masks_are_refused(read_mask):
    with pytest.raises(UserError, match=r"mask.png is JPEG, which changes values"):
        read_mask(Image.fromarray(COLOR_MASK), WITH_COLORS, "JPEG")
    image = Image.fromarray(COLOR_MASK).convert("CMYK")
    with pytest.raises(UserError, match=r"mask.png has the mode CMYK; a mask must"):
        read_mask(image, WITH_COLORS, "TIFF")
    with pytest.raises(UserError, match=r"mask.png is broken: "):
        read_mask(grey_png(8, 2, b"\0\1")[:40], WITH_COLORS)
