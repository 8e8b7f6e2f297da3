"""Reading images in strips gives the same pixels as reading them at once."""

import dataclasses
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from PIL import Image

from deeplab_tf.convert import color_labels
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.images import decoding, inputs, strips

HEIGHT, WIDTH = 40, 23


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    monkeypatch.setattr(strips, "_STRIP_PIXELS", 7 * WIDTH)


def draw(channels=3, dtype=np.uint8):
    """Returns a smooth image, for which PNG encoders choose all kinds of filters."""
    y, x, c = np.mgrid[:HEIGHT, :WIDTH, :channels]
    noise = np.random.default_rng(0).integers(0, 20, y.shape)
    image = np.sin(y / 9 + c) * 40 + np.cos(x / 5) * 40 + 120 + noise * (y > 20)
    scale = 1 if dtype == np.uint8 else 256
    return (image * scale).astype(dtype)


def save_png(mode, **options):
    def write(path):
        image = Image.fromarray(draw())
        palette = mode == "P"
        image = image.quantize(9) if palette else image.convert(mode)
        image.save(path, **options)

    return write


def save_deep_png(channels):
    pixels = draw(channels, np.uint16) // 256
    return lambda path: path.write_bytes(tf.io.encode_png(pixels).numpy())


def save_interlaced_png(path):
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    data, pixels = b"", draw()
    for top, left, down, right in (  # PNG specification, Adam7
        *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
        *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
    ):
        rows = pixels[top::down, left::right]
        data += b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks))


def save_tiff(**options):
    def write(path):
        tifffile = pytest.importorskip("tifffile", reason="needs the extra tiff")
        pixels = draw()
        if options.get("planarconfig") == "separate":
            pixels = np.moveaxis(pixels, -1, 0)
        tifffile.imwrite(path, pixels, photometric="rgb", **options)

    return write


