"""Images of any number of channels and bit depth are stored without loss."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from record_files import read_samples

from deeplab_tf.convert import folder
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.convert.options import Layout
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError

HEIGHT, WIDTH = 5, 7
DEPTHS = {np.uint8: 255, np.uint16: 65535}


def random_pixels(channels, dtype):
    """Returns random pixels that use the full range."""
    random = np.random.RandomState(channels)
    pixels = random.randint(0, DEPTHS[dtype] + 1, (HEIGHT, WIDTH, channels))
    pixels[0, 0], pixels[-1, -1] = 0, DEPTHS[dtype]
    return pixels.astype(dtype)


@pytest.fixture
def convert(tmp_path):
    """A function that converts the file x and returns the pixels of its record."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    label = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8))
    label.save(tmp_path / "labels/x.png")

    def run(channels, max_value):
        info = DatasetInfo("a", ("b",), channels=channels, max_value=max_value)
        out = str(tmp_path / "out")
        arguments = (str(tmp_path / "images"), str(tmp_path / "labels"))
        folder.convert(Layout(*arguments), ClassList(info), out, num_shards=1)
        [sample] = read_samples(out)
        return sample.decode(channels, max_value)

    return run


def assert_equal(found, pixels):
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)


CASES = list(itertools.product((1, 2, 3, 4, 5), DEPTHS))


@pytest.mark.parametrize(("channels", "dtype"), CASES)
@pytest.mark.parametrize("order", ["C", "F", ">"])
def test_npy_images_are_converted_unchanged(convert, tmp_path, channels, dtype, order):
    pixels = random_pixels(channels, dtype)
    saved = pixels.astype(pixels.dtype.newbyteorder(">")) if order == ">" else pixels
    saved = np.asfortranarray(saved) if order == "F" else saved
    np.save(tmp_path / "images/x.npy", saved)
    assert_equal(convert(channels, DEPTHS[dtype]), pixels)


@pytest.mark.parametrize(("channels", "dtype"), [c for c in CASES if c[0] in (1, 3, 4)])
def test_png(convert, tmp_path, channels, dtype):
    pixels = random_pixels(channels, dtype)
    (tmp_path / "images/x.png").write_bytes(tf.io.encode_png(pixels).numpy())
    assert_equal(convert(channels, DEPTHS[dtype]), pixels)


def test_grey_npy_may_omit_the_channel_axis(convert, tmp_path):
    pixels = random_pixels(1, np.uint16)
    np.save(tmp_path / "images/x.npy", pixels[..., 0])
    assert_equal(convert(1, 65535), pixels)


def test_16_bit_png_with_small_values_is_read_as_8_bit(convert, tmp_path):
    pixels = random_pixels(3, np.uint8)
    png = tf.io.encode_png(pixels.astype(np.uint16)).numpy()
    (tmp_path / "images/x.png").write_bytes(png)
    assert_equal(convert(3, 255), pixels)


def save_npy(pixels):
    return lambda folder: np.save(folder / "x.npy", pixels)


def save_png(pixels):
    png = tf.io.encode_png(pixels).numpy()
    return lambda folder: (folder / "x.png").write_bytes(png)


def save_jpeg(folder):
    Image.fromarray(random_pixels(3, np.uint8)).save(folder / "x.jpg")


def save_objects(folder):
    np.save(folder / "x.npy", np.array([[{}]]), allow_pickle=True)


def save_npz(folder):
    np.savez(folder / "x.npz", random_pixels(3, np.uint8))
    (folder / "x.npz").rename(folder / "x.npy")


