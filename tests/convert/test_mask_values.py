"""Values and colours of masks become the true class ids, or are refused."""

import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from PIL import Image
from small_masks import (
    BLACK,
    GREEN,
    RED,
    WHITE,
    draw,
    encode,
    encode_npy,
    paint,
    palette_image,
)

from deeplab_tf.convert import findings
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.convert.color_labels import Masks, read_label
from deeplab_tf.convert.value_map import Targets, parse_colors, parse_value_map
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError

COLORS = (BLACK, RED, (9, 9, 9))
COLORED = ClassList(DatasetInfo("c", ("ground", "ball", "cat"), colors=COLORS), True)
NAMED = ClassList(DatasetInfo("c", ("ground", "ball", "cat")))
PAIR = ClassList(DatasetInfo("c", ("ground", "ball")))


def encode_deep(pixels):
    return tf.io.encode_png(pixels.astype(np.uint16)).numpy()


COLOR_FILES = {
    "RGB": lambda rgb: encode(rgb),
    "RGBA": lambda rgb: encode(Image.fromarray(rgb).convert("RGBA")),
    "16 bits": lambda rgb: encode_deep(rgb.astype(np.uint16) * 257),
    "palette": lambda rgb: encode(Image.fromarray(rgb).quantize(3)),
    "BMP": lambda rgb: encode(rgb, "BMP"),
    "GIF": lambda rgb: encode(Image.fromarray(rgb).quantize(3), "GIF"),
    "TIFF": lambda rgb: encode(rgb, "TIFF"),
    "WebP": lambda rgb: encode(rgb, "WEBP", lossless=True),
    "NumPy": encode_npy,
}


@pytest.fixture
def read(tmp_path):
    """A function that writes masks and reads the first."""

    def write_and_read(classes, *contents):
        paths = []
        for i, content in enumerate(contents):
            paths.append(epath.Path(tmp_path / f"{i}.png"))
            paths[-1].write_bytes(content)
        return Masks(classes, paths).read(paths[0])

    return write_and_read


@pytest.mark.parametrize("kind", COLOR_FILES)
def test_class_colors_in_every_format(read, kind):
    label = draw(3, 3)
    content = COLOR_FILES[kind](paint(label, COLORS))
    np.testing.assert_array_equal(read(COLORED, content), label)


def grey(*values, dtype=np.uint8):
    return encode(np.array([values], dtype))


def with_map(classes, *entries, **changes):
    values = parse_value_map(entries, Targets(classes.info.class_names, 255))
    return classes._replace(value_map=values, **changes)


