"""Problems between the splits of a dataset, and the doctor's report."""

import html
import json
import shlex

import numpy as np
import pytest
from drawn_scenes import NUM_CLASSES, draw_scene
from html_pages import Page
from PIL import Image
from program_runs import run
from record_files import make_record, write_shards

from deeplab_tf import flags
from deeplab_tf.data import records, split_checks, suggestions, validation
from deeplab_tf.data.class_checks import find_odd_names, is_header
from deeplab_tf.data.info import DATASETS, DatasetInfo
from deeplab_tf.data.sources import open_split
from deeplab_tf.programs import train

DOCTOR = "deeplab_tf.programs.doctor"
EVIL = "<b>ball</b> & 'co'"
INFO = DatasetInfo("my toys!", ("floor", EVIL, "cat", "dog"))


def make_scenes(seeds, change=lambda image, label: (image, label)):
    return [
        make_record(*change(*draw_scene(seed)), f"scene_{seed:03d}") for seed in seeds
    ]


def write_dataset(folder, info=INFO, **splits):
    for split, contents in splits.items():
        write_shards(folder, *contents, split=split)
    records.write_info(info, str(folder))
    return folder


def examine(folder):
    splits = sorted({path.name.split("-")[0] for path in folder.glob("*.tfrecord")})
    return [
        validation.examine_split(open_split(None, str(folder), split), split)
        for split in splits
    ]


def compare(folder, info=INFO):
    return split_checks.compare_splits(examine(folder), info)


def run_doctor(folder, *arguments):
    """Returns the output of the doctor and its exit status."""
    try:
        return run(DOCTOR, f"--dataset_dir={folder}", "--samples=2", *arguments), 0
    except SystemExit as error:
        return "", error.code


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("name", "the header of a table"),
        ("Class Names", "the header of a table"),
        ("id,name,r,g,b", "the header of a table"),
        ("0", "a number"),
        ("1 cat", "an id and a name"),
        ("2,dog", "an id and a name"),
        ("3: tree house", "an id and a name"),
        ("cat: 4", "an id and a name"),
        ("road 128 64 128", "a name and a colour"),
        ("road:128,64,128", "a name and a colour"),
        ("road #804080", "a name and a colour"),
    ],
)
def test_odd_class_names_are_reported(name, meaning):
    found = find_odd_names(DatasetInfo("a", ("floor", name, "wall")))
    assert found == [f"class 1 is {name!r}, which looks like {meaning}"]
    assert is_header(name) == ("header" in meaning)


@pytest.mark.parametrize("name", ["class_7", "zone 3", "2-wheeler", "bag, box", "R"])
def test_usual_class_names_are_not_reported(name):
    assert find_odd_names(DatasetInfo("a", (name, "wall"))) == []


@pytest.mark.parametrize("dataset", DATASETS)
def test_names_of_known_datasets_are_not_reported(dataset):
    assert find_odd_names(DATASETS[dataset]) == []


@pytest.mark.parametrize("has_last_class", [False, True])
def test_header_is_an_error_if_the_last_class_is_in_no_image(tmp_path, has_last_class):
    info = DatasetInfo("a", ("name", "floor", "ball", "cat", "dog"))
    last = make_record(np.zeros((32, 32, 3)), np.full((32, 32), 4, np.uint8), "last")
    contents = make_scenes(range(2)) + has_last_class * [last]
    found = compare(write_dataset(tmp_path, info, train=contents), info)
    (problem,) = [p for p in found if p.kind in ("header", "names")]
    assert problem.kind == ("names" if has_last_class else "header")
    assert validation.is_safe(found) == has_last_class
    assert has_last_class or "no image has the last class, 'dog'" in problem.text


def test_classes_that_only_one_split_has_are_reported(tmp_path):
    def fill(value):
        return lambda image, label: (image, np.full_like(label, value) * (label > 0))

    write_dataset(
        tmp_path, train=make_scenes([1], fill(1)), val=make_scenes([2], fill(2))
    )
    assert compare(tmp_path) == [
        ("unseen", "train", "lacks classes that val has: cat"),
        ("unscored", "val", f"lacks classes that train has: {EVIL}"),
    ]


