"""Second runs into a split, validation images and broken files."""

import os

import numpy as np
import pytest
import tensorflow as tf
from convert.test_layouts import (
    FOLDER,
    arguments,
    assert_scenes,
    convert,
    make_scene,
    read,
    save,
    write_pairs,
)
from program_runs import assert_refused

from deeplab_tf.data import records


def write_folder(root, *names, first=0, images="images", masks="masks"):
    """Writes scenes `first` and up, by name; returns them by name."""
    pairs = [(f"{images}/{name}.png", f"{masks}/{name}.png") for name in names]
    write_pairs(root, *pairs, first=first)
    return {name: number for number, name in enumerate(names, first)}


@pytest.fixture
def two_folders(tmp_path):
    """Images a and b in `images`, c and d in `images2`, and their masks."""
    first = write_folder(tmp_path, "a", "c")
    second = write_folder(tmp_path, "b", "d", first=2, images="images2", masks="masks2")
    return tmp_path, first, second


SECOND = {"images": "images2", "masks": "masks2"}


def list_files(root):
    return {p.name: p.read_bytes() for p in root.iterdir()}


@pytest.mark.parametrize("shards", [1, 3])
def test_second_run_adds_its_images(two_folders, shards):
    root, first, second = two_folders
    convert(root, f"--num_shards={shards}")
    convert(root, f"--num_shards={shards}", **SECOND)
    assert_scenes(read(root), **first, **second)
    assert list(read(root)) == ["a", "b", "c", "d"]
    info = records.read_info(str(root / "out"))
    labels = np.stack([make_scene(number)[1] for number in range(4)])
    assert info.split_sizes == {"train": 4}
    assert info.class_pixels["train"] == np.bincount(labels.ravel()).tolist()
    at_once = write_folder(root, "a", "c", images="all", masks="gt")
    write_folder(root, "b", "d", first=2, images="all", masks="gt")
    convert(root, images="all", masks="gt", out="at_once")
    expected = records.read_info(str(root / "at_once"))
    assert info.content_hashes == expected.content_hashes
    assert at_once == first


def test_repeated_runs_change_nothing(two_folders):
    root, _, _ = two_folders
    convert(root)
    convert(root, **SECOND)
    before = list_files(root / "out")
    times = {p.name: p.stat().st_mtime_ns for p in (root / "out").glob("*.tfrecord")}
    for folders in ({}, SECOND):
        convert(root, **folders)
        assert list_files(root / "out") == before
    after = {p.name: p.stat().st_mtime_ns for p in (root / "out").glob("*.tfrecord")}
    assert after == times


def test_images_of_a_deleted_folder_stay(two_folders):
    root, first, second = two_folders
    convert(root)
    for folder in ("images", "masks"):
        (root / folder).rename(root / f"gone_{folder}")
    convert(root, **SECOND)
    assert_scenes(read(root), **first, **second)
    # The same images from another folder are the same.
    convert(root, images="gone_images", masks="gone_masks")
    assert_scenes(read(root), **first, **second)


def test_changed_and_new_images_of_a_folder_are_converted(two_folders):
    root, _, second = two_folders
    convert(root)
    convert(root, **SECOND)
    save(root / "masks/a.png", make_scene(7)[1])
    more = write_folder(root, "e", first=8)
    convert(root)
    assert_scenes(read(root), **second, **more, a=7, c=1)


def save_other_c(root):
    write_folder(root, "c", first=9, images="images2", masks="masks2")


def remove_records(root):
    (root / "out/conversion.json").unlink()


def change_shard(root):
    path = next((root / "out").glob("*.tfrecord"))
    path.write_bytes(path.read_bytes() + b"x")


def remove_from_first(root):
    save(root / "images2/x.png", make_scene(0)[0])
    for name in ("images/a.png", "masks/a.png"):
        (root / name).unlink()


