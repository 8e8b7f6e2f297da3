"""The generated shapes dataset: scenes, files and the colour baseline."""

import json
import pathlib

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_tf.convert import shapes
from deeplab_tf.data.info import DatasetInfo, voc_colors
from deeplab_tf.errors import UserError
from deeplab_tf.programs import run_program
from deeplab_tf.programs.convert.color_baseline import score_color_baseline

ROOT = pathlib.Path(__file__).parents[2]
SIZE = (48, 64)


def make_scenes(count, image_size=(96, 96)):
    """Returns `count` scenes, each from its own seed."""
    return [
        shapes.draw_scene(np.random.default_rng(i), image_size) for i in range(count)
    ]


def read_names(root, split):
    """Returns the lines of a list file."""
    return (root / f"ImageSets/Segmentation/{split}.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A written data set of 4, 3 and 2 small images."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    shapes.write(root, 4, 3, 2, image_size=SIZE, seed=7)
    return root


@pytest.mark.parametrize("image_size", [(128, 128), (33, 61), (90, 32)])
def test_scene_has_requested_size_and_types(image_size):
    image, label = shapes.draw_scene(np.random.default_rng(3), image_size)
    assert image.shape == (*image_size, 3)
    assert label.shape == image_size
    assert image.dtype == label.dtype == np.uint8
    assert image.std() > 10


def test_labels_contain_every_class_and_void():
    found = np.unique([label for _, label in make_scenes(30)])
    np.testing.assert_array_equal(found, [0, 1, 2, 3, 4, 5, 6, 255])
    assert len(shapes.CLASS_NAMES) == 7


def test_different_classes_never_touch():
    for _, label in make_scenes(30):
        for a, b in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            assert np.all((a == b) | (a == 255) | (b == 255))


def test_void_covers_two_pixels_on_either_side_of_contours():
    top = np.zeros((9, 20), np.uint8)
    top[:, 6:] = 1
    top[:, 14:] = 2
    square = shapes._Object(2, None, 0, 0, None)
    label = shapes._make_label([square, square], top)
    # Contours lie between columns 5|6 and 13|14.
    expected = [0] * 4 + [255] * 4 + [2] * 4 + [255] * 4 + [2] * 4
    np.testing.assert_array_equal(label, [expected] * 9)


def test_objects_are_half_visible_and_within_size_limits():
    for seed in range(30):
        objects, top = shapes._place_objects(np.random.default_rng(seed), (100, 140))
        assert 2 <= len(objects) <= 5
        for number, item in enumerate(objects, 1):
            assert 18 <= item.size <= 46
            assert np.sum(top == number) >= 0.5 * item.size**2
            assert np.all(item.mask[top == number] > 127)


@pytest.mark.parametrize("class_name", shapes.CLASS_NAMES[1:])
def test_outlines_enclose_unit_area(class_name):
    outline, _ = shapes._CLASSES[class_name]
    mask = np.zeros((1600, 1600), np.uint8)
    # One unit is 400 pixels, squared 160,000; drawing adds the edge.
    cv2.fillPoly(mask, [np.int32(400 * contour + 800) for contour in outline], 1)
    assert int(mask.sum()) == pytest.approx(160_000, rel=0.02)


def test_hue_depends_on_class_but_overlaps_with_neighbours():
    rng = np.random.default_rng(0)
    ground = np.zeros(3, np.float32)
    for class_id in range(1, 7):
        colors = [
            [shapes._choose_object_color(rng, class_id, ground) for _ in range(400)]
        ]
        hue = np.deg2rad(cv2.cvtColor(np.float32(colors), cv2.COLOR_RGB2HSV)[0, :, 0])
        class_hue = 60 * (class_id - 1)
        difference = np.rad2deg(np.angle(np.exp(1j * (hue - np.deg2rad(class_hue)))))
        assert abs(difference.mean()) < 8
        # Normal with deviation 32 beyond half a class distance: P(|z| > 30/32) = 0.35;
        # choosing the brightest of three on a black background changes it a little.
        assert 0.2 < np.mean(abs(difference) > 30) < 0.5


def test_same_seed_gives_same_files_for_any_count(folder, tmp_path):
    shapes.write(tmp_path / "more", 6, 1, 3, image_size=SIZE, seed=7)
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        for name in read_names(folder, split)[:count]:
            for file in (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"):
                assert (tmp_path / "more" / file).read_bytes() == (
                    folder / file
                ).read_bytes()


def test_different_seeds_give_different_scenes(folder, tmp_path):
    shapes.write(tmp_path / "other", 1, 1, 1, image_size=SIZE, seed=8)
    file = "JPEGImages/train_00000.jpg"
    assert (tmp_path / "other" / file).read_bytes() != (folder / file).read_bytes()


def test_lists_name_every_file_once(folder):
    assert read_names(folder, "train") == [f"train_0000{i}" for i in range(4)]
    assert read_names(folder, "val") == [f"val_0000{i}" for i in range(3)]
    assert read_names(folder, "test") == ["test_00000", "test_00001"]
    assert read_names(folder, "trainval") == read_names(folder, "train") + read_names(
        folder, "val"
    )
    members = {*read_names(folder, "trainval"), *read_names(folder, "test")}
    assert {p.stem for p in (folder / "JPEGImages").iterdir()} == members
    assert {p.stem for p in (folder / "SegmentationClass").iterdir()} == members
    assert sorted(p.name for p in folder.iterdir()) == [
        "ImageSets",
        "JPEGImages",
        "SegmentationClass",
        "dataset_info.json",
    ]


def test_no_image_is_in_two_splits(folder):
    contents = {p.read_bytes() for p in (folder / "JPEGImages").iterdir()}
    assert len(contents) == 9


def test_dataset_info_describes_the_folder(folder):
    info = DatasetInfo.from_json((folder / "dataset_info.json").read_text())
    assert info.name == "shapes"
    read_names = "background disc cross triangle ring star square"
    assert info.class_names == tuple(read_names.split())
    assert info.ignore_label == 255
    assert info.split_sizes == {"train": 4, "val": 3, "test": 2, "trainval": 7}


def test_files_contain_the_scene(folder):
    image, label = shapes.draw_scene(np.random.default_rng((7, 1, 2)), SIZE)
    png = Image.open(folder / "SegmentationClass/val_00002.png")
    assert png.mode == "P"
    np.testing.assert_array_equal(np.asarray(png), label)
    palette = np.reshape(png.getpalette(), (256, 3))
    np.testing.assert_array_equal(palette, voc_colors(256))
    np.testing.assert_array_equal(np.asarray(png.convert("RGB")), palette[label])
    jpeg = Image.open(folder / "JPEGImages/val_00002.jpg")
    assert jpeg.mode == "RGB"
    # Channels are in order and compression loses little; swapped, the error is large.
    assert np.abs(np.asarray(jpeg).astype(int) - image).mean() < 8
    assert np.abs(np.asarray(jpeg).astype(int) - image[..., ::-1]).mean() > 16


def write_flat_pair(root, name, left, right, label):
    """Writes a 32x32 image of two flat halves and its label."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16], image[:, 16:] = left, right
    shapes._save(root, name, image, np.asarray(label, np.uint8))
    (root / f"ImageSets/Segmentation/{name}.txt").write_text(f"{name}\n")


def test_baseline_is_the_miou_of_nearest_mean_colors(tmp_path):
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / part).mkdir(parents=True)
    info = DatasetInfo("flat", ("red", "blue", "absent"))
    (tmp_path / "dataset_info.json").write_text(info.to_json())
    label = np.zeros((32, 32))
    label[:, 16:] = 1
    write_flat_pair(tmp_path, "train", (200, 20, 20), (20, 20, 200), label)
    # Of 512 reddish pixels 128 are labelled blue and 64 void; of 512 bluish pixels
    # 256 are void. Red: 320 / 448. Blue: 256 / 384. The third class does not occur.
    label[:8, :16] = 1
    label[8:12, :16] = 255
    label[16:, 16:] = 255
    write_flat_pair(tmp_path, "test", (180, 60, 60), (60, 60, 180), label)
    expected = (320 / 448 + 256 / 384) / 2
    assert score_color_baseline(tmp_path) == pytest.approx(expected)


def test_color_baseline_is_low(tmp_path):
    shapes.write(tmp_path / "data", 80, 1, 40, image_size=(64, 64))
    assert 0.25 < score_color_baseline(tmp_path / "data") < 0.4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_images": 0}, "val_images must be at least 1; received 0"),
        ({"image_size": (64, 31)}, r"at least 32 each; received \(64, 31\)"),
        ({"image_size": (64,)}, r"height,width of at least 32 each; received \(64,\)"),
        ({"seed": -1}, "seed must not be negative; received -1"),
    ],
)
def test_invalid_settings_are_refused_before_writing(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        shapes.write(tmp_path / "data", **settings)
    assert list(tmp_path.iterdir()) == []


def run_shapes(capsys, *arguments):
    """Runs the program; returns its exit status, output lines and error lines."""
    status, error = 0, ""
    try:
        run_program("deeplab_tf.programs.convert.shapes", ["shapes", *arguments])
    except SystemExit as exit:
        status, error = 1, exit.code
    return status, capsys.readouterr().out.splitlines(), error.splitlines()


def test_program_writes_into_an_empty_folder(tmp_path, capsys):
    counts = ("--train_images=2", "--val_images=1", "--test_images=1")
    data = tmp_path / "data"
    data.mkdir()
    status, out, err = run_shapes(
        capsys, f"--output_dir={data}", *counts, "--image_size=32,40", "--seed=5"
    )
    assert (status, err) == (0, [])
    assert out == [
        f"{data}: train 2, val 1, test 1 images",
        "mIoU on val if labelled by the nearest mean colour: "
        f"{score_color_baseline(data, eval_split='val'):.3f}",
    ]
    _, label = shapes.draw_scene(np.random.default_rng((5, 0, 1)), (32, 40))
    png = Image.open(data / "SegmentationClass/train_00001.png")
    np.testing.assert_array_equal(np.asarray(png), label)
    assert json.loads((data / "dataset_info.json").read_text())["split_sizes"] == {
        "train": 2,
        "val": 1,
        "test": 1,
        "trainval": 3,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir=new", "--colour=1"], "colour"),
        (["--output_dir=new", "--val_images=few"], "few"),
        (["--output_dir=new", "--image_size=64,wide"], "64,wide"),
        (["--output_dir=new", "--image_size=64"], "expected height and width"),
        (["--output_dir=new", "--image_size="], "at least 32 each; received ()"),
        (["--output_dir=new", "more"], "unexpected argument 'more'"),
        (["--output_dir=full"], "output_dir must be empty or new"),
        (["--output_dir=full/file"], "output_dir must be a folder"),
        (["--output_dir=full/file/new"], "full/file"),
        ([], "--output_dir is required: folder to create"),
    ],
)
def test_program_prints_one_error_line(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("kept")
    status, out, err = run_shapes(capsys, *arguments)
    assert (status, out, len(err)) == (1, [], 1)
    assert err[0].startswith("shapes: ")
    assert message in err[0]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full"]
    assert (tmp_path / "full/file").read_text() == "kept"


def test_failed_program_leaves_no_files(tmp_path, monkeypatch, capsys):
    def save(folder, *_):
        assert (folder / "JPEGImages").is_dir()
        raise OSError("no space left")

    monkeypatch.setattr(shapes, "_save", save)
    status, _, err = run_shapes(capsys, f"--output_dir={tmp_path / 'data'}")
    assert (status, err) == (1, ["shapes: no space left"])
    assert list(tmp_path.iterdir()) == []
