"""Converts COCO instances to records of the 20 VOC classes."""

import os
import sys

import numpy as np
import pytest
import small_datasets
from annotation_files import compress_counts
from record_files import read_labels
from small_datasets import rectangle

from deeplab_tf.convert import coco_voc
from deeplab_tf.data import records
from deeplab_tf.data.info import dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.programs import run_program

CLASS = {name: i for i, name in enumerate(dataset_info("coco_voc").class_names)}
# A rectangle large enough for its image to be kept.
LARGE = rectangle(0, 0, 35, 30)


@pytest.fixture
def files(tmp_path):
    return small_datasets.CocoBuilder(tmp_path / "coco")


def out_of(files):
    return files.image_dir.parent.parent / "out"


def convert(files, **settings):
    """Converts to the sibling folder `out`; returns the split sizes."""
    files.save()
    settings = {"split": "train", "num_shards": 2} | settings
    out = str(out_of(files))
    return coco_voc.convert(str(files.path), str(files.image_dir), out, **settings)


def convert_label(files):
    """Converts the only image; returns its label."""
    assert convert(files) == {"train": 1}
    [label] = read_labels(out_of(files)).values()
    return label


def expected_label(*areas, height=40, width=60):
    """Returns a label; an area is (top, left, height, width, class)."""
    label = np.zeros((height, width), np.uint8)
    for top, left, rows, columns, class_id in areas:
        label[top : top + rows, left : left + columns] = class_id
    return label


# The rows 3..32 of the columns 2..36, column after column of 40 pixels.
RUNS = [2 * 40 + 3, *([30, 10] * 34), 30, 40 * 60 - 2 * 40 - 3 - 34 * 40 - 30]


OUTLINES = {
    "polygon": [rectangle(3, 2, 30, 35)],
    "two polygons": [rectangle(3, 2, 30, 20), rectangle(3, 20, 30, 17)],
    "line and polygon": [[50, 0, 59, 20], rectangle(3, 2, 30, 35)],
    "uncompressed runs": {"size": [40, 60], "counts": RUNS},
    "compressed runs": {"size": [40, 60], "counts": compress_counts(RUNS)},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OUTLINES)
def test_outlines_become_labels(files, kind):
    image = files.add_image("000000000009.jpg")
    files.add_object(image, "bus", OUTLINES[kind])
    np.testing.assert_array_equal(
        convert_label(files), expected_label((3, 2, 30, 35, CLASS["bus"]))
    )


@pytest.mark.slow
def test_outlines_are_clipped_to_the_image(files):
    files.add_object(files.add_image("a.jpg"), "cat", [rectangle(-5, -20, 100, 55)])
    np.testing.assert_array_equal(
        convert_label(files), expected_label((0, 0, 40, 35, CLASS["cat"]))
    )


@pytest.mark.slow
def test_empty_outlines_are_ignored(files):
    image = files.add_image("a.jpg")
    for outline in ([], [[0, 0, 59, 39]], {"size": [40, 60], "counts": [2400]}):
        files.add_object(image, "cow", outline)
    files.add_object(image, "bus", OUTLINES["polygon"])
    np.testing.assert_array_equal(
        convert_label(files), expected_label((3, 2, 30, 35, CLASS["bus"]))
    )


@pytest.mark.slow
def test_other_categories_become_background(files):
    renamed = {
        "airplane": "aeroplane",
        "motorcycle": "motorbike",
        "couch": "sofa",
        "potted plant": "pottedplant",
        "dining table": "diningtable",
    }
    for category in small_datasets.COCO_CATEGORIES:
        files.add_object(files.add_image(f"{category}.jpg"), category, [LARGE])
    assert convert(files) == {"train": 20}
    background = {"truck", "traffic light", "elephant"}
    assert (
        read_labels(out_of(files)).keys()
        == set(small_datasets.COCO_CATEGORIES) - background
    )
    for category, label in read_labels(out_of(files)).items():
        class_id = CLASS[renamed.get(category, category)]
        np.testing.assert_array_equal(label, expected_label((0, 0, 35, 30, class_id)))
    info = records.read_info(str(out_of(files)))
    assert info.name == "coco_voc" and info.ignore_label == 255
    assert info.class_names == dataset_info("pascal_voc_seg").class_names
    assert info.class_pixels["train"] == [20 * (2400 - 1050)] + 20 * [1050]