def test_similar_images_in_different_splits_are_reported(tmp_path):
    def darken(image, label):
        return image // 10 * 9, label

    def mirror(image, label):
        return image[:, ::-1], label[:, ::-1]

    write_dataset(
        tmp_path,
        train=make_scenes(range(6)),
        val=make_scenes([3], darken) + make_scenes([20, 4], mirror) + make_scenes([5]),
    )
    path = f"{tmp_path}/{{}}-00000-of-00001.tfrecord"
    train_path, val_path = path.format("train"), path.format("val")
    found = [p for p in compare(tmp_path) if p.kind in ("similar", "leak")]
    assert found == [
        (
            "leak",
            "train",
            f"contains 1 image of val, such as record 3 of {val_path} (scene_005)",
        ),
        (
            "similar",
            "train",
            f"record 3 of {train_path} (scene_003) looks like record 0 of {val_path} "
            "(scene_003) of val",
        ),
        (
            "similar",
            "train",
            f"record 4 of {train_path} (scene_004) looks like record 2 of {val_path} "
            "(scene_004) of val, mirrored",
        ),
    ]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda masks: masks, None, ""),
        (lambda masks: masks[:, :, ::-1], "misplaced", "better when mirrored left"),
        (lambda masks: np.roll(masks, 1, 0), "misplaced", "those of the next image"),
        (lambda masks: np.roll(masks, 5, 0), "unrelated", "no better than other im"),
    ],
)
def test_masks_that_do_not_fit_are_reported(tmp_path, change, kind, message):
    images, masks = map(np.stack, zip(*map(draw_scene, range(16)), strict=True))
    names = [f"{i:02d}" for i in range(16)]
    contents = list(map(make_record, images, change(masks), names))
    # Records may be in any order.
    np.random.RandomState(0).shuffle(contents)
    (report,) = examine(write_dataset(tmp_path, train=contents))
    if kind is None:
        assert report.problems == []
        return
    (problem,) = report.problems
    assert problem.kind == kind and message in problem.text
    assert validation.is_safe([problem]) == (kind == "unrelated")
    # A quick check only warns, because it sees a sample.
    source = open_split(None, str(tmp_path), "train")
    sample = validation.examine_split(source, "train", 14)
    assert {p.kind for p in sample.problems} == {"unlikely"}


def test_tiny_and_huge_objects_are_reported(tmp_path):
    label = np.zeros((96, 128), np.uint8)
    label[::40, ::40] = 1  # dots
    label[50:60, 10:100] = 2  # 90 pixels long
    label[70:90, 10:30] = 3
    contents = [make_record(draw_scene(0)[0], label)]
    (report,) = examine(write_dataset(tmp_path, train=contents))
    assert validation.find_size_problems(report, INFO, (65, 65), 16) == [
        ("tiny", "train", f"objects smaller than 16x16 pixels: {EVIL} (100%)"),
        ("huge", "train", "objects longer than 65 pixels: floor (100%), cat (100%)"),
    ]
    assert validation.find_size_problems(report, INFO, (65, 129), 1) == []


def make_report(sizes, images_with, pixels, split="train"):
    """Returns a report of a split with images of given sizes and three classes."""
    report = validation.SplitReport(split, sum(sizes.values()))
    report.sizes.update(sizes)
    report.objects = validation.ObjectSizes(NUM_CLASSES)
    report.images_with[:NUM_CLASSES] = images_with
    report.values[:NUM_CLASSES] = pixels
    report.image_pixels[:NUM_CLASSES] = sum(pixels)
    return report


@pytest.mark.parametrize(
    ("sizes", "crop"),
    [
        ({(360, 480): 9}, (369, 481)),  # 23 * 16 + 1 and 30 * 16 + 1
        ({(375, 500): 5, (500, 375): 5}, (449, 449)),  # medians of 437.5
        ({(1024, 2048): 3}, (513, 513)),
        ({(20, 129): 3}, (65, 129)),
    ],
)
def test_crop_is_a_multiple_of_the_stride_plus_one(sizes, crop):
    report = make_report(sizes, [3] * 4, [10] * 4)
    suggestion = suggestions.suggest_training([report], INFO)
    assert suggestion.crop_size == crop


def test_crop_grows_with_the_objects():
    report = make_report({(1024, 2048): 3}, [3] * 4, [10] * 4)
    report.objects.add(np.array([[1, 500, 900]] * 3 + [[2, 5, 5]] * 2))
    assert suggestions.suggest_training([report], INFO).crop_size == (769, 769)


@pytest.mark.parametrize(
    ("images", "rarest", "steps"),
    [
        (30, 20, 1000),  # at least
        (1600, 800, 10_000),  # 50 epochs of 200 steps
        (1600, 10, 20_000),  # 1000 samples of the rarest class are 100 epochs
        (1600, 1, 30_000),  # at most
    ],
)
def test_steps_show_every_class_often_enough(images, rarest, steps):
    report = make_report({(96, 96): images}, [images, rarest, images, 0], [10] * 4)
    suggestion = suggestions.suggest_training([report], INFO)
    assert suggestion.steps == steps
    assert suggestion.epochs == steps * 8 / images