FILES = {
    **{f"{mode}.png": save_png(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "16 bits.png": save_deep_png(3),
    "optimised.png": save_png("RGB", optimize=True),
    "interlaced.png": save_interlaced_png,
    "uncompressed.tif": save_tiff(),
    "big endian.tif": save_tiff(byteorder=">"),
    "strips.tif": save_tiff(rowsperstrip=11, compression="zlib"),
    "tiles.tif": save_tiff(tile=(16, 16), compression="lzw", predictor=True),
    "planes.tif": save_tiff(planarconfig="separate"),
    "strips of planes.tif": save_tiff(
        planarconfig="separate", rowsperstrip=9, compression="zlib"
    ),
    "array.npy": lambda path: np.save(path, draw()),
    "columns.npy": lambda path: np.save(path, np.asfortranarray(draw())),
    "photo.bmp": save_png("RGB"),
    "photo.webp": save_png("RGB", lossless=True),
    "photo.jp2": save_png("RGB"),
}


@pytest.mark.parametrize("name", FILES)
def test_rows_match_the_decoded_image(tmp_path, name):
    path = tmp_path / name
    FILES[name](path)
    expected = inputs.read_image(str(path))
    reader = strips.RowReader(path)
    assert reader.header[1:] == (HEIGHT, WIDTH, 1)
    for top, bottom in [(0, 9), (5, 14), (14, 15), (20, 41), (3, 4), (0, 40)]:
        np.testing.assert_array_equal(reader.read(top, bottom), expected[top:bottom])


@pytest.mark.parametrize("channels", [1, 5])
def test_rows_of_arrays_with_any_channel_count_are_read(tmp_path, channels):
    np.save(tmp_path / "a.npy", draw(channels, np.uint16))
    reader = strips.RowReader(tmp_path / "a.npy", channels, 65535)
    np.testing.assert_array_equal(reader.read(4, 30), draw(channels, np.uint16)[4:30])
    message = f"has the shape .*{channels}.; images must be height x width x 3"
    with pytest.raises(UserError, match=message):
        strips.RowReader(tmp_path / "a.npy").read(0, 9)


@pytest.mark.parametrize("channels", [3, 4])
def test_rows_of_16_bit_pngs_match_the_image(tmp_path, channels):
    pixels = draw(channels, np.uint16)
    (tmp_path / "a.png").write_bytes(tf.io.encode_png(pixels).numpy())
    reader = strips.RowReader(tmp_path / "a.png", channels, 65535)
    np.testing.assert_array_equal(reader.read(4, 30), pixels[4:30])


@pytest.mark.parametrize("name", ["RGB.png", "strips.tif", "array.npy", "photo.bmp"])
def test_truncated_files_are_refused(tmp_path, name):
    path = tmp_path / name
    FILES[name](path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=f"{name} is broken: "):
        strips.RowReader(path).read(0, HEIGHT)


def test_large_jpegs_are_decoded(tmp_path):
    Image.fromarray(draw()).save(tmp_path / "a.jpg", quality=95)
    rows = strips.RowReader(tmp_path / "a.jpg").read(3, 30).astype(int)
    expected = inputs.read_image(str(tmp_path / "a.jpg"))[3:30]
    assert np.abs(rows - expected).max() <= 8  # another inverse cosine transform


@pytest.mark.parametrize("name", FILES)
def test_formats_decoded_at_once_have_a_size_limit(tmp_path, monkeypatch, name):
    path = tmp_path / name
    FILES[name](path)
    monkeypatch.setattr(strips, "_MAX_AT_ONCE", HEIGHT * WIDTH - 1)
    if not name.startswith(("photo", "interlaced")):
        assert len(strips.RowReader(path).read(0, HEIGHT)) == HEIGHT
        return
    message = rf"{name} is a .* file of 23x40 pixels; images with more than 919 pixels"
    with pytest.raises(UserError, match=message):
        strips.RowReader(path)


PALETTE = [0, 0, 0, 200, 10, 10, 10, 200, 10]


def save_mask(mode="L", clear=(), **options):
    """Returns a function that writes a mask with transparent rows if it has mode LA."""

    def write(path, label):
        if path.suffix == ".npy":
            np.save(path, label)
            return
        image = Image.fromarray(label)
        if mode == "P":
            image.putpalette(PALETTE)
        elif mode == "RGB":
            image = Image.fromarray(np.reshape(PALETTE, (3, 3)).astype(np.uint8)[label])
        elif mode == "LA":
            alpha = np.full(label.shape, 255, np.uint8)
            alpha[slice(*clear)] = 0
            image = Image.merge("LA", (image, Image.fromarray(alpha)))
        image.save(path, **options)

    return write


MASKS = {
    "grey.png": save_mask(),
    "palette.png": save_mask("P"),
    "palette of 2 bits.png": save_mask("P", bits=2),
    "colour.png": save_mask("RGB"),
    "all transparent.png": save_mask("LA", (0, HEIGHT)),
    # All pixels of one strip are transparent.
    "transparent object.png": save_mask("LA", (21, 28)),
    "transparent background.png": save_mask("LA", (7, 15)),
    "grey.tif": save_mask(),
    "colour.tif": save_mask("RGB"),
    "array.npy": save_mask(),
    "undeclared.png": lambda path, label: save_mask()(path, label * 9),
    "undeclared colour.png": lambda path, label: Image.fromarray(
        np.stack([label * 9, label, label], -1)
    ).save(path),
}
REFUSED = ("transparent object.png", "undeclared.png", "undeclared colour.png")


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("has_colors", [False, True])
def test_large_masks_are_read_like_small_ones(tmp_path, monkeypatch, name, has_colors):
    if name.endswith(".tif"):
        pytest.importorskip("tifffile", reason="needs the extra tiff")
    info = DatasetInfo("toys", ("floor", "ball", "car"))
    if has_colors:
        colors = tuple(map(tuple, np.reshape(PALETTE, (3, 3)).tolist()))
        info = dataclasses.replace(info, colors=colors)
    classes = ClassList(info, has_colors)
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[20:30, 3:9], label[35:, 3:9] = 1, 2
    path = epath.Path(tmp_path / name)
    MASKS[name](path, label)
    results = []
    for limit in (1 << 27, HEIGHT * WIDTH - 1):
        monkeypatch.setattr(decoding, "MAX_PIXELS", limit)
        try:
            results.append(color_labels.read_label(path, classes))
        except UserError as error:
            results.append(re.sub(r" first at .x, y. = \(.*?\),", "", str(error)))
    is_refused = name in REFUSED or ("colour" in name and not has_colors)
    assert isinstance(results[0], str) == is_refused
    if isinstance(results[0], str):
        assert results[0] == results[1]
    else:
        np.testing.assert_array_equal(*results)
        np.testing.assert_array_equal(results[0], label)
