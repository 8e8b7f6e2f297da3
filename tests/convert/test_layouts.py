"""Folders as people have them: every name and pixel of the records, or one line."""

import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from program_runs import assert_refused, run

from deeplab_tf.data import records
from deeplab_tf.images import decoding

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
    """Returns `{name: label}` of a split, and checks that no name occurs twice."""
    dataset = tf.data.TFRecordDataset(records.shard_paths(str(root / out), split))
    parsed = [records.parse(record) for record in dataset]
    labels = {
        name.numpy().decode(): decoding.decode_label(label)[..., 0].numpy()
        for _, label, name in parsed
    }
    assert len(labels) == len(parsed)
    return labels


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


def test_system_files_and_other_formats_are_passed_over(tmp_path, capfd):
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
    lines = [x for x in capfd.readouterr().err.splitlines() if "passed over" in x]
    assert lines == [
        f"passed over 4 files of {tmp_path}/images that are not images: 3 .json, 1 .txt"
    ]


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
    assert "2 labels have the name of their image in another letter case or Uni" in out
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
        "images/a.jpg and a.png have the same name",
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
def test_unsure_layouts_are_refused(tmp_path, kind):
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
        fate = "left out" if missing == "skip" else "taken as background"
        assert f"1 images without a label were {fate}: {tmp_path}/images/b/c.png" in out
    found = read(tmp_path)
    if missing == "background":
        np.testing.assert_array_equal(found.pop("b/c"), np.zeros((HEIGHT, WIDTH)))
    assert_scenes(found, a=0)


# Masks of one class each.


def write_class_masks(root, pattern, names=("a", "x/b", "c_cat"), white=255):
    """Writes scenes and a mask of each class but the background; returns the names."""
    for number, name in enumerate(sorted(names)):
        image, label = make_scene(number)
        save(root / f"images/{name}.png", image)
        for i, class_name in enumerate(NAMES[1:], 1):
            path = pattern.format(image=name, index=number + 1, name=class_name)
            save(root / "masks" / path, white * (label == i).astype(np.uint8))
    return {name: number for number, name in enumerate(sorted(names))}


PATTERNS = {
    "name and class": ("{image}_{name}.png", "{image}_{class}.png"),
    "folder by class": ("{name}/{image}.png", "{class}/{image}.png"),
    "folder by image": ("{image}/m {name} 1.bmp", "{image}/m {class} *.bmp"),
    "number": (
        "task-{index}-annotation-9-by-1-tag-{name}-0.png",
        "task-{index}-annotation-*-by-*-tag-{class}-*.png",
    ),
    "padded number": ("{index:04}{name}.png", "{index}{class}.png"),
    "any text": ("v2 {image}-{name}.r.png", "*{image}-{class}*"),
}


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("kind", PATTERNS)
def test_masks_of_one_class_each_are_joined(tmp_path, kind, white):
    written, pattern = PATTERNS[kind]
    expected = write_class_masks(tmp_path, written, white=white)
    convert(tmp_path, f"--mask_pattern={pattern}")
    assert_scenes(read(tmp_path), **expected)


def test_masks_of_one_class_each_may_be_in_the_folder_of_the_images(tmp_path):
    expected = write_class_masks(tmp_path, "../images/{image}_{name}_m.png")
    flag = "--mask_pattern={image}_{class}_m.png"
    convert(tmp_path, flag, masks="images")
    assert_scenes(read(tmp_path), **expected)


def test_overlaps_have_the_later_class_and_are_counted(tmp_path):
    names = write_class_masks(tmp_path, "{image}_{name}.png")
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[0, :3] = True
    save(tmp_path / "masks/a_cat.png", mask)
    mask[0, 2] = False
    mask[1, 0] = True
    save(tmp_path / "masks/a_cat_2.png", mask)  # a second cat
    mask[0] = True
    save(tmp_path / "masks/a_dog.png", mask)
    out = convert(tmp_path, "--mask_pattern={image}_{class}*.png", "--num_shards=1")
    line = "masks of 1 images overlap in 4 pixels, which have the later class of "
    assert f"{line}--classes: dog over cat 4" in out
    found, expected = read(tmp_path), np.zeros((HEIGHT, WIDTH))
    expected[mask] = 2
    np.testing.assert_array_equal(found.pop("a"), expected)
    del names["a"]
    assert_scenes(found, **names)


