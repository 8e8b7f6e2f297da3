"""Images of all formats, depths and EXIF orientations become exact records."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from program_runs import assert_refused, run
from record_files import read_samples

from deeplab_tf.images import decoding
from deeplab_tf.images.inputs import check_image, read_image

FOLDER = "deeplab_tf.programs.convert.folder"
HEIGHT, WIDTH = 12, 18
ORIENTATION = 0x0112


def draw(height=HEIGHT, width=WIDTH, channels=3, high=256):
    """Returns noise whose four quarters differ in brightness, and their class ids."""
    label = np.zeros((height, width), np.uint8)
    label[: height // 3, : width // 4] = 1
    label[height // 2 :, width // 2 :] = 2
    random = np.random.default_rng(height)
    noise = random.integers(0, high // 4, (height, width, channels))
    pixels = noise + label.astype(int)[..., None] * (high // 4)
    return pixels.astype(np.uint8 if high <= 256 else np.uint16), label


@pytest.fixture
def source(tmp_path):
    """A function that writes the label and classes, and returns the image's path."""

    def write(name, label):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir()
        Image.fromarray(label).save(tmp_path / "masks/a.png")
        (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
        return tmp_path / "images" / name

    return write


def arguments(tmp_path, *more):
    names = {"image_dir": "images", "label_dir": "masks", "classes": "classes.txt"}
    flags = [f"--{flag}={tmp_path / name}" for flag, name in names.items()]
    return (FOLDER, *flags, f"--output_dir={tmp_path / 'out'}", *more)


def read_record(tmp_path, channels=3, max_value=255):
    """Returns pixels, label and stored bytes of the only record."""
    [sample] = read_samples(tmp_path / "out")
    return sample.decode(channels, max_value), sample.label, sample.image


def save(path, pixels, image_format, **options):
    Image.fromarray(pixels).save(path, image_format, **options)


def save_gif(path, pixels):
    first = Image.fromarray(pixels).quantize(200)
    second = Image.fromarray(pixels[::-1]).quantize(200)
    first.save(path, "GIF", save_all=True, append_images=[second])


def save_heif(path, pixels):
    heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    heif.register_heif_opener()
    options = {"matrix_coefficients": 0, "chroma": 444}
    Image.fromarray(pixels).save(path, "HEIF", quality=-1, **options)


# Suffix -> how to write the file, and the format that is reported; None for files whose
# bytes are kept.
FORMATS = {
    ".jpg": ("JPEG", {"quality": 95}, None),
    ".JPEG": ("JPEG", {}, None),
    ".jfif": ("JPEG", {}, None),
    ".PNG": ("PNG", {}, None),
    ".webp": ("WEBP", {"lossless": True}, "WEBP"),
    ".WebP": ("WEBP", {"quality": 80}, "WEBP"),
    ".bmp": ("BMP", {}, "BMP"),
    ".tif": ("TIFF", {}, "TIFF"),
    ".TIFF": ("TIFF", {"compression": "tiff_lzw"}, "TIFF"),
    ".jp2": ("JPEG2000", {}, "JPEG2000"),
    ".avif": ("AVIF", {}, "AVIF"),
    ".gif": (save_gif, {}, "GIF"),
    ".HEIC": (save_heif, {}, "HEIF"),
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_converted_and_predicted_alike(source, tmp_path, suffix):
    write, options, reported = FORMATS[suffix]
    pixels, label = draw()
    path = source(f"a{suffix}", label)
    if isinstance(write, str):
        save(path, pixels, write, **options)
    else:
        write(path, pixels)
    printed = run(*arguments(tmp_path))
    found, found_label, content = read_record(tmp_path)
    np.testing.assert_array_equal(found_label, label)
    np.testing.assert_array_equal(read_image(str(path)), found)
    assert check_image(str(path)) == label.shape
    if reported is None:
        assert content == path.read_bytes()
        assert "transcoded" not in printed
        return
    assert f"1 image transcoded from {reported} to PNG\n" in printed
    with Image.open(path) as image:
        np.testing.assert_array_equal(found, np.array(image.convert("RGB")))
    if reported in ("BMP", "TIFF", "JPEG2000"):  # without loss
        np.testing.assert_array_equal(found, pixels)


# Modes of Pillow that are read as RGB, or as grey.
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize(
    ("suffix", "image_format"), [(".tif", "TIFF"), (".png", "PNG")]
)
def test_color_modes_are_read_alike_in_all_formats(
    source, tmp_path, mode, suffix, image_format
):
    pixels, label = draw()
    image = Image.fromarray(pixels).convert(mode)
    image.save(source(f"a{suffix}", label), image_format)
    run(*arguments(tmp_path))
    expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(read_record(tmp_path)[0], expected)


def save_with_tifffile(path, pixels, **options):
    tifffile = pytest.importorskip("tifffile", reason="needs the extra tiff")
    tifffile.imwrite(path, pixels, **options)


def save_jpeg2000(path, pixels):
    codecs = pytest.importorskip("imagecodecs", reason="needs the extra tiff")
    path.write_bytes(codecs.jpeg2k_encode(pixels, level=0, reversible=True))


def save_png(path, pixels):
    path.write_bytes(tf.io.encode_png(pixels).numpy())


DEEP = {
    "npy": (np.save, 5),
    "npy of RGB": (np.save, 3),
    "tif": (lambda path, x: save_with_tifffile(path, x, photometric="rgb"), 3),
    "png": (save_png, 3),
    "jp2": (save_jpeg2000, 3),
}


@pytest.mark.parametrize("kind", DEEP)
def test_16_bits_are_kept(source, tmp_path, kind):
    write, channels = DEEP[kind]
    pixels, label = draw(channels=channels, high=65536)
    path = source(f"a.{kind.split()[0]}", label)
    write(path, pixels)
    message = rf"{path.name} has the value \d+, but max_value is 255"
    assert_refused(message, *arguments(tmp_path, f"--channels={channels}"))
    run(*arguments(tmp_path, f"--channels={channels}", "--max_value=65535"))
    found, _, _ = read_record(tmp_path, channels, 65535)
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(read_image(str(path), channels, 65535), pixels)
    assert check_image(str(path), channels, 65535) == label.shape


def save_tiff(**options):
    def write(path, pixels):
        extra = options.get("extrasamples")
        shape = (*pixels.shape[:2], 4) if extra else pixels.shape
        array = np.zeros(shape, options.pop("dtype", np.uint8))
        save_with_tifffile(path, array, **options)

    return write


def save_10_bits(path, pixels):
    codecs = pytest.importorskip("imagecodecs", reason="needs the extra tiff")
    deep = pixels.astype(np.uint16) * 4
    path.write_bytes(codecs.avif_encode(deep, level=100, bitspersample=10))


def save_as(image_format):
    return lambda path, pixels: Image.fromarray(pixels).save(path, image_format)


UNREADABLE = {
    "four channels of a TIFF, the fourth not alpha": (
        "a.tif",
        save_tiff(photometric="rgb", extrasamples=["unspecified"]),
        r"a.tif has the shape \(12, 18, 4\); images must be height x width x 3",
    ),
    "premultiplied alpha": (
        "a.tif",
        save_tiff(photometric="rgb", extrasamples=["assocalpha"]),
        r"a.tif has the shape \(12, 18, 4\); images must be",
    ),
    "CMYK": (
        "a.tif",
        lambda path, x: Image.fromarray(x).convert("CMYK").save(path, "TIFF"),
        "a.tif has SEPARATED values; save it as RGB",
    ),
    "signed": (
        "a.tif",
        save_tiff(photometric="rgb", dtype=np.int8),
        "a.tif has int8 pixels; images must be uint8 or uint16",
    ),
    "10-bit AVIF": (
        "a.avif",
        save_10_bits,
        "a.avif is AVIF with more than 8 bits per channel, which would be rounded",
    ),
    "another format": ("a.jpg", save_as("PCX"), "a.jpg is PCX; images must be JPEG, "),
    "text": (
        "a.webp",
        lambda path, x: path.write_text("text"),
        "a.webp is broken: its 4 bytes are not an image",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_images_that_would_lose_values_are_refused(source, tmp_path, kind):
    if kind == "CMYK":
        pytest.importorskip("tifffile", reason="needs the extra tiff")
    name, write, message = UNREADABLE[kind]
    pixels, label = draw()
    path = source(name, label)
    write(path, pixels)
    assert_refused(message, *arguments(tmp_path))
    with pytest.raises(ValueError, match=message):
        read_image(str(path))


@pytest.mark.parametrize("suffix", ["webp", "tif", "bmp", "jp2", "avif", "gif"])
def test_truncated_images_are_refused(source, tmp_path, suffix):
    pixels, label = draw(60, 80)
    path = source(f"a.{suffix}", label)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    assert_refused(rf"a.{suffix} is broken: ", *arguments(tmp_path))


def save_turned(path, upright, orientation, image_format):
    """Writes an image that is stored so that `orientation` turns it to `upright`."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    stored = decoding.turn_upright(upright, back)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(stored).save(path, image_format, exif=exif)
    return stored


LOSSLESS = [("png", "PNG"), ("tif", "TIFF")]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "image_format"), [*LOSSLESS, ("jpg", "JPEG")])
def test_apply_exif_turns_images_upright(
    source, tmp_path, orientation, suffix, image_format
):
    upright, label = draw()
    path = source(f"a.{suffix}", label)
    save_turned(path, upright, orientation, image_format)
    printed = run(*arguments(tmp_path, "--apply_exif"))
    found, found_label, _ = read_record(tmp_path)
    np.testing.assert_array_equal(found, read_image(str(path)))
    np.testing.assert_array_equal(found_label, label)
    if suffix != "jpg":
        np.testing.assert_array_equal(found, upright)
    assert ("1 image turned upright by EXIF\n" in printed) == (orientation != 1)


@pytest.mark.parametrize(("suffix", "image_format"), LOSSLESS)
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_noapply_exif_keeps_the_stored_pixels(
    source, tmp_path, orientation, suffix, image_format
):
    upright, label = draw(WIDTH, WIDTH)
    path = source(f"a.{suffix}", label)
    stored = save_turned(path, upright, orientation, image_format)
    printed = run(*arguments(tmp_path, "--noapply_exif"))
    np.testing.assert_array_equal(read_record(tmp_path)[0], stored)
    assert "1 image has an EXIF rotation that is not applied\n" in printed


@pytest.mark.parametrize(
    ("orientation", "image_format"),
    [*((o, "JPEG") for o in range(2, 9)), (6, "PNG"), (6, "WEBP"), (6, "TIFF")],
)
@pytest.mark.parametrize("is_square", [False, True])
def test_unclear_orientation_is_refused(
    source, tmp_path, orientation, is_square, image_format
):
    upright, label = draw(HEIGHT, HEIGHT if is_square else WIDTH)
    suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(image_format, image_format.lower())
    path = source(f"a.{suffix}", label)
    save_turned(path, upright, orientation, image_format)
    message = f"has the EXIF orientation {orientation}, and its label would fit eit"
    if orientation > 4 and not is_square:
        message = (
            "is 18x12, but its image .* is 12x18 before its EXIF rotation; add --a"
        )
    assert_refused(message, *arguments(tmp_path))


def test_label_that_fits_only_the_stored_pixels_is_accepted(source, tmp_path):
    stored, label = draw()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = source("a.png", label)
    Image.fromarray(stored).save(path, exif=exif)
    printed = run(*arguments(tmp_path))
    np.testing.assert_array_equal(read_record(tmp_path)[0], stored)
    assert "1 image has an EXIF rotation that is not applied\n" in printed
    message = (
        "is 18x12, but its image .* is 12x18 after its EXIF rotation; replace --ap"
    )
    assert_refused(message, *arguments(tmp_path, "--apply_exif", "--split=val"))


def test_missing_packages_are_named(source, tmp_path, monkeypatch):
    import sys

    pixels, label = draw()
    path = source("a.heic", label)
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = r"a.heic is HEIF, which needs pillow_heif; run .*deeplab_tf\[heif\]"
    assert_refused(message, *arguments(tmp_path))
    path.unlink()
    file = io.BytesIO()
    save_with_tifffile(file, pixels.astype(np.uint16), photometric="rgb")
    (path.parent / "a.tif").write_bytes(file.getvalue())
    monkeypatch.setitem(sys.modules, "tifffile", None)
    message = r"a.tif is a TIFF of a kind that .*deeplab_tf\[tiff\]"
    assert_refused(message, *arguments(tmp_path))