def grey_png(depth, width, row):
    """Returns a grey PNG of one row, packed at `depth` bits per pixel."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, 1, depth, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def colors(*values, **options):
    """Returns an image of one row of colours."""
    return encode(np.array([values], np.uint8), **options)


def palette(indices, *values):
    """Returns an image of one row of indices."""
    return encode(palette_image(np.array([indices], np.uint8), values))


MANY = ClassList(DatasetInfo("many", tuple(f"c{i}" for i in range(16))))
VOID = COLORED._replace(ignore_colors=((255, 0, 255),))
BLACK_AND_WHITE = ClassList(
    DatasetInfo("g", ("ground", "thing"), colors=(BLACK, WHITE)), True
)
GREYS = ClassList(
    DatasetInfo("g", ("sky", "sea"), colors=(WHITE, BLACK)), has_colors=True
)
ONE_BIT = encode(Image.fromarray(np.array([[False, True]])))
READ = {
    "class ids": (NAMED, [grey(0, 255, 2)], [0, 255, 2]),
    "class ids of coloured classes": (COLORED, [grey(0, 255, 2)], [0, 255, 2]),
    "class ids, and a void colour": (VOID, [grey(0, 255, 2)], [0, 255, 2]),
    "class ids in 16 bits": (COLORED, [grey(0, 255, 2, dtype=np.uint16)], [0, 255, 2]),
    "class ids in 4 bits": (MANY, [grey_png(4, 3, b"\x0f\x20")], [0, 15, 2]),
    "class ids in 2 bits": (MANY, [grey_png(2, 4, b"\x1b")], [0, 1, 2, 3]),
    "class ids in 1 bit": (MANY, [grey_png(1, 4, b"\x50")], [0, 1, 0, 1]),
    "class ids in three channels": (NAMED, [colors((0,) * 3, (2,) * 3)], [0, 2]),
    "partly transparent colours": (
        COLORED,
        [colors((0, 0, 0, 0), (255, 0, 0, 100), (9, 9, 9, 255))],
        [0, 1, 2],
    ),
    "another void label": (
        ClassList(DatasetInfo("m", ("a", "b"), 7, (BLACK, RED)), True, (GREEN,)),
        [colors(RED, GREEN, BLACK)],
        [1, 7, 0],
    ),
    # As in quantised masks, whose indices are in order of occurrence.
    "palette of class colours": (
        COLORED,
        [palette([0, 1, 2], (9, 9, 9), BLACK, RED, (5, 5, 5))],
        [2, 0, 1],
    ),
    "palette with a void colour": (
        VOID,
        [palette([1, 2], RED, BLACK, (255, 0, 255))],
        [0, 255],
    ),
    "palette without class colours": (NAMED, [palette([0, 2], RED, RED, RED)], [0, 2]),
    "palette of other colours": (
        COLORED,
        [palette([0, 2, 1], (5, 5, 5), (6, 6, 6), (7, 7, 7))],
        [0, 2, 1],
    ),
    "palette like that of VOC": (
        COLORED,
        [palette([0, 2, 255], *COLORS, *[(1, 1, 1)] * 252, (224, 224, 192))],
        [0, 2, 255],
    ),
    "black and white": (BLACK_AND_WHITE, [grey(0, 255)], [0, 1]),
    "black and white in RGB": (BLACK_AND_WHITE, [colors(BLACK, WHITE)], [0, 1]),
    "no class is grey 1": (BLACK_AND_WHITE, [grey(0, 1, 255)], [0, 1, 255]),
    "white is declared as void": (
        NAMED._replace(ignores_explicitly=True),
        [grey(0, 255)],
        [0, 255],
    ),
    "several values and two void values": (
        with_map(NAMED, "10:ball,20:ball,30:cat,7:ignore,8:ignore"),
        [grey(0, 10, 20, 30, 7, 8, 2, 255)],
        [0, 1, 1, 2, 255, 255, 2, 255],
    ),
    "several void colours": (
        COLORED._replace(ignore_colors=parse_colors(["1,2,3", "#040506"], "x")),
        [encode(np.array([[(1, 2, 3), (4, 5, 6), RED]], np.uint8))],
        [255, 255, 1],
    ),
    "white is the first class": (GREYS, [grey(255, 0)], [0, 1]),
    "black alone, and white in another mask": (GREYS, [grey(0, 0), grey(255)], [1, 1]),
    "class ids, and a colour list": (GREYS, [grey(0), grey(0, 1)], [0]),
    "one bit of black and white": (
        with_map(PAIR, "255:ground,0:ball"),
        [ONE_BIT],
        [1, 0],
    ),
    "a colour list and one bit": (
        BLACK_AND_WHITE,
        [ONE_BIT],
        [0, 1],
    ),
    "16 bits of declared white": (
        BLACK_AND_WHITE,
        [grey(0, 65535, dtype=np.uint16)],
        [0, 1],
    ),
    "0 and 255, with class ids in another mask": (
        PAIR,
        [grey(0, 255), grey(0, 1, 255)],
        [0, 255],
    ),
    "palette of declared greys in another order": (
        with_map(PAIR, "255:ball,0:ground"),
        [encode(palette_image(np.array([[0, 1]], np.uint8), [WHITE, BLACK]))],
        [1, 0],
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_values_are_read_as_declared(read, kind):
    classes, contents, label = READ[kind]
    found = read(classes, *contents)
    np.testing.assert_array_equal(found, [label])
    assert found.dtype == np.uint8


NEAR = with_map(NAMED, "0:ground,128:ball,255:cat", nearest=True)
REFUSED = {
    "large values in 16 bits": (
        NAMED,
        [grey(0, 150, 300, dtype=np.uint16)],
        "0.png contains the value 150 in 1 of 3 pixels; valid labels are 0..2 ",
    ),
    "place and count of an unknown colour": (
        COLORED,
        [colors(BLACK, RED, (254, 0, 0), (254, 0, 0), (1, 1, 1))],
        "0.png has the colour (254, 0, 0), which is not a class, first at (x, y) = "
        "(2, 0), in 2 of 5 pixels",
    ),
    "a colour above all others": (
        COLORED,
        [colors(BLACK, WHITE)],
        "the colour (255, 255, 255), which is not a class",
    ),
    "class ids in three channels": (
        COLORED,
        [colors(BLACK, (1, 1, 1))],
        "the colour (1, 1, 1), which is not a class",
    ),
    "colours without class colours": (
        NAMED,
        [colors(RED)],
        "0.png is in colour, but the classes have no colours",
    ),
    "palette with an index of another class": (
        COLORED,
        [palette([0, 1, 2], (9, 9, 9), (254, 0, 0), BLACK)],
        "0.png has the colour (254, 0, 0), which is not a class, but (9, 9, 9) at "
        "index 0 is that of class 2; correct its palette",
    ),
    "palette with an unknown colour": (
        COLORED,
        [palette([0, 1, 2], BLACK, (254, 0, 0), (9, 9, 9))],
        "(254, 0, 0) at index 1 is not its own; correct its palette",
    ),
    "black and white or class ids": (
        BLACK_AND_WHITE._replace(ignores_explicitly=True),
        [grey(0, 255)],
        "add --value_map=0:ground,255:thing; for",
    ),
    "colours as JPEG": (
        COLORED,
        [colors(BLACK, RED, file_format="JPEG")],
        "0.png is JPEG, which changes values",
    ),
    "CMYK": (
        COLORED,
        [encode(Image.new("CMYK", (2, 2)), "TIFF")],
        "0.png has the mode CMYK; a mask must",
    ),
    "a truncated file": (COLORED, [grey(0, 1)[:40]], "0.png is broken: "),
    "several classes in black and white": (
        NAMED,
        [grey(0, 255), grey(0)],
        "0.png and all other masks have only the values 0 (2 pixels), 255 (1); if 255 "
        "is an object, add --value_map=255:NAME",
    ),
    "a single class in black and white": (
        ClassList(DatasetInfo("c", ("ball",))),
        [grey(0, 255)],
        "if 255 is an object, add --value_map=255:NAME",
    ),
    "class ids from 1": (
        PAIR,
        [grey(0, 1, 2)],
        "if class ids start at 1, add --value_map=0:ignore,1:ground,2:ball",
    ),
    "grey colours or class ids": (
        GREYS._replace(ignores_explicitly=True),
        [grey(0, 255)],
        "for colours, add --value_map=0:sea,255:sky; for class ids, remove the colours",
    ),
    "class ids and grey colours": (
        ClassList(DatasetInfo("g", ("a", "b"), colors=(BLACK, (7, 7, 7))), True),
        [grey(0, 1, 7)],
        "0.png contains values that are partly class ids and partly grey colours; v",
    ),
    "one bit, both values declared": (
        with_map(NAMED, "1:ball,255:cat"),
        [ONE_BIT],
        "0.png contains the value 1 in 1 of 2 pixels",
    ),
    "one bit, white is declared as void": (
        with_map(PAIR, "255:ignore"),
        [ONE_BIT],
        "0.png contains the value 1 in 1 of 2 pixels, in fewer than 8 bits: an id or a "
        "grey",
    ),
    "one bit, and the id in another mask": (
        with_map(PAIR, "0:ground,255:ignore"),
        [ONE_BIT, grey(0, 1, 255)],
        "0.png contains the value 1 in 1 of 2 pixels, in fewer than 8 bits: an id or a "
        "grey",
    ),
    "class ids in grey JPEG with --nearest": (
        COLORED._replace(nearest=True, value_map={2: 2}),
        [encode(np.tile(np.uint8([[[0], [2]]]), (8, 8, 3)), "JPEG")],
        "0.png has grey colours that are also class ids",
    ),
    "class ids with --nearest": (
        NEAR,
        [grey(0, 1, 2)],
        "which are all class ids, but not declared as such; remove",
    ),
    "an undeclared class with --nearest": (
        NEAR,
        [encode(np.full((9, 9), 60, np.uint8))],
        "0.png has the undeclared value 60 at (x, y) = (0, 0), in an area too large to "
        "be an edge; add --value_map=60:NAME or --value_map=60:ignore",
    ),
    "an undeclared colour with --nearest": (
        COLORED._replace(nearest=True),
        [encode(np.full((9, 9, 3), 99, np.uint8))],
        "add --value_map=#636363:NAME or --value_map=#636363:ignore",
    ),
    "grey colours or class ids in RGB": (
        ClassList(DatasetInfo("g", ("a", "b"), colors=((1,) * 3, BLACK)), True),
        [encode(np.array([[(0, 0, 0), (1, 1, 1)]], np.uint8))],
        "0.png has grey colours that are also class ids; save class ids with one",
    ),
    "an undeclared area of a JPEG": (
        ClassList(
            DatasetInfo("c", ("a", "b"), colors=(BLACK, RED)), True, nearest=True
        ),
        [encode(paint(draw(0, 2), [BLACK, GREEN]), "JPEG", quality=80)],
        "in an area too large to be an edge; add --value_map=#",
    ),
    "class ids as JPEG": (
        with_map(PAIR, "0:ground,1:ball", nearest=True),
        [encode(np.array([[0, 1]], np.uint8), "JPEG")],
        "0.png is JPEG, and the declared values 0 and 1 are too close to dist",
    ),
    "--nearest without a value of a class": (
        with_map(NAMED, "255:cat", nearest=True),
        [grey(0, 254)],
        "--nearest needs a value for each class; add --value_map=VALUE:ball",
    ),
    "palette with --nearest": (
        COLORED._replace(nearest=True),
        [encode(palette_image(np.array([[0, 1]], np.uint8), [GREEN, WHITE]))],
        "a palette of undeclared colours whose indices are class ids; remove --nearest",
    ),
    "transparent object": (
        COLORED,
        [encode(np.array([[(255, 0, 0, 0), (0, 0, 0, 255)]], np.uint8))],
        "0.png has 1 transparent pixels in the colour of ball; remove the transparency",
    ),
    "many colours": (
        COLORED,
        [encode(np.arange(60, dtype=np.uint8).reshape(1, 20, 3))],
        "and 19 more colours, 20 pixels in all; if it was anti-aliased, resized or "
        "saved as JPEG, add --nearest",
    ),
    "an unknown colour": (
        COLORED,
        [encode(np.array([[GREEN]], np.uint8))],
        "add a class of this colour, --value_map=#00ff00:NAME, or #00ff00:ignore",
    ),
    "several frames": (
        NAMED,
        [
            encode(
                np.zeros((3, 3), np.uint8),
                "TIFF",
                save_all=True,
                append_images=[Image.new("L", (3, 3))],
            )
        ],
        "0.png has 2 pages or frames; a mask must have one",
    ),
    "negative values": (
        NAMED,
        [encode_npy(np.array([[0, -1]]))],
        "0.png has the value -1; mask values must be in 0..65535",
    ),
    "fractions": (
        NAMED,
        [encode_npy(np.zeros((2, 2)))],
        "0.png has float64 pixels; a mask must have integers or booleans",
    ),
    "one-hot": (
        NAMED,
        [encode_npy(np.zeros((2, 2, 5), np.uint8))],
        "0.png has the shape (2, 2, 5); a mask must be height x width with class ids",
    ),
    "deep colours": (
        COLORED,
        [encode_deep(np.full((2, 2, 3), 300))],
        "0.png has colours of type uint16; colours must have 8 bits",
    ),
    "another format": (
        NAMED,
        [encode(np.zeros((8, 8), np.uint8), "JPEG2000")],
        "0.png is JPEG2000; masks must be PNG, TIFF, BMP, GIF, WebP, JPEG or .npy",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_ambiguous_masks_are_refused(read, kind):
    classes, contents, message = REFUSED[kind]
    with pytest.raises(UserError, match=re.escape(message)):
        read(classes, *contents)


def read_all(masks, paths):
    """Reads masks and adds their findings, as a conversion does."""
    with findings.collect() as found:
        labels = [masks.read(path) for path in paths]
    for finding in found:
        masks.add(finding)
    return labels


def test_masks_of_two_kinds_are_refused(tmp_path):
    classes = ClassList(
        DatasetInfo("g", ("a", "b", "c"), colors=(BLACK, (90,) * 3, (180,) * 3)), True
    )
    paths = [epath.Path(tmp_path / name) for name in ("a.png", "b.png")]
    paths[0].write_bytes(grey(0, 1))
    paths[1].write_bytes(grey(0, 90))
    with pytest.raises(
        UserError, match=r"a.png has class ids, but .*b.png has grey co"
    ):
        read_all(Masks(classes, paths), paths)


def test_snapped_pixels_are_counted(tmp_path, capsys):
    path = epath.Path(tmp_path / "a.png")
    path.write_bytes(grey(0, 128, 100, 255, 250))
    masks = Masks(NEAR, [path])
    for label in read_all(masks, [path] * 2):  # counted once
        np.testing.assert_array_equal(label, [[0, 1, 1, 2, 2]])
    masks.report()
    assert capsys.readouterr().out == (
        "--nearest: 2 of 5 pixels (40.00%) in 1 mask snapped to the nearest declared "
        f"value or colour; the largest distance was 28, in {path}\n"
    )


INVALID_MAPS = {
    "255:objekt": "'objekt' is not a class; similar: object; write one of background, "
    "object, a class id or ignore",
    "255": "--value_map=255 must be VALUE:CLASS, such as 255:object",
    "70000:object": "'70000' is not a value in 0..65535 or a colour such as #ff8000",
    "#ff00:object": "'#ff00' is not a value in 0..65535 or a colour",
    "255:2": "class ids are 0..1",
    "255:object,255:background": "--value_map maps 255 to two classes",
}


@pytest.mark.parametrize("text", INVALID_MAPS)
def test_invalid_value_map_is_refused(text):
    with pytest.raises(UserError, match=re.escape(INVALID_MAPS[text])):
        parse_value_map([text], Targets(("background", "object"), 255))


def test_class_names_may_contain_commas_and_be_ids():
    targets = Targets(("cup, red", "ignore"), 9)
    assert parse_value_map(["3:cup, red,4:1"], targets) == {3: 0, 4: 1}
    with pytest.raises(UserError, match=r"ignore is also a class; give its id, 1, or"):
        parse_value_map(["3:ignore"], targets)


def test_single_mask_is_read_alone(tmp_path):
    path = epath.Path(tmp_path / "a.png")
    path.write_bytes(grey(0, 2, 1))
    np.testing.assert_array_equal(read_label(path, NAMED), [[0, 2, 1]])


@pytest.mark.parametrize("dtype", ["uint32", "int64", "int8", "uint64", "float32"])
def test_tiffs_of_other_types(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    path = epath.Path(tmp_path / "a.tif")
    label = draw(0, 3)
    tifffile.imwrite(path, label.astype(dtype))
    if dtype == "float32":
        with pytest.raises(UserError, match=r"a.tif has the mode F; a mask must"):
            read_label(path, NAMED)
        return
    np.testing.assert_array_equal(read_label(path, NAMED), label)
