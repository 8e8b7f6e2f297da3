"""Converts images with annotation files to records."""

import json
import re

import annotation_files as files
import numpy as np
import pytest
from PIL import Image, ImageDraw
from program_runs import assert_refused, run
from record_files import read_records

from deeplab_tf.convert import annotated_folder, annotations

PROGRAM = "deeplab_tf.programs.convert.folder"


@pytest.fixture
def arguments(tmp_path):
    """The flags of a conversion of `photos` and `notes`."""
    files.save_images(tmp_path / "photos")
    flags = {name: tmp_path / path for name, path in FOLDERS.items()}
    return [f"--{name}={path}" for name, path in flags.items()]


FOLDERS = {"image_dir": "photos", "annotations": "notes", "output_dir": "out"}


@pytest.mark.parametrize("name", files.WRITERS)
def test_records_have_the_objects_of_the_file(tmp_path, arguments, name):
    files.WRITERS[name](tmp_path / "notes")
    if name == "YOLO":
        (tmp_path / "notes/classes.txt").rename(tmp_path / "classes.txt")
    output = run(PROGRAM, *arguments)
    classes, labels = read_records(tmp_path / "out")
    names = ("dog", "cat") if name == "VIA" else ("cat", "dog")
    assert classes == ("background", *names)
    assert f"annotations: {name}, 2 classes, 3 images, 3 objects\n" in output
    assert "overlap in 20 pixels of 1 image; the upper ones were kept" in output
    assert list(labels) == ["a", "sub/b", "sub/c"]
    ids = {class_name: i for i, class_name in enumerate(names, 1)}
    for image, scene in files.SCENES.items():
        truth = files.draw_truth(scene, ids, name in ("COCO", "YOLO"))
        np.testing.assert_array_equal(labels[image[:-4]], truth)


@pytest.mark.parametrize("folder", ["notes", "photos"])
def test_annotations_given_as_masks_are_refused_with_the_flag(tmp_path, folder):
    files.save_images(tmp_path / "photos")
    files.save_labelme(tmp_path / folder)
    (tmp_path / "classes.txt").write_text("background\ncat\ndog")
    message = rf"; if its .json are annotations, use --annotations=\S*/{folder}$"
    assert_refused(
        *(message, PROGRAM, f"--image_dir={tmp_path}/photos"),
        *(f"--label_dir={tmp_path / folder}", f"--classes={tmp_path}/classes.txt"),
        f"--output_dir={tmp_path}/out",
    )


def test_masks_and_annotations_exclude_each_other(arguments):
    images, _, out = arguments
    assert_refused("or --annotations .* received neither$", PROGRAM, images, out)
    assert_refused("received both$", PROGRAM, *arguments, "--label_dir=masks")


@pytest.mark.parametrize("names", ["background\ndog\ncat", "cat\ndog\n_background_"])
def test_given_classes_set_the_ids(tmp_path, arguments, names):
    (tmp_path / "classes.txt").write_text(names)
    files.save_coco(tmp_path / "notes")
    run(PROGRAM, *arguments, f"--classes={tmp_path / 'classes.txt'}")
    classes, labels = read_records(tmp_path / "out")
    ids = {name: i for i, name in enumerate(names.split())}
    assert classes[ids["cat"]] == "cat"
    background = 0 if names.startswith("back") else 2
    truth = files.draw_truth(files.SCENES["a.jpg"], {"cat": 101, "dog": 102}, True)
    expected = np.select(
        [truth == 101, truth == 102], [ids["cat"], ids["dog"]], background
    )
    np.testing.assert_array_equal(labels["a"], expected)


