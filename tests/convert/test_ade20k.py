"""ADE20K to records, in both of its forms."""

import os

import numpy as np
import pytest
import small_sources
import tensorflow as tf
from listing import listed

from deeplab_tf.convert import ade20k
from deeplab_tf.data import records
from deeplab_tf.data.info import dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.programs import run_program


def samples(folder, split):
    """Returns image, label and name of every record of a split."""
    paths = records.shard_paths(str(folder), split)
    dataset = tf.data.TFRecordDataset(paths).map(records.parse)
    return [
        (image, tf.io.decode_png(label).numpy()[..., 0], name.decode())
        for image, label, name in dataset.as_numpy_iterator()
    ]


@pytest.fixture
def root(tmp_path):
    return small_sources.ade20k(tmp_path / "ADEChallengeData2016")


def test_the_official_form_keeps_the_values(root, tmp_path):
    out = tmp_path / "out"
    assert ade20k.convert(str(root), str(out)) == {"train": 2, "val": 1}
    found = samples(out, "train")
    assert [name for _, _, name in found] == [
        "ADE_train_00000001",
        "ADE_train_00000002",
    ]
    path = root / "images/training/ADE_train_00000002.jpg"
    assert found[1][0] == path.read_bytes()
    # The first label begins with 0, 1, 2, the second with 1, 2, 3.
    assert found[0][1][0, :3].tolist() == [0, 1, 2]
    assert found[1][1][0, :3].tolist() == [1, 2, 3]
    assert all(np.unique(label).tolist() == list(range(151)) for _, label, _ in found)
    info = records.read_info(str(out))
    assert (info.name, info.num_classes, info.ignore_label) == ("ade20k", 151, 0)
    assert info.split_sizes == {"train": 2, "val": 1}
    # 600 pixels are 3 * 151 + 147: the values 0..146 are there four times, the others
    # three times. 0 counts for nothing.
    assert info.class_pixels["val"] == [0] + [4] * 146 + [3] * 4


def test_the_form_of_150_classes_begins_at_0(root, tmp_path):
    out = tmp_path / "out"
    ade20k.convert(str(root), str(out), num_classes=150)
    label = samples(out, "train")[0][1]
    assert label[0, :3].tolist() == [255, 0, 1]
    assert np.unique(label).tolist() == [*range(150), 255]
    info = records.read_info(str(out))
    assert (info.name, info.num_classes, info.ignore_label) == ("ade20k_150", 150, 255)
    assert info.class_pixels["val"] == [4] * 146 + [3] * 4


def test_the_names_are_those_of_the_challenge():
    official, shifted = dataset_info("ade20k"), dataset_info("ade20k_150")
    assert official.class_names == ("background", *shifted.class_names)
    of_value = {1: "wall", 9: "windowpane", 13: "person", 59: "screen door"}
    of_value |= {75: "computer", 100: "buffet", 131: "screen", 150: "flag"}
    assert {value: official.class_names[value] for value in of_value} == of_value


def drop(name):
    return lambda root: (root / name).unlink()


def set_value(value):
    def change(root):
        label = np.full((20, 30), 3)
        label[-1, -1] = value
        path = root / "annotations/training/ADE_train_00000002.png"
        small_sources.save_label(path, label)

    return change


def another_folder(root):
    (root / "annotations").rename(root / "labels")


# How to break the folder, and what its message must say.
BROKEN = {
    "image without label": (
        drop("annotations/training/ADE_train_00000002.png"),
        "/images/training/ADE_train_00000002.jpg has no label "
        ".*/annotations/training/ADE_train_00000002.png",
    ),
    "no images": (
        drop("images/validation/ADE_val_00000001.jpg"),
        "/images/validation has no \\*.jpg",
    ),
    "label without image": (
        drop("images/training/ADE_train_00000001.jpg"),
        "/annotations/training/ADE_train_00000001.png has no image "
        ".*/images/training/ADE_train_00000001.jpg",
    ),
    "another folder": (
        another_folder,
        "--ade20k_root=.*ADEChallengeData2016 has no folder .*/annotations/training;",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_named_and_nothing_is_written(root, tmp_path, kind):
    change, message = BROKEN[kind]
    change(root)
    with pytest.raises(UserError, match=message):
        ade20k.convert(str(root), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["ADEChallengeData2016"]


# 255 would become 254, and 151 the first value that is no class, 150.
@pytest.mark.parametrize("num_classes", [150, 151])
@pytest.mark.parametrize("value", [151, 255])
def test_other_values_are_refused(root, tmp_path, num_classes, value):
    set_value(value)(root)
    message = f"training/ADE_train_00000002.png has the value {value}; .* 0..150 "
    with pytest.raises(UserError, match=message):
        ade20k.convert(str(root), str(tmp_path / "out"), num_classes=num_classes)
    assert os.listdir(tmp_path) == ["ADEChallengeData2016"]


def test_the_program_says_what_there_is(root, tmp_path, capsys):
    command = ["ade20k.py", f"--ade20k_root={root}", f"--output_dir={tmp_path}/out"]
    run_program("deeplab_tf.programs.convert.ade20k", [*command, "--num_classes=150"])
    assert capsys.readouterr().out == f"{tmp_path}/out: train 2, val 1 images\n"
    # A shard for each image, and what describes them.
    assert len(listed(tmp_path / "out")) == 2 + 1 + 2
    assert records.read_info(f"{tmp_path}/out").name == "ade20k_150"
    with pytest.raises(SystemExit, match="num_classes must be 151 or 150; received 3"):
        run_program("deeplab_tf.programs.convert.ade20k", [*command, "--num_classes=3"])
