"""Converts common folder layouts, and refuses ambiguous ones in one line."""

import unicodedata

import numpy as np
import pytest
from PIL import Image
from program_runs import assert_refused, run
from record_files import read_labels

FOLDER = "deeplab_tf.programs.convert.folder"
NAMES = ("background", "cat", "dog")
HEIGHT, WIDTH = 6, 8


def make_scene(number):
    """Returns an image and its class ids; every number has other ones."""
    random = np.random.RandomState(number)
    image = random.randint(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    return image, random.randint(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def write_pairs(root, *pairs, first=0):
    """Writes scenes at pairs of image and mask paths; None writes no mask."""
    for number, (image, mask) in enumerate(pairs, first):
        pixels, label = make_scene(number)
        save(root / image, pixels)
        if mask:
            save(root / mask, label)


def convert(root, *flags, images="images", masks="masks", out="out"):
    """Runs the program and returns its output."""
    return run(FOLDER, *arguments(root, *flags, images=images, masks=masks, out=out))


def arguments(root, *flags, images="images", masks="masks", out="out"):
    (root / "classes.txt").write_text("\n".join(NAMES))
    folders = {"image_dir": images, "label_dir": masks, "output_dir": out}
    given = [f"--{flag}={root / folder}" for flag, folder in folders.items()]
    return [*given, f"--classes={root}/classes.txt", *flags]


def read(root, split="train", out="out"):
    """Returns `{name: label}` of a split."""
    return read_labels(root / out, split)


def assert_scenes(found, **numbers):
    """Checks names and pixels: scene by name."""
    assert found.keys() == numbers.keys()
    for name, number in numbers.items():
        np.testing.assert_array_equal(found[name], make_scene(number)[1])


# Files, flags, and the scenes of the records by name.
LAYOUTS = {
    "nested folders with the same stems": (
        [
            ("images/berlin/1.png", "masks/berlin/1.png"),
            ("images/paris/1.png", "masks/paris/1.png"),
            ("images/paris/old/1.png", "masks/paris/old/1.png"),
            ("images/1.png", "masks/1.png"),
        ],
        [],
        {"berlin/1": 0, "paris/1": 1, "paris/old/1": 2, "1": 3},
    ),
    "suffix and prefix of masks": (
        [
            ("images/a.png", "masks/mask_a_L.png"),
            ("images/x/a.png", "masks/x/mask_a_L.png"),
            ("images/b.c.png", "masks/mask_b.c_L.png"),
        ],
        ["--label_prefix=mask_", "--label_suffix=_L"],
        {"a": 0, "x/a": 1, "b.c": 2},
    ),
    "suffixes of images and masks": (
        [
            ("images/a_rgb.png", "masks/a_ids.png"),
            ("images/a_depth.png", "masks/a_color.png"),
        ],
        ["--image_suffix=_rgb", "--label_suffix=_ids"],
        {"a": 0},
    ),
    "one folder with a suffix": (
        [
            ("all/a.png", "all/a_mask.png"),
            ("all/x/b.JPG", "all/x/b_mask.PNG"),
            ("all/c.bmp", "all/c_mask.npy"),
        ],
        ["--label_suffix=_mask"],
        {"a": 0, "x/b": 1, "c": 2},
    ),
    "one folder with a prefix": (
        [("all/a.png", "all/gt a.png"), ("all/ä ö.png", "all/gt ä ö.png")],
        ["--label_prefix=gt "],
        {"a": 0, "ä ö": 1},
    ),
    "one folder with a prefix of images": (
        [("all/im_a.png", "all/a.png")],
        ["--image_prefix=im_"],
        {"a": 0},
    ),
    "one folder with two formats": (
        [("all/a.jpg", "all/a.png"), ("all/b.b.jpg", "all/b.b.png")],
        [],
        {"a": 0, "b.b": 1},
    ),
    "formats of masks": (
        [
            ("images/a.png", "masks/a.tif"),
            ("images/b.PNG", "masks/b.bmp"),
            ("images/c.TIFF", "masks/c.npy"),
        ],
        [],
        {"a": 0, "b": 1, "c": 2},
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_are_converted(tmp_path, kind):
    pairs, flags, expected = LAYOUTS[kind]
    write_pairs(tmp_path, *pairs)
    folders = {}
    if (tmp_path / "all").exists():
        folders = {"images": "all", "masks": "all"}
    convert(tmp_path, *flags, **folders)
    assert_scenes(read(tmp_path), **expected)


@pytest.mark.parametrize("masks", ["images/masks", "images"])
def test_one_folder_may_contain_the_other(tmp_path, masks):
    images = "images" if masks == "images/masks" else "images/photos"
    write_pairs(tmp_path, (f"{images}/a.png", f"{masks}/a.png"))
    out = f"{images}/records"
    convert(tmp_path, images=images, masks=masks, out=out)
    save(tmp_path / out / "chart.png", make_scene(0)[0])
    convert(tmp_path, images=images, masks=masks, out=out)
    assert_scenes(read(tmp_path, out=out), a=0)


def test_system_files_and_other_formats_are_ignored(tmp_path, capfd):
    write_pairs(tmp_path, ("images/a.png", "masks/a.png"))
    for name in ("._a.png", "Thumbs.db", "__MACOSX/a.png", ".DS_Store", "desktop.ini"):
        for folder in ("images", "masks"):
            (tmp_path / folder / name).parent.mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"x")
    for name in ("a.json", "b.json", "notes.TXT", "x/c.json"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_text("x")
    convert(tmp_path)
    assert_scenes(read(tmp_path), a=0)
    lines = [x for x in capfd.readouterr().err.splitlines() if "ignored" in x]
    assert lines == [f"ignored 4 non-image files in {tmp_path}/images: 3 .json, 1 .txt"]


def test_linked_files_and_folders_are_converted(tmp_path):
    write_pairs(tmp_path, ("disk/b/a.png", "gt/b/a.png"), ("disk/c.png", "masks/d.png"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/b").symlink_to("../disk/b")
    (tmp_path / "images/d.png").symlink_to("../disk/c.png")
    (tmp_path / "masks/b").symlink_to("../gt/b")
    convert(tmp_path)
    assert_scenes(read(tmp_path), **{"b/a": 0, "d": 1})


def test_unicode_forms_and_letter_case_may_differ(tmp_path):
    composed = unicodedata.normalize("NFC", "süd")
    decomposed = unicodedata.normalize("NFD", "süd")
    write_pairs(
        tmp_path,
        (f"images/{composed}.png", f"masks/{decomposed}.png"),
        ("images/City/IMG_1.PNG", "masks/city/img_1.png"),
        ("images/a.png", "masks/a.png"),
    )
    out = convert(tmp_path)
    assert "2 labels differ from the name of the image in letter case or Unicode" in out
    assert_scenes(read(tmp_path), **{composed: 0, "City/IMG_1": 1, "a": 2})


REFUSED = {
    "two images that differ in letter case": (
        [("images/A1.png", "masks/a1.png"), ("images/a1.PNG", None)],
        [],
        "has no label, such as A1.png",
    ),
    "masks that may be of two images": (
        [("images/AB.png", "masks/ab.png"), ("images/Ab.png", "masks/aB.png")],
        [],
        "'AB', 'Ab', 'aB', 'ab' of images and labels differ only in letter case",
    ),
    "same stem": (
        [("images/a.png", "masks/a.png"), ("images/a.jpg", None)],
        [],
        "images/a.jpg and a.png have the same name; remove one of them",
    ),
    "masks of other names": (
        [("images/a.png", "masks/1_cat.png")],
        [],
        "no image for .*1_cat.png; see --label_prefix, --label_suffix, --mask_pattern$",
    ),
    "one folder without PNGs": (
        [("all/a.jpg", "all/a.npy")],
        ["--image_dir={}/all", "--label_dir={}/all"],
        "images and masks are both in .*all, and none of them is a PNG; add --label_s",
    ),
    "missing mask": (
        [("images/a.png", "masks/a.png"), ("images/x/b.png", None)],
        [],
        "has no label, such as b.png, for .*x/b.png; add --missing_mask=skip",
    ),
    "background without such a class": (
        [("images/a.png", "masks/a.png"), ("images/b.png", None)],
        ["--missing_mask=background", "--classes={}/animals.txt"],
        "=background needs a class named background in --classes; the classes are a, b",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_ambiguous_layouts_are_refused(tmp_path, kind):
    pairs, flags, message = REFUSED[kind]
    write_pairs(tmp_path, *pairs)
    (tmp_path / "animals.txt").write_text("a\nb\nc")
    flags = [flag.replace("{}", str(tmp_path)) for flag in flags]
    assert_refused(message, FOLDER, *arguments(tmp_path, *flags))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["background", "skip"])
def test_images_without_a_mask_are_background_or_skipped(tmp_path, missing):
    write_pairs(tmp_path, ("images/a.png", "masks/a.png"), ("images/b/c.png", None))
    for _ in range(2):
        out = convert(tmp_path, f"--missing_mask={missing}")
        action = "left out" if missing == "skip" else "labelled as background"
        assert f"1 image without a label was {action}: {tmp_path}/images/b/c.png" in out
    found = read(tmp_path)
    if missing == "background":
        np.testing.assert_array_equal(found.pop("b/c"), np.zeros((HEIGHT, WIDTH)))
    assert_scenes(found, a=0)
