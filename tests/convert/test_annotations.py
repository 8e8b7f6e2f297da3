"""Reads the annotation files of every tool, and refuses broken ones."""

import json
import pathlib

import annotation_files as files
import numpy as np
import pytest

from deeplab_tf.convert import annotations, run_lengths
from deeplab_tf.convert.annotations import brush, drawing
from deeplab_tf.convert.annotations.objects import DEFAULTS, draw_label
from deeplab_tf.convert.options import AnnotationOptions
from deeplab_tf.errors import UserError

SIZE = (files.HEIGHT, files.WIDTH)


def read_labels(path, options=DEFAULTS, size=SIZE):
    """Returns the annotations and the label map of each image by file stem."""
    found = annotations.read(str(path), options)
    ids = {name: i for i, name in enumerate(found.names())} | {"__ignore__": 255}
    ids |= {"_background_": 0, "Background": 0}
    return found, {
        pathlib.PurePath(image.local_name or image.name).stem: draw_label(
            image, ids, *size
        ).label
        for image in found.images
    }


@pytest.mark.parametrize("name", ["COCO", "Label Studio", "CVAT", "VIA"])
def test_formats_are_recognised_by_content(tmp_path, name):
    path = files.WRITERS[name](tmp_path)
    path = path.rename(tmp_path / "no_extension")
    assert annotations.read(str(path)).format == name


# Outlines of one object in a 12x10 image, and the pixels (x, y) they cover.
def block(left, top, right, bottom):
    """Returns the pixels of columns left..right - 1 and rows top..bottom - 1."""
    label = np.zeros((10, 12), np.uint8)
    label[top:bottom, left:right] = 1
    return label


def ring(mask_of):
    y, x = np.mgrid[:10, :12]
    return mask_of(x, y).astype(np.uint8)


MASK = np.zeros((3, 4), bool)
MASK[0, :2] = MASK[2, 3] = True
PLACED = block(0, 0, 0, 0)
PLACED[2:5, 6:10] = MASK

LABELME_SHAPES = {
    # labelme counts the pixels of the outline.
    "polygon": ([[2, 1], [5, 1], [5, 3], [2, 3]], {}, block(2, 1, 6, 4)),
    "rectangle": ([[2, 1], [5, 3]], {}, block(2, 1, 6, 4)),
    "rectangle, corners swapped": ([[5, 1], [2, 3]], {}, block(2, 1, 6, 4)),
    "rectangle of four corners": (
        [[2, 1], [5, 1], [5, 3], [2, 3]],
        {"shape_type": "rectangle"},
        block(2, 1, 6, 4),
    ),
    "circle": (
        [[5, 4], [5, 6]],
        {"shape_type": "circle"},
        ring(lambda x, y: (x - 5) ** 2 + (y - 4) ** 2 <= 5),
    ),
    "mask": (
        [[6, 2], [9, 4]],
        {"shape_type": "mask", "mask": files.encode_labelme_mask(MASK)},
        PLACED,
    ),
    "polygon, half outside": (
        [[-9, -9], [2, -9], [2, 2], [-9, 2]],
        {},
        block(0, 0, 3, 3),
    ),
    "old file without type": (
        [[2, 1], [5, 1], [5, 3], [2, 3]],
        {"shape_type": None},
        block(2, 1, 6, 4),
    ),
}


@pytest.mark.parametrize("name", LABELME_SHAPES)
def test_labelme_shapes(tmp_path, name):
    points, more, truth = LABELME_SHAPES[name]
    kind = name.partition(",")[0]
    shape = files.labelme_shape("cat", points, kind) | more
    content = files.labelme_file("x.jpg", [shape], imageHeight=None, imageWidth=None)
    (tmp_path / "x.json").write_text(json.dumps(content))
    _, labels = read_labels(tmp_path, size=(10, 12))
    np.testing.assert_array_equal(labels["x"], truth)


