"""Masks of any coding and format, converted by the program."""

import re

import numpy as np
import pytest
from PIL import Image, ImageFilter
from program_runs import assert_refused, run
from record_files import read_records
from small_masks import (
    BLACK,
    GREEN,
    HEIGHT,
    RED,
    WHITE,
    WIDTH,
    draw,
    encode,
    encode_npy,
    paint,
    palette_image,
)

from deeplab_tf.data.info import voc_colors

FOLDER = "deeplab_tf.programs.convert.folder"


@pytest.fixture
def source(tmp_path):
    """A function that writes images, masks and a class file of a kind."""

    def write(num_classes, classes, encode_mask, suffix=".png"):
        for name in ("images", "masks"):
            (tmp_path / name).mkdir(exist_ok=True)
        for i in range(3):
            image = np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8)
            Image.fromarray(image).save(tmp_path / f"images/{i}.png")
            content = encode_mask(draw(i, num_classes))
            (tmp_path / f"masks/{i}{suffix}").write_bytes(content)
        (tmp_path / "classes.txt").write_text(classes)
        return [
            f"--image_dir={tmp_path}/images",
            f"--label_dir={tmp_path}/masks",
            f"--classes={tmp_path}/classes.txt",
            f"--output_dir={tmp_path}/out",
        ]

    return write


def assert_converts(tmp_path, arguments, num_classes, names, share=0.0):
    """Converts, and compares names and pixels with the truth."""
    printed = run(FOLDER, *arguments)
    classes, found = read_records(tmp_path / "out")
    assert classes == names
    assert sorted(found) == ["0", "1", "2"]
    for name, label in found.items():
        truth = draw(int(name), num_classes)
        assert (label != truth).mean() <= share, f"mask {name}"
    return printed


def scaled(*values):
    return lambda label: encode(np.array(values, np.uint8)[label])


def blurred(label):
    image = Image.fromarray(label * 255).filter(ImageFilter.GaussianBlur(1))
    return encode(image)


