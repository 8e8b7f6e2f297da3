"""Converts folders in VOC layout to records, and reports broken ones."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from listing import list_outputs
from PIL import Image
from record_files import read_samples

from deeplab_tf.convert import voc2012
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.programs import run_program


@pytest.fixture
def voc(tiny_voc, tmp_path):
    """A copy of `tiny_voc` that a test may change."""
    return shutil.copytree(tiny_voc, tmp_path / "VOC2012")


def save_label(path, label):
    Image.fromarray(np.asarray(label, np.uint8)).save(path)


@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_records_contain_images_and_labels_unchanged(tiny_voc, tiny_records, split):
    names = (tiny_voc / f"ImageSets/Segmentation/{split}.txt").read_text().split()
    found = read_samples(tiny_records, split)
    assert [sample.name for sample in found] == names
    for name, image, label in found:
        assert image == (tiny_voc / f"JPEGImages/{name}.jpg").read_bytes()
        with Image.open(tiny_voc / f"SegmentationClass/{name}.png") as palette:
            assert palette.mode == "P"
            np.testing.assert_array_equal(label, np.array(palette))


def test_dataset_info_has_the_split_sizes(tiny_records):
    info = records.read_info(tiny_records)
    assert info.name == "pascal_voc_seg" and info.num_classes == 21
    assert info.split_sizes == {"train": 3, "val": 2, "trainval": 5}
    # trainval has shards of 2, 2 and 1 images; two JSON files.
    assert len(list_outputs(tiny_records)) == 3 + 2 + 3 + 2


@pytest.mark.parametrize("list_name", ["trainaug", "train_aug"])
def test_train_aug_uses_the_augmented_labels(voc, tmp_path, list_name):
    stems = ["2007_000003", "2007_000000"]
    (voc / "SegmentationClassAug").mkdir()
    (voc / f"ImageSets/Segmentation/{list_name}.txt").write_text("\n".join(stems))
    for stem in stems:
        with Image.open(voc / f"JPEGImages/{stem}.jpg") as image:
            label = np.full(image.size[::-1], 5)
        save_label(voc / f"SegmentationClassAug/{stem}.png", label)
    sizes = voc2012.convert(str(voc), str(tmp_path / "out"))
    assert sizes == {"train": 3, "val": 2, "trainval": 5, "train_aug": 2}
    found = read_samples(tmp_path / "out", "train_aug")
    assert [sample.name for sample in found] == stems
    assert all((sample.label == 5).all() for sample in found)
    train = read_samples(tmp_path / "out", "train")
    assert not all((sample.label == 5).all() for sample in train)


@pytest.mark.parametrize("missing", ["folder", "list"])
def test_train_aug_needs_both_list_and_labels(voc, tmp_path, missing):
    if missing == "folder":
        (voc / "ImageSets/Segmentation/trainaug.txt").write_text("2007_000000")
    else:
        (voc / "SegmentationClassAug").mkdir()
    sizes = voc2012.convert(str(voc), str(tmp_path / "out"))
    assert list(sizes) == ["train", "val", "trainval"]


def test_dataset_info_in_the_folder_sets_the_classes(voc, tmp_path):
    for path in (voc / "SegmentationClass").iterdir():
        with Image.open(path) as old:
            label = np.full(old.size[::-1], 1)
        label[0, 0] = 9
        save_label(path, label)
    info = DatasetInfo("toys", ("floor", "ball"), ignore_label=9)
    records.write_info(info, str(voc))
    voc2012.convert(str(voc), str(tmp_path / "out"), num_shards=2)
    written = records.read_info(str(tmp_path / "out"))
    assert (written.name, written.class_names) == ("toys", ("floor", "ball"))
    assert written.ignore_label == 9
    label[0, 0] = 255
    save_label(path, label)
    with pytest.raises(UserError, match=r"the value 255; valid labels are 0..1 and 9 "):
        voc2012.convert(str(voc), str(tmp_path / "again"))


def remove_label(voc):
    (voc / "SegmentationClass/2007_000001.png").unlink()


def remove_image(voc):
    (voc / "JPEGImages/2007_000001.jpg").unlink()


def add_label(voc):
    save_label(voc / "SegmentationClass/2007_000099.png", np.zeros((3, 3)))


def shrink_label(voc):
    save_label(voc / "SegmentationClass/2007_000003.png", np.zeros((50, 60)))


def set_label(value):
    def change(voc):
        path = voc / "SegmentationClass/2007_000004.png"
        with Image.open(path) as image:
            label = np.array(image)
        label[-1, -1] = value
        save_label(path, label)

    return change


def truncate(name):
    def change(voc):
        content = (voc / name).read_bytes()
        (voc / name).write_bytes(content[: len(content) * 4 // 5])

    return change


def save_label_as_rgb(voc):
    path = voc / "SegmentationClass/2007_000002.png"
    with Image.open(path) as image:
        painted = image.convert("RGB")
    painted.save(path)


def empty_list(voc):
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n")


def corrupt_list(voc):
    (voc / "ImageSets/Segmentation/val.txt").write_bytes(b"2007_\xff")


def remove_lists(voc):
    for path in (voc / "ImageSets/Segmentation").iterdir():
        path.unlink()


def rename_images(voc):
    (voc / "JPEGImages").rename(voc / "Images")


# Change that breaks the dataset, and pattern of the error message.
BROKEN = {
    "missing label": (
        remove_label,
        "JPEGImages/2007_000001.jpg has no label .*/SegmentationClass/2007_000001.png",
    ),
    "label without image": (
        add_label,
        "SegmentationClass/2007_000099.png has no image .*/JPEGImages",
    ),
    "image listed but missing": (
        remove_image,
        "/train.txt lists 2007_000001, but .*/JPEGImages has no such image",
    ),
    "label of another size": (
        shrink_label,
        "SegmentationClass/2007_000003.png is 60x50, but .*2007_000003.jpg is 61x50",
    ),
    "value above the classes": (
        set_label(21),
        "SegmentationClass/2007_000004.png contains the value 21; valid labels "
        "are 0..20 and 255",
    ),
    "value below the ignored value": (
        set_label(254),
        "SegmentationClass/2007_000004.png contains the value 254; valid labels "
        "are 0..20 and 255",
    ),
    "truncated JPEG": (
        truncate("JPEGImages/2007_000001.jpg"),
        "JPEGImages/2007_000001.jpg is broken: .*truncated",
    ),
    "truncated PNG": (
        truncate("SegmentationClass/2007_000001.png"),
        "SegmentationClass/2007_000001.png is broken: ",
    ),
    "RGB label": (
        save_label_as_rgb,
        "SegmentationClass/2007_000002.png has RGB colours; a label must be a PNG with",
    ),
    "empty split": (empty_list, "Segmentation/val.txt lists no images: the split is "),
    "list that is not UTF-8": (
        corrupt_list,
        "Segmentation/val.txt: line 1 is not UTF-8",
    ),
    "no lists": (
        remove_lists,
        "ImageSets/Segmentation has none of train.txt, val.txt, t",
    ),
    "wrong voc_root": (
        rename_images,
        "--voc_root=.*/VOC2012 has no folder .*/JPEGImages;",
    ),
}


@pytest.fixture
def command(voc, tmp_path):
    return ["voc2012.py", f"--voc_root={voc}", f"--output_dir={tmp_path}/out"]


def assert_one_line(stderr, message):
    """Checks that stderr is one line, apart from tqdm's bars, and matches."""
    lines = [x for x in stderr.splitlines() if x and not x.startswith("records: ")]
    assert len(lines) == 1, lines
    assert re.search(f"^voc2012.py: .*{message}", lines[0])


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_dataset_is_refused_before_writing(voc, command, tmp_path, capfd, kind):
    change, message = BROKEN[kind]
    change(voc)
    with pytest.raises(SystemExit) as result:
        run_program("deeplab_tf.programs.convert.voc2012", command)
    # The interpreter prints the code of `SystemExit` and exits with status 1.
    assert_one_line(f"{capfd.readouterr().err}\n{result.value.code}", message)
    assert os.listdir(tmp_path) == ["VOC2012"]