def test_weights_are_roots_of_the_median_frequency_weights():
    # All classes are in all images: frequencies 0.6, 0.2, 0.2 and 0.01, median 0.2.
    report = make_report({(96, 96): 9}, [9] * 4, [60, 20, 20, 1])
    expected = [0.58, 1, 1, 4.47]
    assert suggestions.suggest_training([report], INFO).label_weights == (*expected,)
    report = make_report({(96, 96): 9}, [9] * 4, [60, 20, 20, 7])
    suggestion = suggestions.suggest_training([report], INFO)
    assert suggestion.label_weights == ()
    assert "equal label weights" in suggestion.describe(INFO)[2]


def test_splits_are_chosen_by_name():
    names = ("trainval", "val_small", "test", "train_aug")
    reports = [make_report({(9, 9): 1}, [1] * 4, [1] * 4, name) for name in names]
    suggestion = suggestions.suggest_training(reports, INFO)
    assert (suggestion.split, suggestion.eval_split) == ("train_aug", "val_small")
    assert suggestions.suggest_training(reports[1:3], INFO) is None


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """The output of the doctor on a dataset with a warning, and the folder."""
    folder = tmp_path_factory.mktemp("my records") / "it's"
    write_dataset(folder, train=make_scenes(range(12)), val=make_scenes([40, 41]))
    write_shards(folder, *make_scenes([0]), split="val_2")
    with pytest.raises(SystemExit):  # scene 0 is in both train and val_2
        run(DOCTOR, f"--dataset_dir={folder}", "--samples=0", "--report=false")
    out = run(DOCTOR, f"--dataset_dir={folder}", "--samples=2", "--splits=train,val")
    return out, folder


def test_suggested_command_is_accepted_by_the_program(examined):
    out, folder = examined
    command = out[out.index("deeplab-train" if "deeplab-train" in out else "python ") :]
    program, *arguments = shlex.split(command.partition("\n\nsafe")[0])
    arguments = arguments[1:] if program == "python" else arguments
    values = train.define_flags()
    values(["train.py", *arguments])
    assert values.dataset_dir == str(folder) and values.train_logdir == "logs_my_toys_"
    assert flags.read_size(values, "train_crop_size") == (97, 129)
    assert values.training_number_of_steps == 1000
    assert values.eval_interval_steps == 50


@pytest.mark.slow
def test_suggested_command_trains(examined, tmp_path, shallow):
    out, _ = examined
    command = shlex.split(out[out.index("--dataset_dir=") :].partition("\n\nsafe")[0])
    command = [word for word in command if "checkpoint" not in word]
    shorter = ("--training_number_of_steps=2", "--eval_interval_steps=2")
    run("deeplab_tf.programs.train", *command, f"--train_logdir={tmp_path}", *shorter)
    history = (tmp_path / "history.jsonl").read_text().splitlines()
    assert "miou" in json.loads(history[-1])


def test_page_has_tables_findings_and_images(examined):
    page = Page((examined[1] / "doctor.html").read_text())
    assert page.headings == [
        *("Findings", "Images", "Labels", "Objects", "Suggested training"),
        *("Samples of train", "Samples of val", "How to reproduce"),
    ]
    assert html.escape(EVIL, quote=False).partition("'")[0] in page.source
    assert EVIL not in page.source
    shown = [row for row in page.rows if row[0] == EVIL]
    assert len(shown) == 2  # pixels and objects
    assert [row[:3] for row in page.rows if row[0] == "val"] == [["val", "2", "128"]]
    assert len(page.images) == 4
    assert (
        "safe to train" in page.text and "--training_number_of_steps=1000" in page.text
    )
    with Image.open(examined[1] / "doctor.png") as sheet:
        assert sheet.width > 2 * 128


def test_page_of_an_unsafe_dataset_lists_the_errors(tmp_path):
    bad = make_scenes([7], lambda image, label: (image, label + 100))
    write_dataset(tmp_path, train=make_scenes(range(3)) + bad)
    assert run_doctor(tmp_path) == ("", 1)
    page = Page((tmp_path / "doctor.html").read_text())
    assert "not safe to train" in page.text
    assert "ERROR: label values that are not classes (1)" in page.text
    assert ["(no class)", "100"] in [row[:2] for row in page.rows]


def test_files_can_be_turned_off(tmp_path):
    write_dataset(tmp_path / "data", train=make_scenes(range(3)))
    for given, names in {
        ("--report=false",): ["doctor.png"],
        ("--samples=0",): ["doctor.html"],
        ("--samples=0", "--report=false"): None,
    }.items():
        out = tmp_path / "".join(given)
        assert run_doctor(tmp_path / "data", f"--output_dir={out}", *given)[1] == 0
        written = sorted(p.name for p in out.glob("doctor.*")) if out.exists() else None
        assert written == names