TWO, THREE = "background\nobject\n", "background\ncat\ndog\n"
PAINTED = "background 0 0 0\nobject 255 255 255\n"
# Number of classes, class file, mask, the message without flags, the flags, and the
# share of the pixels that may differ: at edges of blurred masks.
CASES = {
    "0 and 255": (
        *(2, TWO, scaled(0, 255)),
        r"have only the values 0 \(8,\d+ pixels\), 255 \(\d+\); if 255 is an object, "
        "add --value_map=255:object; if it is unlabelled, add --ignore_label=255",
        *(["--value_map=255:object"], 0),
    ),
    "0 and 128": (
        *(2, TWO, scaled(0, 128)),
        r"the value 128 in 1\d\d of 3,072 pixels; .*3 masks have the values 0 .*if "
        "128 is an object, add --value_map=128:object",
        *(["--value_map=128:object"], 0),
    ),
    "anti-aliased": (
        *(2, PAINTED, blurred),
        r"[\d,]+ pixels have values in between; .* resized .*add --nearest$",
        *(["--nearest"], 0.04),
    ),
    "anti-aliased without colours": (
        *(2, TWO, blurred),
        "values in between.*add --nearest --value_map=0:background,255:object$",
        *(["--nearest", "--value_map=0:background,255:object"], 0.04),
    ),
    "JPEG": (
        *(2, PAINTED, lambda label: encode(label * 255, "JPEG", quality=90)),
        "png is JPEG, which changes .* save masks as PNG, or add --nearest$",
        *(["--nearest"], 0.01),
    ),
    "colours in a lossy WebP": (
        *(2, "a 0 0 0\nb 255 0 0\n"),
        lambda label: encode(paint(label, [BLACK, RED]), "WEBP", quality=95),
        r"\d.png is lossy WebP, which changes",
        *(["--nearest"], 0.02),
    ),
    "7, 8 and 11": (
        *(3, THREE, scaled(7, 8, 11)),
        "3 masks have .*7 .*one value per class.*"
        "add --value_map=7:background,8:cat,11:dog$",
        *(["--value_map=7:background,8:cat,11:dog"], 0),
    ),
    "repeated flags": (
        *(3, THREE, scaled(0, 30, 200)),
        "one value per class",
        *(["--value_map=30:cat", "--value_map=200:2"], 0),
    ),
    "colours in the value map": (
        *(3, THREE, lambda label: encode(paint(label, [BLACK, RED, GREEN]))),
        r"is in colour, but the classes have no colours; .*--value_map=#rrggbb:NAME",
        *(["--value_map=#000000:background,#ff0000:cat,#00FF00:dog"], 0),
    ),
    "16 bits": (
        *(2, TWO, lambda label: encode(label.astype(np.uint16) * 65535)),
        "add --value_map=65535:object",
        *(["--value_map=65535:object"], 0),
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_masks_are_refused_with_the_flag_that_fixes_them(source, tmp_path, kind):
    num_classes, classes, encode_mask, message, flags, share = CASES[kind]
    arguments = source(num_classes, classes, encode_mask)
    assert_refused(message, FOLDER, *arguments)
    assert not (tmp_path / "out").exists()
    names = tuple(line.split()[0] for line in classes.splitlines())
    arguments += flags
    printed = assert_converts(tmp_path, arguments, num_classes, names, share)
    is_nearest = "--nearest" in flags
    pattern = r"--nearest: [\d,]+ of 9,216 pixels .* largest distance was \d+, in "
    assert bool(re.search(pattern, printed)) == is_nearest


FILES = {
    "PNG": lambda label: (encode(label), ".png"),
    "PNG of 1 bit": lambda label: (encode(Image.fromarray(label == 1)), ".png"),
    "PNG of 16 bits": lambda label: (encode(label.astype(np.uint16)), ".png"),
    "PNG with grey and alpha": lambda label: (
        encode(Image.merge("LA", [Image.fromarray(label)] * 2)),
        ".png",
    ),
    "PNG in RGB": lambda label: (encode(np.stack([label] * 3, -1)), ".png"),
    "PNG with a palette": lambda label: (
        encode(palette_image(label, [BLACK, RED])),
        ".png",
    ),
    "PNG with a palette of 1 bit": lambda label: (
        encode(palette_image(label, [BLACK, WHITE]), bits=1),
        ".PNG",
    ),
    "TIFF": lambda label: (encode(label, "TIFF"), ".tif"),
    "TIFF with LZW": lambda label: (
        encode(label, "TIFF", compression="tiff_lzw"),
        ".tiff",
    ),
    "TIFF of 16 bits": lambda label: (encode(label.astype(np.uint16), "TIFF"), ".tif"),
    "TIFF of 32 bits": lambda label: (encode(label.astype(np.int32), "TIFF"), ".tif"),
    "BMP": lambda label: (encode(label, "BMP"), ".bmp"),
    "BMP with a palette": lambda label: (
        encode(palette_image(label, [GREEN, RED]), "BMP"),
        ".bmp",
    ),
    "GIF": lambda label: (encode(label, "GIF"), ".gif"),
    "lossless WebP": lambda label: (encode(label, "WEBP", lossless=True), ".webp"),
    "NumPy": lambda label: (encode_npy(label), ".npy"),
    "NumPy of booleans": lambda label: (encode_npy(label > 0), ".npy"),
    "NumPy of 64 bits": lambda label: (encode_npy(label.astype(np.int64)), ".npy"),
    "NumPy with one channel": lambda label: (encode_npy(label[..., None]), ".npy"),
}


@pytest.mark.parametrize("kind", FILES)
def test_class_ids_in_every_format(source, tmp_path, kind):
    suffix = FILES[kind](draw(0, 2))[1]
    arguments = source(2, TWO, lambda label: FILES[kind](label)[0], suffix)
    assert_converts(tmp_path, arguments, 2, ("background", "object"))


NAMES = ("background", "cat", "dog")


def test_labelme_masks_and_class_file(source, tmp_path):
    """Palette masks with void, which `__ignore__` lists."""
    arguments = source(3, THREE, encode)
    truths = {str(i): draw(i, 3) for i in range(3)}
    for name, truth in truths.items():
        truth[:4] = 255
        palette = np.array(voc_colors(256), np.uint8)
        palette_image(truth, palette).save(tmp_path / f"masks/{name}.png")
    (tmp_path / "classes.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    run(FOLDER, *arguments)
    classes, labels = read_records(tmp_path / "out")
    assert classes == ("_background_", "cat", "dog")
    assert labels.keys() == truths.keys()
    for name, truth in truths.items():
        np.testing.assert_array_equal(labels[name], truth)


def test_values_of_the_class_file_are_printed_and_read(source, tmp_path):
    arguments = source(3, "11 dog\n7 background\n8 cat\n", scaled(7, 8, 11))
    printed = assert_converts(tmp_path, arguments, 3, NAMES)
    assert printed.startswith(
        "id   class       colour  mask values\n"
        "0    background          7\n"
        "1    cat                 8\n"
        "2    dog                 11\n"
        "255  (ignored)           255\n"
    )
    assert_refused(
        "--ignore_label=7 is the value or id of a class .* use --value_map=7:ignore",
        FOLDER,
        *(*arguments, "--ignore_label=7"),
    )
    assert_refused(
        "8 could be a class id or a mask value of --classes; write the name of the cl",
        FOLDER,
        *(*arguments, "--value_map=9:8"),
    )


def test_value_map_must_agree_with_the_class_file(source):
    arguments = source(2, PAINTED, scaled(0, 255))
    assert_refused(
        r"--value_map gives 255 to background, but --classes or --ignore_color gives "
        "it to object",
        FOLDER,
        *(*arguments, "--value_map=255:background"),
    )
    arguments = source(2, TWO, scaled(0, 255))
    assert_refused(
        "--nearest needs declared values or colours; add --value_map, such as "
        "--value_map=0:background,255:object",
        FOLDER,
        *(*arguments, "--nearest"),
    )