def test_labelme_ignores_and_clears(tmp_path):
    shapes = [
        files.labelme_shape("cat", files.list_corners(0, 0, 11, 9)),
        files.labelme_shape("_background_", files.list_corners(2, 2, 4, 4)),
        files.labelme_shape("__ignore__", files.list_corners(6, 2, 8, 4)),
        files.labelme_shape("ear", [[1, 1]], "point"),
    ]
    (tmp_path / "x.json").write_text(json.dumps(files.labelme_file("x.jpg", shapes)))
    found, labels = read_labels(tmp_path, size=(10, 12))
    truth = np.ones((10, 12), np.uint8)
    truth[2:5, 2:5] = 0
    truth[2:5, 6:9] = 255
    np.testing.assert_array_equal(labels["x"], truth)
    assert found.names() == ("background", "cat")
    assert found.describe().endswith("3 objects, 1 point skipped")


def to_counts(mask):
    """Returns the run lengths of a mask, column by column, zeros first."""
    values = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], values]))).tolist()
    return np.diff([0, *edges, values.size]).tolist()


SPECKLED = np.random.RandomState(0).rand(*SIZE) < 0.3


@pytest.mark.parametrize(
    "counts", [to_counts(SPECKLED), files.compress_counts(to_counts(SPECKLED))]
)
def test_coco_runs(tmp_path, counts):
    content = files.coco_content({"x.jpg": [("dog", 2, 1, 5, 3)]})
    runs = {"size": list(SIZE), "counts": counts}
    content["annotations"][0]["segmentation"] = runs
    (tmp_path / "x.json").write_text(json.dumps(content))
    _, labels = read_labels(tmp_path / "x.json")
    np.testing.assert_array_equal(labels["x"], 2 * SPECKLED)


def test_run_lengths_equal_pycocotools():
    masks = pytest.importorskip("pycocotools.mask")
    random = np.random.RandomState(0)
    for _ in range(50):
        mask = random.rand(*random.randint(1, 40, 2)) < random.rand()
        runs = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = run_lengths.decompress_counts(runs["counts"].decode())
        np.testing.assert_array_equal(
            run_lengths.decode(counts, *mask.shape, "F"), mask
        )


@pytest.mark.parametrize("text", ["1`", "12o", "ooo"])
def test_runs_that_end_within_a_length_are_refused(text):
    with pytest.raises(ValueError, match="end within a length"):
        run_lengths.decompress_counts(text)


def test_polygons_equal_pycocotools():
    masks = pytest.importorskip("pycocotools.mask")
    random = np.random.RandomState(0)
    for i in range(300):
        height, width = random.randint(1, 60, 2).tolist()
        points = random.uniform(-0.4, 1.4, (random.randint(3, 9), 2)) * (width, height)
        points = np.round(points * (1, 2, 10)[i % 3]) / (1, 2, 10)[i % 3]
        points[1] = points[i % 2]  # some corners twice
        runs = masks.frPyObjects([points.ravel().tolist()], height, width)
        patch = drawing.draw_polygons([points], height, width)
        mask = np.zeros((height, width), bool)
        patch.crop(mask)[...] = patch.mask
        np.testing.assert_array_equal(mask, masks.decode(runs)[..., 0], str(points))


def test_long_outlines_are_traced_in_parts(monkeypatch):
    angle = np.linspace(0, 2 * np.pi, 500)
    points = np.stack([50 + 40 * np.cos(angle), 50 + 30 * np.sin(3 * angle)], -1)
    expected = drawing.draw_polygons([points], 100, 100)
    monkeypatch.setattr(drawing, "_MAX_POINTS", 7)
    np.testing.assert_array_equal(
        drawing.draw_polygons([points], 100, 100).mask, expected.mask
    )


def test_crowds_are_ignored_above_all_objects(tmp_path):
    scene = [("cat", 0, 0, 30, 20), ("dog", 2, 2, 6, 6), ("cat", 10, 0, 39, 29)]
    content = files.coco_content({"x.jpg": scene})
    content["annotations"][2]["iscrowd"] = 1
    (tmp_path / "x.json").write_text(json.dumps(content))
    found, labels = read_labels(tmp_path / "x.json")
    truth = files.draw_truth(scene[:2], {"cat": 1, "dog": 2})
    truth[:29, 10:39] = 255
    np.testing.assert_array_equal(labels["x"], truth)
    assert found.describe().endswith("3 objects, 1 crowd ignored")
    _, labels = read_labels(tmp_path / "x.json", AnnotationOptions(crowd="object"))
    assert set(np.unique(labels["x"])) == {0, 1, 2}