@pytest.mark.slow
def test_smaller_objects_cover_larger_ones(files):
    image = files.add_image("a.jpg")
    files.add_object(image, "bird", [rectangle(5, 5, 3, 3)])
    files.add_object(image, "car", [LARGE])
    files.add_object(image, "person", [rectangle(4, 4, 10, 10)])
    # The `area` field is ignored.
    files.content["annotations"][0]["area"] = 5000
    # Objects of other classes do not cover.
    files.add_object(image, "elephant", [rectangle(30, 25, 2, 2)])
    np.testing.assert_array_equal(
        convert_label(files),
        expected_label(
            (0, 0, 35, 30, CLASS["car"]),
            (4, 4, 10, 10, CLASS["person"]),
            (5, 5, 3, 3, CLASS["bird"]),
        ),
    )


@pytest.mark.slow
def test_crowds_are_ignored_and_cover_objects(files):
    image = files.add_image("a.jpg")
    files.add_object(image, "person", [rectangle(0, 29, 40, 20)], iscrowd=1)
    files.add_object(image, "bus", [LARGE])
    files.add_object(image, "bird", [rectangle(20, 40, 2, 2)])
    # A crowd of another category is background.
    files.add_object(image, "elephant", [rectangle(0, 50, 40, 10)], iscrowd=1)
    np.testing.assert_array_equal(
        convert_label(files),
        expected_label((0, 0, 35, 30, CLASS["bus"]), (0, 29, 40, 20, 255)),
    )


# Name to whether the image is kept, and its objects; FULL has 25 x 40 = 1000 pixels.
FULL = (0, 0, 25, 40)
ONE_MORE = (30, 0, 1, 1)
FILTER_CASES = {
    "1000 pixels": (False, [("car", FULL)]),
    "1001 pixels": (True, [("car", FULL), ("person", ONE_MORE)]),
    "1001 pixels of one outline": (True, [("car", (0, 0, 7, 143))]),
    "one more of another category": (False, [("car", FULL), ("truck", ONE_MORE)]),
    "one more inside the first": (False, [("car", FULL), ("person", (3, 3, 1, 1))]),
    "one more in a crowd": (
        False,
        [("car", FULL), ("person", ONE_MORE), ("sheep", (30, 0, 5, 5), 1)],
    ),
    "one fewer because of a crowd": (
        False,
        [("car", FULL), ("person", ONE_MORE), ("sheep", (24, 39, 5, 5), 1)],
    ),
    "only a crowd": (False, [("person", (0, 0, 30, 50), 1)]),
    "crowd of another category": (True, [("car", (0, 0, 26, 40)), ("truck", FULL, 1)]),
}


@pytest.mark.slow
def test_images_with_more_than_1000_annotated_pixels_are_kept(files):
    for name, (_, objects) in FILTER_CASES.items():
        image = files.add_image(f"{name}.jpg", height=40, width=150)
        for category, area, *iscrowd in objects:
            files.add_object(image, category, [rectangle(*area)], *iscrowd)
    files.add_image("nothing.jpg")
    expected = {name for name, (is_kept, _) in FILTER_CASES.items() if is_kept}
    assert convert(files) == {"train": len(expected)}
    found = read_labels(out_of(files))
    assert list(found) == sorted(expected, key=lambda name: f"{name}.jpg")
    for label in found.values():
        assert np.count_nonzero((label > 0) & (label < 255)) > 1000


@pytest.mark.slow
def test_program_prints_split_sizes(tmp_path, capsys):
    root = small_datasets.write_coco(tmp_path / "coco")
    flags = [
        f"--annotations={root}/annotations/instances_train2017.json",
        f"--image_dir={root}/train2017",
        f"--output_dir={tmp_path}/out",
        "--split=trainaug",
    ]
    run_program("deeplab_tf.programs.convert.coco_voc", ["coco_voc.py", *flags])
    assert capsys.readouterr().out == f"{tmp_path}/out: train_aug 1 image\n"
    assert len(records.find_shards(f"{tmp_path}/out", "train_aug")) == 1


