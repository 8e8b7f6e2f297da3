"""Large images and their masks become records of their tiles."""

import re

import numpy as np
import pytest
from PIL import Image
from program_runs import assert_refused, run
from record_files import read_samples

from deeplab_tf.images import decoding, strips
from deeplab_tf.images.inputs import read_image
from deeplab_tf.images.tiles import place_tiles

FOLDER = "deeplab_tf.programs.convert.folder"
HEIGHT, WIDTH = 70, 110


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "starts"),
    [
        (100, 40, 0, [0, 40, 60]),
        (100, 40, 10, [0, 30, 60]),
        (101, 40, 10, [0, 30, 60, 61]),
        (41, 40, 20, [0, 1]),
        (40, 40, 0, [0]),
        (30, 40, 0, [0]),
    ],
)
def test_tiles_cover_the_image(side, tile, overlap, starts):
    tiles = place_tiles(side, 10, tile, overlap)
    assert [t.top for t in tiles] == starts
    assert {(t.left, t.width, t.height) for t in tiles} == {(0, 10, min(tile, side))}
    across = place_tiles(7, side, tile, overlap)
    assert [t.left for t in across] == starts


def draw(height=HEIGHT, width=WIDTH):
    random = np.random.default_rng(5)
    pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    label = random.integers(0, 3, (height, width)).astype(np.uint8)
    return pixels, label


@pytest.fixture
def source(tmp_path):
    """A folder with the images a and small, and the arguments to convert it."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    pixels, label = draw(20, 30)
    Image.fromarray(pixels).save(tmp_path / "images/small.png")
    Image.fromarray(label).save(tmp_path / "masks/small.png")
    names = {"image_dir": "images", "label_dir": "masks", "classes": "classes.txt"}
    flags = [f"--{flag}={tmp_path / name}" for flag, name in names.items()]
    return (FOLDER, *flags, f"--output_dir={tmp_path / 'out'}")


SAVERS = {
    "png": lambda path, x: Image.fromarray(x).save(path),
    "jpg": lambda path, x: Image.fromarray(x).save(path, quality=95),
    "webp": lambda path, x: Image.fromarray(x).save(path, lossless=True),
    "tif": lambda path, x: Image.fromarray(x).save(path, compression="tiff_lzw"),
    "npy": np.save,
}


# Every format of images, and every format of masks.
PAIRS = ("png", "tif"), ("jpg", "png"), ("webp", "npy"), ("tif", "png"), ("npy", "tif")


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize(("suffix", "mask_suffix"), PAIRS)
def test_tiles_have_the_pixels_of_their_place(
    source, tmp_path, monkeypatch, is_large, suffix, mask_suffix
):
    if is_large:  # the image is above the limit, and the tiles are not
        if "tif" in (suffix, mask_suffix):
            pytest.importorskip("tifffile", reason="needs the extra tiff")
        monkeypatch.setattr(decoding, "MAX_PIXELS", HEIGHT * WIDTH - 1)
        monkeypatch.setattr(strips, "_STRIP_PIXELS", 9 * WIDTH)
    pixels, label = draw()
    path = tmp_path / f"images/a.{suffix}"
    SAVERS[suffix](path, pixels)
    SAVERS[mask_suffix](tmp_path / f"masks/a.{mask_suffix}", label)
    printed = run(*source, "--tile=40", "--tile_overlap=8")
    assert "8 images are tiles of larger ones\n" in printed
    *found, small = read_samples(tmp_path / "out")
    assert small.name == "small" and small.decode().shape == (20, 30, 3)
    assert len(found) == 2 * 4
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1 << 27)
    pixels = read_image(str(path)).astype(int)
    # TensorFlow cannot decode large JPEGs; others round differently.
    most = 12 if suffix == "jpg" and is_large else 0
    covered = np.zeros((HEIGHT, WIDTH), bool)
    for tile in found:
        top, left = map(int, re.fullmatch(r"a@(\d{3}),(\d{3})", tile.name).groups())
        place = np.s_[top : top + 40, left : left + 40]
        covered[place] = True
        np.testing.assert_array_equal(tile.label, label[place])
        assert np.abs(tile.decode() - pixels[place]).max() <= most
    assert covered.all()


def test_apply_exif_rotates_before_tiling(source, tmp_path):
    pixels, label = draw()
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(np.rot90(pixels))
    Image.fromarray(stored).save(tmp_path / "images/a.png", exif=exif)
    Image.fromarray(label).save(tmp_path / "masks/a.png")
    run(*source, "--tile=64", "--apply_exif")
    tiles = {sample.name: sample for sample in read_samples(tmp_path / "out")}
    tile = tiles["a@006,046"]
    np.testing.assert_array_equal(tile.decode(), pixels[6:70, 46:110])
    np.testing.assert_array_equal(tile.label, label[6:70, 46:110])


def test_invalid_tiles_are_refused(source, tmp_path, monkeypatch):
    for message, *flags in (
        ("--tile_overlap has no effect without --tile", "--tile_overlap=4"),
        (
            "between 0 and half of it; received 40 and 21",
            "--tile=40",
            "--tile_overlap=21",
        ),
        ("--tile must be positive .* received -1 and 0", "--tile=-1"),
    ):
        assert_refused(message, *source, *flags)
    pixels, label = draw()
    Image.fromarray(pixels).save(tmp_path / "images/a.png")
    Image.fromarray(label[:, 1:]).save(tmp_path / "masks/a.png")
    message = r"a.png is 109x70, but its image .*a.png is 110x70"
    assert_refused(message, *source, "--tile=64")
    monkeypatch.setattr(decoding, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    assert_refused(message, *source, "--tile=64")
    message = (
        "a.png has 110x70 pixels; at most 7,699 are allowed; cut it with --tile=2048"
    )
    assert_refused(message, *source)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "images/a.png", exif=exif)
    Image.fromarray(label).save(tmp_path / "masks/a.png")
    message = "a.png has the EXIF orientation 3 and too many pixels to be turned"
    assert_refused(message, *source, "--tile=64")