def test_category_background_is_class_0(tmp_path):
    scene = [("cat", 0, 0, 30, 20), ("Background", 2, 2, 6, 6)]
    content = files.coco_content({"x.jpg": scene}, ("cat", "Background", "dog"))
    (tmp_path / "x.json").write_text(json.dumps(content))
    found, labels = read_labels(tmp_path / "x.json")
    assert found.names() == ("background", "cat", "dog")
    truth = files.draw_truth(scene, {"cat": 1, "Background": 0})
    np.testing.assert_array_equal(labels["x"], truth)


def test_brush_decodes_runs_and_literals():
    random = np.random.RandomState(0)
    for share in (0, 0.01, 0.5, 1):
        mask = random.rand(30, 41) < share
        content = bytes(files.encode_brush(mask))
        patch = brush.draw(content, mask.shape, *mask.shape)
        np.testing.assert_array_equal(patch.mask, mask)


LABEL_STUDIO = {
    # A rectangle of 4x2 pixels turned by 90 degrees around its corner (12, 6).
    "turned rectangle": (
        "rectanglelabels",
        {"x": 30, "y": 20, "width": 10, "height": 100 / 15, "rotation": 90},
        (10, 6, 12, 10),
    ),
    # 40x30 pixels: percent of each side.
    "rectangle": (
        "rectanglelabels",
        {"x": 10, "y": 10, "width": 20, "height": 50},
        (4, 3, 12, 18),
    ),
}


@pytest.mark.parametrize("name", LABEL_STUDIO)
@pytest.mark.parametrize("is_min", [False, True])
def test_label_studio_shapes(tmp_path, name, is_min):
    kind, value, box = LABEL_STUDIO[name]
    result = files.label_studio_result(kind, "cat", **value)
    tasks = [files.label_studio_task("http://host/p/x.jpg?a=b", [result], upload=False)]
    if is_min:
        sizes = {k: result[k] for k in ("original_width", "original_height")}
        task = {"id": 1, "annotation_id": 2, "image": "http://host/p/x.jpg?a=b"}
        tasks = [task | {"label": [result["value"] | sizes], "lead_time": 3.5}]
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    _, labels = read_labels(tmp_path / "x.json")
    truth = files.draw_truth([("cat", *box)], {"cat": 1})
    np.testing.assert_array_equal(labels["x"], truth)


@pytest.mark.parametrize(
    ("save", "shape"),
    [
        ("cvat", '<ellipse label="cat" cx="20" cy="15" rx="9" ry="6"/>'),
        ("via", {"name": "ellipse", "cx": 20, "cy": 15, "rx": 9, "ry": 6}),
        ("studio", {"x": 50, "y": 50, "radiusX": 22.5, "radiusY": 20, "rotation": 0}),
    ],
)
def test_ellipses(tmp_path, save, shape):
    path = tmp_path / "x"
    if save == "cvat":
        path.write_text(files.cvat_content({"x.jpg": shape}))
    elif save == "via":
        region = files.via_region("cat", **shape)
        path.write_text(json.dumps({"x": {"filename": "x.jpg", "regions": [region]}}))
    else:
        result = files.label_studio_result("ellipselabels", "cat", **shape)
        path.write_text(json.dumps([files.label_studio_task("x.jpg", [result])]))
    _, labels = read_labels(path)
    y, x = np.mgrid[: files.HEIGHT, : files.WIDTH] + 0.5
    truth = ((x - 20) / 9) ** 2 + ((y - 15) / 6) ** 2 <= 1
    (label,) = labels.values()
    # Outlines are traced in fifths of a pixel. The area is pi 9 6 = 170 pixels.
    assert np.count_nonzero(label != truth) <= 8
    assert abs(int(label.sum()) - 170) <= 8