CONFLICTS = {
    "name with other content": (
        save_other_c,
        SECOND,
        "train of .*out already has an image c from .*images/c.png, not .*images2/c.png"
        ", with different content; use another --output_dir or --split, or add "
        "--overwrite",
    ),
    "no manifest": (
        remove_records,
        SECOND,
        "train-0.* was not written by this version of deeplab_tf, or was changed since",
    ),
    "changed shard": (change_shard, SECOND, "or was changed since, so nothing can be "),
    "removed image": (
        remove_from_first,
        {},
        "images/a.png is in the split train of .*out but no longer exists; use another",
    ),
    "other classes": (
        lambda root: None,
        SECOND | {"flags": ["--ignore_label=9"]},
        "has the split train with the ignore_label 255, not 9; use another output_dir",
    ),
}


@pytest.mark.parametrize("kind", CONFLICTS)
def test_earlier_records_are_never_replaced(two_folders, kind):
    root, _, _ = two_folders
    convert(root)
    change, folders, message = CONFLICTS[kind]
    change(root)
    before = list_files(root / "out")
    folders = dict(folders)
    flags = folders.pop("flags", [])
    assert_refused(message, FOLDER, *arguments(root, *flags, **folders))
    after = list_files(root / "out")
    assert after.keys() - {".deeplab_tf.sha256"} == before.keys() - {
        ".deeplab_tf.sha256"
    }
    assert all(after[name] == before[name] for name in before if "sha256" not in name)


def test_same_image_under_another_name_is_refused(tmp_path):
    write_folder(tmp_path, "sub/a", "b")
    convert(tmp_path)
    flags = arguments(tmp_path, images="images/sub", masks="masks/sub")
    message = (
        "sub/a.png is in the split train of .*out as sub/a, and would be added as a"
    )
    assert_refused(message, FOLDER, *flags)


def test_overwrite_replaces_a_split(two_folders):
    root, first, second = two_folders
    convert(root)
    convert(root, "--split=val")
    convert(root, "--overwrite", **SECOND)
    assert_scenes(read(root), **second)
    assert_scenes(read(root, "val"), **first)


# Validation images.


def write_classes(root, *counts, first=0):
    """Writes scenes of single classes; returns the names by class."""
    names = {}
    for class_id, count in enumerate(counts):
        names[class_id] = [f"{class_id}{i + first:02}" for i in range(count)]
        for name in names[class_id]:
            save(root / f"images/{name}.png", make_scene(int(name))[0])
            save(root / f"masks/{name}.png", np.full((6, 8), class_id, np.uint8))
    return names


def read_splits(root):
    return set(read(root)), set(read(root, "val"))


def test_val_share_is_exact_and_the_same_for_all_classes(tmp_path):
    names = write_classes(tmp_path, 20, 10, 5)
    convert(tmp_path, "--val_share=0.2")
    train, val = read_splits(tmp_path)
    assert not train & val
    assert [len(val.intersection(names[i])) for i in range(3)] == [4, 2, 1]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 8), (0.1, 2), (0.03, 0), (0.99, 15)]
)
def test_val_share_is_rounded(tmp_path, share, expected):
    write_classes(tmp_path, 8, 4, 3)
    if not expected or expected == 15:
        message = f"--val_share={share} of 15 images leaves none for "
        assert_refused(message, FOLDER, *arguments(tmp_path, f"--val_share={share}"))
        return
    convert(tmp_path, f"--val_share={share}")
    assert [len(split) for split in read_splits(tmp_path)] == [15 - expected, expected]


def test_images_keep_their_split_when_others_are_added(tmp_path):
    write_classes(tmp_path, 6, 4, 2)
    convert(tmp_path, "--val_share=0.25")
    before = read_splits(tmp_path)
    assert len(before[1]) == 3
    write_classes(tmp_path, 12, 4, first=50)
    convert(tmp_path, "--val_share=0.25")
    train, val = read_splits(tmp_path)
    assert before[0] < train and before[1] < val
    assert (len(train), len(val)) == (21, 7)
    convert(tmp_path, "--val_share=0.25")
    assert read_splits(tmp_path) == (train, val)