def test_missing_pycocotools_is_reported(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(UserError, match=r"run pip install .deeplab_tf\[coco\]"):
        convert(files)


def remove_image(files):
    (files.image_dir / "b.jpg").unlink()


def unlist_image(files):
    del files.content["images"][1]


def set_field(kind, number, field, value):
    def change(files):
        files.content[kind][number][field] = value

    return change


def remove_field(kind, number, field):
    def change(files):
        del files.content[kind][number][field]

    return change


def remove_annotations(files):
    del files.content["annotations"]


def set_outline(value):
    return set_field("annotations", 1, "segmentation", value)


def set_runs(counts, size=(40, 60)):
    return set_outline({"size": list(size), "counts": counts})


def shrink_image(files):
    small_datasets.save_image(files.image_dir / "b.jpg", 40, 59)


def shrink_objects(files):
    for annotation in files.content["annotations"]:
        annotation["segmentation"] = [rectangle(0, 0, 25, 40)]


BROKEN_OUTLINE = "annotation 101 of .*, in the 60x40 image b.jpg, is broken: "
# Change that breaks the annotations, and pattern of the error message.
BROKEN = {
    "missing image": (
        remove_image,
        "/instances_train2017.json lists b.jpg, but .*/train2017 has no such image",
    ),
    "image of another size": (
        shrink_image,
        "/instances_train2017.json is 60x40, but its image .*/b.jpg is 59x40",
    ),
    "impossible size": (
        set_field("images", 1, "height", 0),
        r"the height and width of b.jpg are \(0, 60\)",
    ),
    "size as text": (
        set_field("images", 1, "width", "60"),
        r"the height and width of b.jpg are \(40, '60'\)",
    ),
    "annotation of unknown image": (
        unlist_image,
        "annotation 101 of .*.json has the image_id 7001, which is not in the file",
    ),
    "annotation of unknown category": (
        set_field("annotations", 1, "category_id", 99),
        "annotation 101 of .*.json has the category_id 99, which is not in the file",
    ),
    "missing outline": (
        remove_field("annotations", 1, "segmentation"),
        r"/instances_train2017.json: annotations\[1\] has no segmentation",
    ),
    "not an instances file": (
        remove_annotations,
        "/instances_train2017.json is not a COCO instances file: it has no annot",
    ),
    "missing category": (
        set_field("categories", 4, "name", "aeroplane"),
        "/instances_train2017.json has no category 'airplane'; it must have the cat",
    ),
    "polygon of odd length": (
        set_outline([[0, 0, 9, 0, 9, 9, 0]]),
        f"{BROKEN_OUTLINE}its polygons",
    ),
    "nested polygon": (set_outline([[[0, 0], [9, 0]]]), f"{BROKEN_OUTLINE}its polyg"),
    "polygon of text": (set_outline([["a"] * 6]), f"{BROKEN_OUTLINE}could not convert"),
    "polygon of NaN": (
        set_outline([[float("nan")] * 6]),
        "/instances_train2017.json: NaN is not a number in JSON",
    ),
    "polygon far outside": (
        set_outline([[0, 0, 1e9, 0, 1e9, 1e9]]),
        f"{BROKEN_OUTLINE}its polygons are far outside",
    ),
    "runs that end early": (set_runs([5, 5]), f"{BROKEN_OUTLINE}its runs do not fill"),
    "truncated runs": (
        set_runs(compress_counts(RUNS)[:-2]),
        f"{BROKEN_OUTLINE}its runs do not fill",
    ),
    "runs of another size": (
        set_runs(RUNS, (60, 40)),
        BROKEN_OUTLINE + r"its runs have the size \[60, 40\]",
    ),
    "outline of wrong type": (set_outline(5), f"{BROKEN_OUTLINE}'int' object"),
    "no image above the threshold": (
        shrink_objects,
        "contains no images with more than 1000 annotated pixels of VOC's classes",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_annotations_are_refused_before_writing(files, tmp_path, kind):
    for name in ("a.jpg", "b.jpg"):
        files.add_object(files.add_image(name), "horse", [LARGE])
    change, message = BROKEN[kind]
    change(files)
    with pytest.raises(UserError, match=message):
        convert(files)
    assert os.listdir(tmp_path) == ["coco"]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", '{"images": [', "[1, 2]", "\udcff"])
def test_malformed_json_is_refused(files, tmp_path, text):
    files.path.write_text(text, errors="surrogateescape")
    with pytest.raises(
        UserError, match=r"instances_train2017.json( is empty|: line 1| is not a COCO)"
    ):
        coco_voc.convert(
            str(files.path), str(files.image_dir), f"{tmp_path}/o", "train"
        )
    assert os.listdir(tmp_path) == ["coco"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotations": "no.json"}, "^no.json does not exist"),
        ({"image_dir": "nowhere"}, "--image_dir=nowhere is not a folder"),
        ({"split": "train-2017"}, "split must be letters, digits and _; received 'tra"),
    ],
)
def test_invalid_flags_are_refused(tmp_path, settings, message):
    root = small_datasets.write_coco(tmp_path / "coco")
    valid = {
        "annotations": f"{root}/annotations/instances_train2017.json",
        "image_dir": f"{root}/train2017",
        "output_dir": f"{tmp_path}/out",
        "split": "train",
    }
    with pytest.raises(UserError, match=message):
        coco_voc.convert(**(valid | settings))
    assert os.listdir(tmp_path) == ["coco"]