def one_labelme(shape):
    """Returns a labelme file of one shape."""
    return json.dumps(files.labelme_file("x.jpg", [shape]))


def one_coco(**changes):
    """Returns a COCO file of one object with changes."""
    content = files.coco_content({"x.jpg": [("cat", 2, 1, 5, 3)]})
    content["annotations"][0] |= changes
    return json.dumps(content)


def one_task(kind, label="cat", **value):
    """Returns a Label Studio export of one region."""
    result = files.label_studio_result(kind, label, **value)
    return json.dumps([files.label_studio_task("x.jpg", [result])])


def one_region(label="cat", **shape):
    """Returns a VIA export of one region."""
    region = files.via_region(label, **shape)
    return json.dumps({"x": {"filename": "x.jpg", "regions": [region]}})


def one_shape(text):
    """Returns a CVAT export of one shape."""
    return files.cvat_content({"x.jpg": text})


LINES = {
    "labelme line": one_labelme(files.labelme_shape("cat", [[2, 5], [9, 5]], "line")),
    "labelme linestrip": one_labelme(
        files.labelme_shape("cat", [[2, 5], [4, 5], [9, 5]], "linestrip")
    ),
    "CVAT polyline": one_shape('<polyline label="cat" points="2,5;4,5;9,5"/>'),
    "VIA polyline": one_region(
        name="polyline", all_points_x=[2, 4, 9], all_points_y=[5, 5, 5]
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_need_a_width(tmp_path, name):
    path = tmp_path / "x"
    path.write_text(LINES[name])
    with pytest.raises(UserError, match=r"is a line.* add --line_width=10 to draw"):
        annotations.read(str(path))
    _, labels = read_labels(path, AnnotationOptions(line_width=3))
    truth = files.draw_truth([("cat", 2, 4, 10, 7)], {"cat": 1})
    np.testing.assert_array_equal(labels["x"], truth)


def test_attribute_that_names_the_class(tmp_path):
    region = files.via_region("cat", name="rect", x=2, y=1, width=3, height=2)
    region["region_attributes"]["color"] = "red"
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"x": {"filename": "x.jpg", "regions": [region]}}))
    with pytest.raises(
        UserError, match=r"kind, color; give the one .* --label_attribute=kind"
    ):
        annotations.read(str(path))
    found = annotations.read(str(path), AnnotationOptions(label_attribute="color"))
    assert found.names() == ("background", "red")