def test_program_prints_one_error_line(voc, command, tmp_path):
    change, message = BROKEN["truncated JPEG"]
    change(voc)
    command = [sys.executable, "-m", "datasets.voc2012", *command[1:]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert_one_line(result.stderr, message)
    assert os.listdir(tmp_path) == ["VOC2012"]


def test_program_prints_split_sizes_and_content_hashes(command, tmp_path, capsys):
    run_program("deeplab_tf.programs.convert.voc2012", command)
    *contents, last = capsys.readouterr().out.splitlines()
    assert last == f"{tmp_path}/out: train 3, val 2, trainval 5 images"
    hashes = records.read_info(f"{tmp_path}/out").content_hashes
    assert len(set(hashes.values())) == 3 and len(hashes["val"]) == 64
    assert contents == [
        f"content hash of {split}: {hashes[split]}"
        for split in ("train", "val", "trainval")
    ]


def test_real_sample_has_expected_splits_and_shards(voc_records):
    sizes = {"train": 93, "val": 60, "trainval": 153, "train_aug": 100}
    assert records.read_info(voc_records).split_sizes == sizes
    for split, size in sizes.items():
        paths = records.find_shards(voc_records, split)
        assert len(paths) == 4
        assert sum(1 for _ in tf.data.TFRecordDataset(paths)) == size