def test_anti_aliased_masks_of_one_class_are_cut_at_half_of_white(tmp_path):
    write_pairs(tmp_path, ("images/a.png", None))
    levels = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) * 5
    save(tmp_path / "masks/a_dog.png", levels)
    flag = "--mask_pattern={image}_{class}.png"
    message = (
        r"a_dog.png has the values .*; a mask of one class has 0 and one .* --nearest"
    )
    assert_refused(message, FOLDER, *arguments(tmp_path, flag))
    convert(tmp_path, flag, "--nearest")
    # The middle of 255 is between 127 and 128.
    np.testing.assert_array_equal(read(tmp_path)["a"], np.where(levels > 127, 2, 0))


def save_other_size(root):
    save(root / "masks/a_cat.png", np.zeros((HEIGHT, WIDTH + 1), np.uint8))


def save_inverted_palette(root):
    image = Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8), "P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(root / "masks/a_cat.png")


def save_ambiguous_mask(root):
    save(root / "images/a_cat.png", make_scene(0)[0])
    save(root / "masks/a_cat_dog.png", np.zeros((1, 1), np.uint8))


REFUSED_PATTERNS = {
    "no field": (None, "--mask_pattern=x.png", "must have {class}, and either {image}"),
    "two images": (
        None,
        "--mask_pattern={image}{index}{class}",
        "must have {class}, and either {image} or {index}, once each",
    ),
    "other field": (None, "--mask_pattern={image}_{id}.png", "must have {class}, and"),
    "nothing matches": (
        None,
        "--mask_pattern={image}-{class}.png",
        "does not match 6 of 6 masks, such as a_cat.png; its fields are {image} .*such "
        "as a., {class} .a class: background, cat, dog. and",
    ),
    "number of another image": (
        lambda root: save(root / "masks/4_cat.png", np.zeros((1, 1), np.uint8)),
        "--mask_pattern={index}_{class}.png",
        r"match 7 of 7 masks, .*4_cat.png; its fields are {index} .*1\.\.3\)",
    ),
    "unknown class": (
        lambda root: save(root / "masks/a_cow.png", np.zeros((1, 1), np.uint8)),
        "--mask_pattern={image}_{class}.png",
        "does not match 1 of 7 masks, such as a_cow.png",
    ),
    "ambiguous": (
        save_ambiguous_mask,
        "--mask_pattern={image}*{class}.png",
        "is ambiguous for a_cat_dog.png: dog of a or dog of a_cat",
    ),
    "image without masks": (
        lambda root: save(root / "images/d.png", make_scene(0)[0]),
        "--mask_pattern={image}_{class}.png",
        "has no mask that matches --mask_pattern for .*d.png; add --missing_mask=skip",
    ),
    "size": (
        save_other_size,
        "--mask_pattern={image}_{class}.png",
        "a_dog.png is 8x6, but .*a_cat.png of the same image is 9x6",
    ),
    "palette": (
        save_inverted_palette,
        "--mask_pattern={image}_{class}.png",
        "a_cat.png has a palette in which index 0 is not black",
    ),
    "label suffix": (
        None,
        ("--mask_pattern={image}_{class}.png", "--label_suffix=_m"),
        "--mask_pattern replaces --label_prefix and --label_suffix",
    ),
    "value map": (
        None,
        ("--mask_pattern={image}_{class}.png", "--value_map=255:cat"),
        "--value_map has no effect with --mask_pattern",
    ),
}


@pytest.mark.parametrize("kind", REFUSED_PATTERNS)
def test_unsure_mask_patterns_are_refused(tmp_path, kind):
    change, flags, message = REFUSED_PATTERNS[kind]
    write_class_masks(tmp_path, "{image}_{name}.png")
    if change:
        change(tmp_path)
    flags = [flags] if isinstance(flags, str) else flags
    message = message.replace("{image}", r"\{image\}").replace("{class}", r"\{class\}")
    message = message.replace("{index}", r"\{index\}")
    assert_refused(message, FOLDER, *arguments(tmp_path, *flags))
    assert not (tmp_path / "out").exists()