FAR = [[0, 0], [9e8, 0], [9e8, 9e8]]
TRIANGLE = [[1, 1], [9, 1], [5, 8]]
TOO_FAR = "far outside the image"
BROKEN = {
    "unknown JSON": (
        '{"a": 1}',
        r"not an annotation file in a known format .labelme, COCO, YOLO",
    ),
    "unknown XML": (
        "<annotation/>",
        "not an annotation file in a known format .labelme, COCO",
    ),
    "text": ("hello", "is not an annotation file in a known format .labelme"),
    "empty": ("", "is not an annotation file in a known format .labelme"),
    "broken JSON": ('{"shapes": [', "line 1, column 13: Expecting value"),
    "deep JSON": ("[" * 10**5, "nested too deeply"),
    "deep XML": ("<a>" * 10**5 + "</a>" * 10**5, "is not an annotation file"),
    "broken XML": ("<annotations><a></annotations>", "is not valid XML: mismatched"),
    "XML entities": ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "document type"),
    "JSON of NaN": (one_labelme({"a": float("nan")}), "NaN is not a number"),
    "two points": (
        one_labelme(files.labelme_shape("cat", [[1, 1], [2, 2]])),
        r"shapes\[0\] \(polygon cat\).points has 2 points; at least 3 are needed",
    ),
    "no label": (one_labelme(files.labelme_shape("", TRIANGLE)), "must be a name"),
    "unknown labelme shape": (
        one_labelme(files.labelme_shape("cat", TRIANGLE, "cube")),
        "unknown shape of 3 points; it must be a polygon",
    ),
    "labelme mask": (
        one_labelme(files.labelme_shape("cat", FAR[:2], "mask", mask="?")),
        "mask is not base64",
    ),
    "text as points": (
        one_labelme(files.labelme_shape("cat", [["1", "2"]] * 3)),
        "must be a list of numbers",
    ),
    "uneven points": (
        one_labelme(files.labelme_shape("cat", [[1, 2], [3, 4], [5]])),
        "must be a list of numbers",
    ),
    "size of 0": (
        json.dumps(files.labelme_file("x.jpg", [], imageHeight=0)),
        "must be positive integers; received 0 and 40",
    ),
    "far labelme": (one_labelme(files.labelme_shape("cat", FAR)), TOO_FAR),
    "far COCO": (one_coco(segmentation=[np.ravel(FAR).tolist()]), TOO_FAR),
    "long outline": (
        one_coco(segmentation=[[0, 0, 40, 30, 0, 30, 40, 0] * 100]),
        "outline is longer than the image has pixels",
    ),
    "huge number": (one_coco(segmentation=[[1, 2, 3, 10**400, 5, 6]]), "too many dig"),
    "odd coordinates": (one_coco(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "x, y, x, y"),
    "flat polygon": (one_coco(segmentation=[1, 2, 3, 4, 5, 6]), "list of lists"),
    "box only": (one_coco(segmentation=[]), "has no segmentation, only a box"),
    "negative runs": (
        one_coco(segmentation={"size": [30, 40], "counts": [-1, 1201]}),
        "its runs do not fill 40x30 pixels",
    ),
    "runs of another size": (
        one_coco(segmentation={"size": [40, 30], "counts": [1200]}),
        "its runs are for a 30x40 image",
    ),
    "runs of 1e9 x 1e9": (
        one_coco(segmentation={"size": [10**9, 10**9], "counts": [10**9] * 9}),
        "its runs do not fill",
    ),
    "broken text of runs": (
        one_coco(segmentation={"size": [30, 40], "counts": "\u00e9"}),
        "its compressed runs are not in COCO's format",
    ),
    "endless text of runs": (
        one_coco(segmentation={"size": [30, 40], "counts": "o" * 10**6}),
        "its compressed runs are not in COCO's format",
    ),
    "unknown category": (one_coco(category_id=99), "category_id 99, which is not in"),
    "unknown image": (one_coco(image_id=[1]), r"image_id \[1\], which is not in"),
    "crowds only": (
        one_coco(iscrowd=1),
        "all cat objects are marked as crowds.*--crowd=obj",
    ),
    "two annotators": (
        json.dumps([{"data": {"image": "x.jpg"}, "annotations": [{}, {}]}]),
        "has 2 annotations; keep one",
    ),
    "two labels": (
        one_task("polygonlabels", "cat", points=TRIANGLE).replace(
            '["cat"]', '["cat", "dog"]'
        ),
        "must have one label",
    ),
    "brush that ends early": (
        one_task("brushlabels", rle=files.encode_brush(np.ones((30, 40)))[:8]),
        "its runs end early",
    ),
    "brush of another image": (
        one_task("brushlabels", rle=files.encode_brush(np.ones((30, 41)))),
        "its runs have 4920 values of 8 bits instead of 4800 of 8 bits",
    ),
    "brush of no bytes": (one_task("brushlabels", rle=[300]), "must be a list of byt"),
    "CVAT video": (
        "<annotations><version>1.1</version><track/></annotations>",
        "export it as CVAT for images 1.1",
    ),
    "CVAT skeleton": (
        one_shape("<skeleton/>"),
        "unknown shape; it must be one of polygon",
    ),
    "CVAT label": (
        one_shape('<box label="cow" xtl="1" ytl="1" xbr="2" ybr="2"/>'),
        "the file does not list the label cow",
    ),
    "CVAT missing attribute": (
        one_shape('<ellipse label="cat" cx="20" cy="15" rx="9"/>'),
        "ellipse 0: ry must be a number; received None",
    ),
    "CVAT NaN": (
        one_shape('<polygon label="cat" points="nan,1;2,2;3,1"/>'),
        "a number that is not finite",
    ),
    "CVAT mask outside": (
        one_shape(
            '<mask label="cat" rle="0, 4" left="39" top="0" width="2" height="2"/>'
        ),
        r"its mask, 2x2 at \(39, 0\), does not fit",
    ),
    "CVAT runs": (
        one_shape(
            '<mask label="cat" rle="-1, 5" left="9" top="0" width="2" height="2"/>'
        ),
        "its runs do not fill 2x2 pixels",
    ),
    "CVAT depth": (
        one_shape('<box label="cat" z_order="1,2" xtl="1" ytl="1" xbr="2" ybr="2"/>'),
        "z_order must be one integer; received '1,2'",
    ),
    "CVAT huge ellipse": (
        one_shape('<ellipse label="cat" cx="1" cy="1" rx="1e8" ry="1"/>'),
        TOO_FAR,
    ),
    "labelme huge circle": (
        one_labelme(files.labelme_shape("cat", [[0, 0], [1e308, 1e308]], "circle")),
        "not finite or is too large",
    ),
    "brush of a huge number": (one_task("brushlabels", rle=2**60), "list of bytes"),
    "VIA shape of a wrong type": (one_region(name=[]), r"unknown shape \[\]"),
    "VIA without class": (one_region("", name="rect"), "must be a name; received ''"),
    "VIA shape": (one_region(name="star"), "unknown shape 'star'"),
    "VIA numbers": (
        one_region(name="rect", x=1, y=2, width="a", height=1),
        "must be a list of numbers",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(tmp_path, name):
    content, message = BROKEN[name]
    path = tmp_path / "x"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_labels(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


YOLO = {
    "1 0.1 0.1 0.5 0.1 0.5 nan": "has a number that is not finite",
    "1 0.1 0.1 0.5 0.1 0.5 x": "could not convert string to float: 'x'",
    "1 0.1 0.1 0.5 0.1 0.5": "odd number of coordinates, 5",
    "1 0.5 0.5 0.2 0.2": "is a box, not a polygon",
    "1 0.1 0.1 0.5 0.1 0.5 40": "coordinates from 0.1 to 40; they must be fractions",
    "2 0.1 0.1 0.5 0.1 0.5 0.5": "has the class '2'; only 0..1 have a name",
    "-1 0.1 0.1 0.5 0.1 0.5 0.5": "has the class '-1'",
}


@pytest.mark.parametrize("line", YOLO)
def test_broken_yolo_lines_are_refused(tmp_path, line):
    folder = files.save_yolo(tmp_path)
    with open(folder / "a.txt", "a") as file:
        file.write(line)
    with pytest.raises(UserError, match=f"line 3 of .*a.txt.*{YOLO[line]}"):
        annotations.read(str(folder))


def test_yolo_needs_class_names(tmp_path):
    folder = files.save_yolo(tmp_path / "deep" / "below")
    (tmp_path / "deep" / "below" / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"there is no data\.yaml or classes.txt"):
        annotations.read(str(folder))


def test_mixed_formats_are_refused(tmp_path):
    files.save_labelme(tmp_path)
    files.save_coco(tmp_path)
    with pytest.raises(UserError, match=r"is in labelme format, but .* is in COCO f"):
        annotations.read(str(tmp_path))


def test_folder_without_annotations_is_refused(tmp_path):
    files.save_images(tmp_path)
    with pytest.raises(
        UserError, match="contains no annotations; the formats are labelme"
    ):
        annotations.read(str(tmp_path))


YOLO_NAMES = {
    "data.yaml": "path: ..\ntrain: images/train\nval: images/val\nnc: 2\n"
    "names: ['cat', 'dog']\nroboflow:\n  license: MIT\n",
    "dataset.yaml": "train: ../train/images\n\nnames:\n  0: cat\n  1: dog\n",
    "obj.names": "cat\ndog\n",
}


@pytest.mark.parametrize("name", YOLO_NAMES)
def test_yolo_class_names(tmp_path, name):
    folder = files.save_yolo(tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / name).write_text(YOLO_NAMES[name])
    for path in (folder, tmp_path):
        assert annotations.read(str(path)).names() == ("background", "cat", "dog")
