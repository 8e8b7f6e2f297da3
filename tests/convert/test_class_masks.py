"""Masks of one class each are joined by `--mask_pattern`, or refused in one line."""

import numpy as np
import pytest
from convert.test_layouts import (
    FOLDER,
    HEIGHT,
    NAMES,
    WIDTH,
    arguments,
    assert_scenes,
    convert,
    make_scene,
    read,
    save,
    write_pairs,
)
from PIL import Image
from program_runs import assert_refused


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
def test_one_class_masks_are_joined(tmp_path, kind, white):
    written, pattern = PATTERNS[kind]
    expected = write_class_masks(tmp_path, written, white=white)
    convert(tmp_path, f"--mask_pattern={pattern}")
    assert_scenes(read(tmp_path), **expected)


def test_one_class_masks_may_be_in_the_image_folder(tmp_path):
    expected = write_class_masks(tmp_path, "../images/{image}_{name}_m.png")
    flag = "--mask_pattern={image}_{class}_m.png"
    convert(tmp_path, flag, masks="images")
    assert_scenes(read(tmp_path), **expected)


def test_overlaps_get_the_later_class_and_are_counted(tmp_path):
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
    line = "masks of 1 image overlap in 4 pixels, which get the later class in "
    assert f"{line}--classes: dog over cat 4" in out
    found, expected = read(tmp_path), np.zeros((HEIGHT, WIDTH))
    expected[mask] = 2
    np.testing.assert_array_equal(found.pop("a"), expected)
    del names["a"]
    assert_scenes(found, **names)


def test_anti_aliased_masks_are_thresholded_at_half_of_white(tmp_path):
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
def test_invalid_mask_patterns_are_refused(tmp_path, kind):
    change, flags, message = REFUSED_PATTERNS[kind]
    write_class_masks(tmp_path, "{image}_{name}.png")
    if change:
        change(tmp_path)
    flags = [flags] if isinstance(flags, str) else flags
    message = message.replace("{image}", r"\{image\}").replace("{class}", r"\{class\}")
    message = message.replace("{index}", r"\{index\}")
    assert_refused(message, FOLDER, *arguments(tmp_path, *flags))
    assert not (tmp_path / "out").exists()
