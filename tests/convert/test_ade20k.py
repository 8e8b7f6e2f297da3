"""Converts ADE20K to records with 151 and with 150 classes."""

import os

import numpy as np
import pytest
import small_datasets
from listing import list_outputs
from record_files import read_samples

from deeplab_tf.convert import ade20k
from deeplab_tf.data import records
from deeplab_tf.data.info import dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.programs import run_program


@pytest.fixture
def root(tmp_path):
    return small_datasets.write_ade20k(tmp_path / "ADEChallengeData2016")


def test_151_classes_keep_the_label_values(root, tmp_path):
    out = tmp_path / "out"
    assert ade20k.convert(str(root), str(out)) == {"train": 2, "val": 1}
    found = read_samples(out, "train")
    names = [sample.name for sample in found]
    assert names == ["ADE_train_00000001", "ADE_train_00000002"]
    path = root / "images/training/ADE_train_00000002.jpg"
    assert found[1].image == path.read_bytes()
    # The first label begins with 0, 1, 2, the second with 1, 2, 3.
    assert found[0].label[0, :3].tolist() == [0, 1, 2]
    assert found[1].label[0, :3].tolist() == [1, 2, 3]
    assert all(np.unique(x.label).tolist() == list(range(151)) for x in found)
    info = records.read_info(str(out))
    assert (info.name, info.num_classes, info.ignore_label) == ("ade20k", 151, 0)
    assert info.split_sizes == {"train": 2, "val": 1}
    # 600 pixels are 3 * 151 + 147: the values 0..146 occur four times, the rest three
    # times. 0 is ignored.
    assert info.class_pixels["val"] == [0] + [4] * 146 + [3] * 4


def test_150_classes_start_at_0(root, tmp_path):
    out = tmp_path / "out"
    ade20k.convert(str(root), str(out), num_classes=150)
    label = read_samples(out, "train")[0].label
    assert label[0, :3].tolist() == [255, 0, 1]
    assert np.unique(label).tolist() == [*range(150), 255]
    info = records.read_info(str(out))
    assert (info.name, info.num_classes, info.ignore_label) == ("ade20k_150", 150, 255)
    assert info.class_pixels["val"] == [4] * 146 + [3] * 4


def test_class_names_match_the_challenge():
    official, shifted = dataset_info("ade20k"), dataset_info("ade20k_150")
    assert official.class_names == ("background", *shifted.class_names)
    names = {1: "wall", 9: "windowpane", 13: "person", 59: "screen door"}
    names |= {75: "computer", 100: "buffet", 131: "screen", 150: "flag"}
    assert {value: official.class_names[value] for value in names} == names


def remove_file(name):
    return lambda root: (root / name).unlink()


def set_value(value):
    def change(root):
        label = np.full((20, 30), 3)
        label[-1, -1] = value
        path = root / "annotations/training/ADE_train_00000002.png"
        small_datasets.save_label(path, label)

    return change


def rename_annotations(root):
    (root / "annotations").rename(root / "labels")


# Change that breaks the dataset, and pattern of the error message.
BROKEN = {
    "image without label": (
        remove_file("annotations/training/ADE_train_00000002.png"),
        "/images/training/ADE_train_00000002.jpg has no label "
        ".*/annotations/training/ADE_train_00000002.png",
    ),
    "no images": (
        remove_file("images/validation/ADE_val_00000001.jpg"),
        "/images/validation has no files \\*.jpg",
    ),
    "label without image": (
        remove_file("images/training/ADE_train_00000001.jpg"),
        "/annotations/training/ADE_train_00000001.png has no image: "
        ".*/images/training/ADE_train_00000001.jpg",
    ),
    "renamed folder": (
        rename_annotations,
        "--ade20k_root=.*ADEChallengeData2016 has no folder .*/annotations/training;",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_dataset_is_refused_before_writing(root, tmp_path, kind):
    change, message = BROKEN[kind]
    change(root)
    with pytest.raises(UserError, match=message):
        ade20k.convert(str(root), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["ADEChallengeData2016"]


# With 150 classes, 255 would become 254, and 151 the first invalid class, 150.
@pytest.mark.parametrize("num_classes", [150, 151])
@pytest.mark.parametrize("value", [151, 255])
def test_invalid_label_values_are_refused(root, tmp_path, num_classes, value):
    set_value(value)(root)
    message = f"training/ADE_train_00000002.png contains the value {value}; .* 0..150 "
    with pytest.raises(UserError, match=message):
        ade20k.convert(str(root), str(tmp_path / "out"), num_classes=num_classes)
    assert os.listdir(tmp_path) == ["ADEChallengeData2016"]


def test_program_prints_split_sizes(root, tmp_path, capsys):
    command = ["ade20k.py", f"--ade20k_root={root}", f"--output_dir={tmp_path}/out"]
    run_program("deeplab_tf.programs.convert.ade20k", [*command, "--num_classes=150"])
    assert capsys.readouterr().out == f"{tmp_path}/out: train 2, val 1 images\n"
    # One shard per image, two JSON files.
    assert len(list_outputs(tmp_path / "out")) == 2 + 1 + 2
    assert records.read_info(f"{tmp_path}/out").name == "ade20k_150"
    with pytest.raises(SystemExit, match="num_classes must be 151 or 150; received 3"):
        run_program("deeplab_tf.programs.convert.ade20k", [*command, "--num_classes=3"])