def test_tiles_keep_the_split_of_their_image(tmp_path):
    write_folder(tmp_path, *"abcdef")
    flags = ("--val_share=0.5", "--tile=4")
    convert(tmp_path, *flags)
    before = [{name[0] for name in split} for split in read_splits(tmp_path)]
    assert not before[0] & before[1] and len(before[1]) == 3
    write_folder(tmp_path, *"ghijkl", first=6)
    convert(tmp_path, *flags)
    after = [{name[0] for name in split} for split in read_splits(tmp_path)]
    assert before[0] < after[0] and before[1] < after[1] and len(after[1]) == 6


def test_groups_are_not_divided(tmp_path):
    sizes = {"a": 4, "b": 3, "c": 2, "d/e": 1}
    names = [f"{folder}/{i}" for folder, size in sizes.items() for i in range(size)]
    write_folder(tmp_path, *names)
    convert(tmp_path, "--val_share=0.3", "--group_by=folder")
    train, val = read_splits(tmp_path)
    groups = [{name.rpartition("/")[0] for name in split} for split in (train, val)]
    assert not groups[0] & groups[1] and len(val) == 3
    # More images of a group have its split.
    more = write_folder(tmp_path, "a/9", "b/9", "c/9", "d/e/9", first=50)
    convert(tmp_path, "--val_share=0.3", "--group_by=folder")
    after = read_splits(tmp_path)
    for name in more:
        assert (name in after[1]) == (name.rpartition("/")[0] in groups[1])


def test_videos_are_not_divided(tmp_path):
    names = [f"v{video}_{frame}" for video in range(5) for frame in range(3)]
    write_folder(tmp_path, *names)
    convert(tmp_path, "--val_share=0.2", r"--group_by=^(v\d+)_")
    _, val = read_splits(tmp_path)
    assert len({name[:2] for name in val}) == 1 and len(val) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--group_by=folder"], "--group_by needs --val_share"),
        (
            ["--group_by=v[", "--val_share=.5"],
            r"--group_by=v\[ is neither 'folder' nor a regular expression: ",
        ),
        (
            ["--group_by=^v", "--val_share=.5"],
            r"--group_by=\^v does not match the image name 'a'; it must match every",
        ),
        (
            ["--group_by=folder", "--val_share=.5"],
            "--val_share=0.5 of 3 images leaves none for val",
        ),
    ],
)
def test_invalid_groups_are_refused(tmp_path, flags, message):
    write_folder(tmp_path, "a", "b", "c")
    assert_refused(message, FOLDER, *arguments(tmp_path, *flags))
    assert not (tmp_path / "out").exists()


def test_images_that_are_all_in_train_cannot_be_divided(tmp_path):
    write_folder(tmp_path, "a", "b")
    convert(tmp_path)
    message = "of 2 images that keep their earlier splits leaves none for val"
    assert_refused(message, FOLDER, *arguments(tmp_path, "--val_share=0.5"))
    convert(tmp_path, "--val_share=0.5", "--overwrite")
    assert [len(split) for split in read_splits(tmp_path)] == [1, 1]


# Interruptions.


def interrupt_renames(monkeypatch, after):
    """Raises KeyboardInterrupt at a rename of a shard."""
    rename, renamed = tf.io.gfile.rename, []

    def interrupted(source, *arguments, **options):
        if ".tfrecord" in source:
            if len(renamed) == after:
                raise KeyboardInterrupt
            renamed.append(source)
        rename(source, *arguments, **options)

    monkeypatch.setattr(tf.io.gfile, "rename", interrupted)


@pytest.mark.parametrize("renames", range(4))
def test_interrupted_addition_is_atomic_and_resumes(two_folders, monkeypatch, renames):
    root, first, second = two_folders
    convert(root, "--num_shards=2")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with monkeypatch.context() as patch:
        # Two finished shards, then two published ones.
        interrupt_renames(patch, renames)
        with pytest.raises(KeyboardInterrupt):
            convert(root, "--num_shards=2", **SECOND)
    is_published = renames > 1
    assert_scenes(read(root), **first, **(second if is_published else {}))
    convert(root, "--num_shards=2", **SECOND)
    assert_scenes(read(root), **first, **second)
    assert not [n for n in os.listdir(root / "out") if "finished" in n]
    convert(root, "--num_shards=2")
    assert_scenes(read(root), **first, **second)
