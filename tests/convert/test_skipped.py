"""Broken files are listed in `skipped.txt`, or the first one stops the conversion."""

import os

import numpy as np
import pytest
from convert.test_additions import (
    SECOND,
    list_files,
    read_splits,
    write_folder,
)
from convert.test_layouts import (
    FOLDER,
    arguments,
    assert_scenes,
    convert,
    read,
    save,
)
from program_runs import assert_refused


def break_files(root, **contents):
    for name, content in contents.items():
        (root / f"images/{name}.png").write_bytes(content)


def read_skipped(root):
    lines = (root / "out/skipped.txt").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


@pytest.mark.parametrize("shards", [1, 4, 9])
def test_broken_files_are_listed_and_skipped(tmp_path, shards):
    scenes = write_folder(tmp_path, *"abcdefgh")
    break_files(tmp_path, a=b"", c=b"x", d=b"y")
    save(tmp_path / "masks/h.png", np.zeros((3, 3), np.uint8))
    flags = [f"--num_shards={shards}"]
    assert_refused("is broken|is 3x3 but", FOLDER, *arguments(tmp_path, *flags))
    assert not (tmp_path / "out").exists()
    for _ in range(2):
        out = convert(tmp_path, *flags, "--skip_broken")
        assert f"skipped 4 of 8 images, listed in {tmp_path}/out/skipped.txt" in out
        kept = {name: scenes[name] for name in "befg"}
        assert_scenes(read(tmp_path), **kept)
        skipped = read_skipped(tmp_path)
        assert list(skipped) == ["a", "c", "d", "h"]
        assert skipped["a"].endswith("images/a.png is broken: it is empty")
        assert "is 3x3, but its image" in skipped["h"]
        assert not [n for n in os.listdir(tmp_path / "out") if "finished" in n]
    assert_refused("is broken|is 3x3 but", FOLDER, *arguments(tmp_path, *flags))
    scenes = write_folder(tmp_path, *"abcdefgh")
    convert(tmp_path, *flags)
    assert_scenes(read(tmp_path), **scenes)
    assert not (tmp_path / "out/skipped.txt").exists()


def test_repeated_run_with_broken_files_changes_nothing(tmp_path):
    write_folder(tmp_path, *"abcdefgh")
    break_files(tmp_path, c=b"x")
    convert(tmp_path, "--skip_broken")
    before = list_files(tmp_path / "out")
    convert(tmp_path, "--skip_broken")
    assert list_files(tmp_path / "out") == before


def test_broken_masks_do_not_count_for_val_share(tmp_path):
    names = [str(i) for i in range(12)]
    write_folder(tmp_path, *names)
    for name in names[:4]:
        (tmp_path / f"masks/{name}.png").write_bytes(b"x")
    convert(tmp_path, "--skip_broken", "--val_share=0.25")
    train, val = read_splits(tmp_path)
    assert train | val == {*names[4:]} and len(val) == 2
    assert list(read_skipped(tmp_path)) == names[:4]


def test_split_of_broken_files_is_refused(tmp_path):
    write_folder(tmp_path, *"ab")
    break_files(tmp_path, a=b"", b=b"")
    message = "every image of the split train is broken: .*png is broken: it is empty"
    assert_refused(message, FOLDER, *arguments(tmp_path, "--skip_broken"))
    assert not (tmp_path / "out").exists()


def test_skipped_images_of_another_run_stay_listed(tmp_path):
    root = tmp_path
    write_folder(root, "a", "c")
    write_folder(root, "b", "d", first=2, images="images2", masks="masks2")
    (root / "images/a.png").write_bytes(b"")
    (root / "images2/d.png").write_bytes(b"")
    convert(root, "--skip_broken")
    convert(root, "--skip_broken", **SECOND)
    assert_scenes(read(root), c=1, b=2)
    assert list(read_skipped(root)) == ["a", "d"]


@pytest.mark.parametrize("value", [128, 255])
def test_masks_that_need_a_flag_are_not_skipped(tmp_path, value):
    write_folder(tmp_path, *"abc")
    for name, other in (("a", 0), ("b", value), ("c", value)):
        mask = np.zeros((6, 8), np.uint8)
        mask[2:4] = other
        save(tmp_path / f"masks/{name}.png", mask)
    flags = arguments(tmp_path, "--skip_broken")
    assert_refused(f"add --value_map={value}:", FOLDER, *flags)
    assert_refused(f"--value_map={value}:", FOLDER, *flags, "--val_share=0.5")
    assert not (tmp_path / "out").exists()