def test_labelme_files_next_to_the_images(tmp_path):
    # As drawn by labelme itself.
    points = [(10, 10), (60, 12), (50, 60)]
    for i in range(2):
        Image.new("RGB", (128, 96)).save(tmp_path / f"IMG_{i}.jpg")
        shapes = [files.labelme_shape("cat", points)]
        size = {"imageHeight": 96, "imageWidth": 128}
        content = files.labelme_file(f"IMG_{i}.jpg", shapes, **size)
        (tmp_path / f"IMG_{i}.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    shared = f"--image_dir={tmp_path}", f"--annotations={tmp_path}"
    run(PROGRAM, *shared, f"--output_dir={out}")
    truth = Image.new("L", (128, 96))
    ImageDraw.Draw(truth).polygon(points, outline=1, fill=1)
    classes, labels = read_records(out)
    assert classes == ("background", "cat")
    assert list(labels) == ["IMG_0", "IMG_1"]
    np.testing.assert_array_equal(labels["IMG_1"], np.asarray(truth))


def save_one(folder, name="x.jpg", scene=(("cat", 2, 1, 5, 3),), **changes):
    """Writes a COCO file of one image, with changes of its entry."""
    content = files.coco_content({name: list(scene)})
    content["images"][0] |= changes
    folder.mkdir(exist_ok=True)
    (folder / "x.json").write_text(json.dumps(content))


NAMES = {
    # The name in the file, the images in the folder, and the record.
    "below the folder": ("sub/x.jpg", ["sub/x.jpg", "x.jpg"], "sub/x"),
    "from above the folder": ("photos/sub/x.jpg", ["sub/x.jpg"], "sub/x"),
    "file name alone": ("x.jpg", ["sub/x.jpg"], "sub/x"),
    "of Windows": ("C:\\data\\x.jpg", ["x.jpg"], "x"),
    "letter case": ("X.JPG", ["x.jpg"], "x"),
    "exact case first": ("x.jpg", ["X.jpg", "x.jpg"], "x"),
    "composed and decomposed": ("e\u0301.jpg", ["\u00e9.jpg"], "\u00e9"),
}


@pytest.mark.parametrize("case", NAMES)
def test_images_are_found_by_the_names_in_the_annotation_file(tmp_path, case):
    name, images, record = NAMES[case]
    files.save_images(tmp_path / "photos", images)
    save_one(tmp_path / "notes", name)
    flags = [f"--{name}={tmp_path / path}" for name, path in FOLDERS.items()]
    run(PROGRAM, *flags, "--missing_mask=skip")
    _, labels = read_records(tmp_path / "out")
    assert list(labels) == [record]
    assert labels[record].sum() == 6


def test_images_are_found_from_within_their_folder(tmp_path, monkeypatch):
    files.save_images(tmp_path / "photos", ["sub/x.jpg"])
    save_one(tmp_path / "notes", "sub/x.jpg")
    found = annotations.read(str(tmp_path / "notes"))
    monkeypatch.chdir(tmp_path / "photos/sub")
    source = annotated_folder.Source(found, str(tmp_path / "photos"))
    assert list(source.find_images()) == ["sub/x.jpg"]


REFUSED = {
    # The image in the file, further changes, further flags, and the error.
    "no such image": ("y.jpg", {}, [], "y.jpg, but .*photos has no such image"),
    "similar image": ("xx.jpg", {}, [], "has no such image; similar: x.jpg, .*; add"),
    "another folder": ("other/b.jpg", {}, [], "has no such image"),
    "two images": ("c.jpg", {}, [], "c.jpg, which may be p/c.jpg or sub/c.jpg"),
    "no annotation": (
        "x.jpg",
        {},
        ["--missing_mask=error"],
        r"the annotations \(COCO\) have no entry for .*a.jpg.* --missing_mask=skip",
    ),
    "another size": ("x.jpg", {"height": 20}, [], "the size 40x20, but it is 40x30"),
    "size of 1e9": (
        "x.jpg",
        {"height": 10**9, "width": 10**9},
        [],
        "the size 1000000000x1000000000, but it is",
    ),
    "label_dir": ("x.jpg", {}, ["--label_dir=y"], "--label_dir.* or --annotations"),
    "value_map": (
        "x.jpg",
        {},
        ["--value_map=1:cat"],
        "--value_map only applies to masks",
    ),
    "missing file": ("x.jpg", {}, ["--annotations=no"], "no does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_annotations(tmp_path, arguments, case):
    name, changes, more, message = REFUSED[case]
    files.save_images(tmp_path / "photos", ["x.jpg", "p/c.jpg"])
    save_one(tmp_path / "notes", name, **changes)
    assert_refused(message, PROGRAM, *arguments, "--missing_mask=skip", *more)
    assert not (tmp_path / "out").exists()


def test_missing_mask(tmp_path, arguments):
    save_one(tmp_path / "notes", "a.jpg")
    assert_refused("--missing_mask=background", PROGRAM, *arguments)
    invalid = "--missing_mask=guess: it must be error, background or skip"
    assert_refused(invalid, PROGRAM, *arguments, "--missing_mask=guess")
    run(PROGRAM, *arguments, "--missing_mask=background")
    _, labels = read_records(tmp_path / "out")
    assert {name: int(label.sum()) for name, label in labels.items()} == {
        "a": 6,
        "sub/b": 0,
        "sub/c": 0,
    }


CLASSES = {
    "dog\nbackground": "the class cat, which is not in --classes; add the class",
    "background\ncats": "not in --classes; similar: cats; add the class, or correct",
    "cat\ndog": "pixels outside of all objects need a class named background",
}


@pytest.mark.parametrize("names", CLASSES)
def test_refused_classes(tmp_path, arguments, names):
    (tmp_path / "classes.txt").write_text(names)
    save_one(tmp_path / "notes", "a.jpg")
    flag = f"--classes={tmp_path / 'classes.txt'}"
    assert_refused(CLASSES[names], PROGRAM, *arguments, flag, "--missing_mask=skip")


def test_two_annotations_of_an_image(tmp_path, arguments):
    shape = files.labelme_shape("cat", files.list_corners(2, 1, 5, 3))
    (tmp_path / "notes").mkdir()
    for name in ("a", "b"):
        content = files.labelme_file("a.jpg", [shape])
        (tmp_path / f"notes/{name}.json").write_text(json.dumps(content))
    assert_refused("both are a.jpg in", PROGRAM, *arguments)


def save_rotated(path):
    """Writes an image of 30x40 pixels that viewers show as 40x30."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (files.HEIGHT, files.WIDTH)).save(path, exif=exif)


SCENE = {"x.jpg": [("cat", 2, 1, 9, 30)]}
TRUTH = files.draw_truth(SCENE["x.jpg"], {"cat": 1})


@pytest.mark.parametrize("name", files.WRITERS)
def test_upright_annotations_of_rotated_images(tmp_path, name):
    save_rotated(tmp_path / "photos/x.jpg")
    path = files.WRITERS[name](tmp_path / "notes", SCENE)
    flags = FOLDERS | {"annotations": path.relative_to(tmp_path)}
    arguments = [f"--{name}={tmp_path / path}" for name, path in flags.items()]
    assert_refused("--apply_exif", PROGRAM, *arguments)
    run(PROGRAM, *arguments, "--apply_exif")
    classes, labels = read_records(tmp_path / "out")
    np.testing.assert_array_equal(labels["x"], TRUTH * classes.index("cat"))


def test_options_are_part_of_the_recipe(tmp_path, arguments):
    shapes = [files.labelme_shape("cat", [[2, 5], [9, 5]], "line")]
    (tmp_path / "notes").mkdir()
    content = json.dumps(files.labelme_file("a.jpg", shapes))
    (tmp_path / "notes/a.json").write_text(content)
    arguments += ["--missing_mask=skip", "--overwrite"]
    assert_refused(re.escape("add --line_width=10"), PROGRAM, *arguments)
    for width in (1, 3):
        run(PROGRAM, *arguments, f"--line_width={width}")
        _, labels = read_records(tmp_path / "out")
        assert labels["a"].sum() == 8 * width


PALETTE = np.array([(0, 0, 0), (48, 112, 32), (176, 112, 32)], np.uint8)


@pytest.mark.parametrize("tool", ["CVAT", "Roboflow"])
def test_mask_exports_are_converted_by_the_flags_in_the_error(tmp_path, tool):
    scene = files.draw_truth(files.SCENES["a.jpg"], {"cat": 1, "dog": 2})
    export = tmp_path / "export"
    files.save_images(export / ("images" if tool == "CVAT" else ""), ["x.jpg"])
    if tool == "CVAT":
        (export / "SegmentationClass").mkdir()
        Image.fromarray(PALETTE[scene]).save(export / "SegmentationClass/x.png")
        (export / "labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\n"
            "cat:48,112,32::\ndog:176,112,32::\n"
        )
    else:
        Image.fromarray(scene).save(export / "x_mask.png")
        (export / "_classes.csv").write_text(
            "Pixel Value, Class\n0, background\n1, cat\n2, dog\n"
        )
    flags = {"image_dir": export / "images", "output_dir": tmp_path / "out"}
    arguments = [f"--{name}={path}" for name, path in flags.items()]
    with pytest.raises(SystemExit) as error:
        run(PROGRAM, *arguments, f"--annotations={export}")
    printed = re.search("use (.*) instead", error.value.code)[1].split()
    run(PROGRAM, *arguments, *printed)
    classes, labels = read_records(tmp_path / "out")
    assert classes == ("background", "cat", "dog")
    np.testing.assert_array_equal(labels["x"], scene)


def test_annotated_images_in_tiles(tmp_path, arguments):
    files.save_coco(tmp_path / "notes")
    run(PROGRAM, *arguments, "--tile=20")
    _, labels = read_records(tmp_path / "out")
    truth = files.draw_truth(files.SCENES["a.jpg"], {"cat": 1, "dog": 2}, True)
    tiles = {name: label for name, label in labels.items() if name.startswith("a@")}
    assert len(tiles) == 4
    for name, label in tiles.items():
        top, left = map(int, name.partition("@")[2].split(","))
        height, width = label.shape
        np.testing.assert_array_equal(
            label, truth[top : top + height, left : left + width]
        )