MISMATCHES = {
    "channels": (
        save_npy(random_pixels(4, np.uint8)),
        (3, 255),
        r"x.npy has the shape \(5, 7, 4\); images must be height x width x 3 channels",
    ),
    "channels first": (
        save_npy(random_pixels(4, np.uint8).transpose(2, 0, 1)),
        (4, 255),
        r"x.npy has the shape \(4, 5, 7\); images must be height x width x 4 channels",
    ),
    "no pixels": (
        save_npy(np.zeros((0, 7, 3), np.uint8)),
        (3, 255),
        r"shape \(0, 7, 3\)",
    ),
    "floats": (
        save_npy(np.ones((5, 7, 3), np.float32)),
        (3, 255),
        "x.npy has float32 pixels; images must be uint8 or uint16",
    ),
    "signed": (
        save_npy(np.ones((5, 7, 3), np.int16)),
        (3, 65535),
        "x.npy has int16 pixels",
    ),
    "large value": (
        save_npy(np.full((5, 7, 3), 4096, np.uint16)),
        (3, 4095),
        "x.npy has the value 4096, but max_value is 4095",
    ),
    "16-bit PNG": (
        save_png(random_pixels(3, np.uint16)),
        (3, 255),
        "x.png has the value 65535, but max_value is 255",
    ),
    "8-bit PNG": (
        save_png(random_pixels(3, np.uint8)),
        (3, 65535),
        "x.png has 8 bits per channel, but max_value=65535 needs 16",
    ),
    "JPEG": (save_jpeg, (3, 4095), "x.jpg has 8 bits .* max_value=4095 needs"),
    "JPEG for four channels": (save_jpeg, (4, 255), r"x.jpg has the shape \(5, 7, 3\)"),
    "objects": (save_objects, (3, 255), "x.npy is broken: .*allow_pickle"),
    "npz": (save_npz, (3, 255), "x.npy is broken: "),
    "text": (
        lambda folder: (folder / "x.npy").write_text("no array"),
        (3, 255),
        "x.npy is broken: ",
    ),
    "label of another size": (
        save_npy(np.ones((7, 5, 3), np.uint8)),
        (3, 255),
        "x.png is 7x5, but its image .*x.npy is 5x7$",
    ),
}


@pytest.mark.parametrize("kind", MISMATCHES)
def test_images_that_contradict_the_flags_are_refused(convert, tmp_path, kind):
    write, settings, message = MISMATCHES[kind]
    write(tmp_path / "images")
    with pytest.raises(UserError, match=message):
        convert(*settings)


# Options of tifffile that store the channels differently.
LAYOUTS = {
    "interleaved": {"planarconfig": "contig"},
    "planar": {"planarconfig": "separate"},
    "pages": {},
    "foreign pages": {"metadata": None},
    "ImageJ": {"imagej": True},
    "big endian": {"byteorder": ">", "planarconfig": "contig"},
    "LZW": {"planarconfig": "contig", "compression": "lzw", "predictor": True},
    "Zstandard planes": {"planarconfig": "separate", "compression": "zstd"},
    "BigTIFF tiles": {"planarconfig": "contig", "bigtiff": True, "tile": (16, 16)},
}


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile", reason="needs the extra tiff")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "dtype"), CASES)
def test_tiff_images_are_converted_unchanged(
    convert, tmp_path, tifffile, channels, dtype, layout, suffix
):
    pixels = random_pixels(channels, dtype)
    options = dict(LAYOUTS[layout])
    if channels == 1:
        options.pop("planarconfig", None)
    interleaved = options.get("planarconfig") == "contig" or channels == 1
    saved = pixels if interleaved else np.moveaxis(pixels, -1, 0)
    saved = saved[..., 0] if channels == 1 else saved
    path = tmp_path / f"images/x{suffix}"
    tifffile.imwrite(path, saved, photometric="minisblack", **options)
    assert_equal(convert(channels, DEPTHS[dtype]), pixels)


@pytest.mark.slow
def test_unsupported_tiffs_are_refused(convert, tmp_path, tifffile):
    path = tmp_path / "images/x.tif"
    index = random_pixels(1, np.uint8)[..., 0]
    colors = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256) << 6
    tifffile.imwrite(path, index, photometric="palette", colormap=colors)
    with pytest.raises(UserError, match=r"x.tif has the shape \(5, 7, 3\); images "):
        convert(1, 255)
    with pytest.raises(UserError, match=r"x.tif has a palette; save it as RGB"):
        convert(5, 255)
    frames = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    tifffile.imwrite(path, frames, photometric="rgb")
    with pytest.raises(
        UserError, match=r"x.tif has the shape \(2, 5, 7, 3\); images mu"
    ):
        convert(3, 255)
    tifffile.imwrite(path, np.ones((HEIGHT, WIDTH), np.float32))
    with pytest.raises(
        UserError, match=r"x.tif has float32 pixels; images must be uint8"
    ):
        convert(1, 255)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"x.tif is broken: "):
        convert(1, 255)
