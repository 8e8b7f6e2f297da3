"""SIGKILL at any system call leaves either the old or the new output, complete.

Writers run in a process that has not used TensorFlow, whose threads do not survive a
fork.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from etils import epath
from kill_process import kill_at_every_call, require_strace
from PIL import Image
from tqdm import tqdm

from deeplab_tf.convert import class_list, folder as folder_program
from deeplab_tf.data import records
from deeplab_tf.files import outputs

pytestmark = pytest.mark.slow


def read_files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != outputs.LEDGER
    }


def is_leftover(name):
    return name.startswith(".deeplab_tf-")


def write_model(path, content):
    folder = pathlib.Path(path)
    for name in ("saved_model.pb", "variables/a.index", "variables/a.data"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content * 1000)


def publish_folder(path, content):
    with outputs.publish(path) as unfinished:
        write_model(unfinished, content)


def publish_file(path, content):
    with outputs.publish(path) as unfinished:
        pathlib.Path(unfinished).write_text(content * 1000)


def write_text(path, content):
    outputs.claim(os.path.dirname(path), [os.path.basename(path)])
    outputs.write_text(content * 1000, path)


@pytest.mark.parametrize("has_old_output", [True, False])
@pytest.mark.parametrize("write", [publish_folder, publish_file, write_text])
def test_killed_write_leaves_old_or_new_output(write, has_old_output, tmp_path):
    require_strace()
    folder, states = tmp_path / "place", {}
    path = str(folder / "output")
    for content in ("old", "new"):
        folder.mkdir()
        if content == "old" and not has_old_output:
            states[content] = {}
        else:
            write(path, content)
            states[content] = read_files(folder)
        shutil.rmtree(folder)

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if has_old_output:
            write(path, "old")

    def check(call):
        found = {k: v for k, v in read_files(folder).items() if not is_leftover(k)}
        assert found in states.values(), f"killed at {call}"
        # The next run works despite the leftovers, and removes them.
        write(path, "new")
        assert read_files(folder) == states["new"]

    kills = kill_at_every_call(lambda: write(path, "new"), prepare, check)
    print(f"{write.__name__}: {kills} kills")
    assert kills >= 5


KILL_CONVERSIONS = """
import pathlib, sys
sys.path[:0] = ["tests", "tests/files"]
import test_killed_writers
test_killed_writers.kill_conversions(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.parametrize("shards_before", [0, 2, 3])
def test_killed_conversion_leaves_old_or_new_records(shards_before, tmp_path):
    require_strace()
    arguments = [
        sys.executable,
        "-c",
        KILL_CONVERSIONS,
        str(tmp_path),
        str(shards_before),
    ]
    subprocess.run(arguments, check=True)


def write_pairs(folder):
    for i in range(5):
        for name, mode in (("photos", "RGB"), ("labels", "L")):
            (folder / f"{name}{i // 3}").mkdir(exist_ok=True)
            image = Image.fromarray(np.full((8, 8), i % 2, np.uint8)).convert(mode)
            image.save(folder / f"{name}{i // 3}/{i}.png")
    (folder / "classes.txt").write_text("cat\ndog\n")


def read_records(out):
    """Returns the bytes of the shards and the split size, as readers find them."""
    if not out.exists() or "train" not in records.list_splits(str(out)):
        return None
    paths = records.find_shards(str(out), "train")
    content = b"".join(pathlib.Path(path).read_bytes() for path in paths)
    return content, records.read_info(str(out)).split_sizes["train"]


def kill_conversions(folder, shards_before):
    """Kills conversions of three images over records of two other images."""
    # tqdm shares its lock with forks; a killed fork would leave it locked.
    tqdm.set_lock(threading.RLock())
    write_pairs(folder)
    classes = class_list.read_class_list(epath.Path(folder / "classes.txt"), "pets")
    out = folder / "out"

    def convert(part, shards):
        sources = (str(folder / f"{name}{part}") for name in ("photos", "labels"))
        folder_program.convert(*sources, classes, str(out), num_shards=shards)

    def prepare():
        shutil.rmtree(out, ignore_errors=True)
        if shards_before:
            shutil.copytree(folder / "before", out)

    states = []
    if shards_before:
        convert(1, shards_before)
        out.rename(folder / "before")
    for part in (None, 0):
        prepare()
        if part is not None:
            convert(part, 3)
        states.append(read_records(out))

    def check(call):
        assert read_records(out) in states, f"killed at {call}"
        convert(0, 3)
        assert read_records(out) == states[1]
        names = {path.name for path in out.iterdir()}
        shards = {f"train-{i:05d}-of-00003.tfrecord" for i in range(3)}
        extra = (
            names - shards - {"dataset_info.json", "conversion.json", outputs.LEDGER}
        )
        assert not extra, f"killed at {call}: {extra}"

    kills = kill_at_every_call(lambda: convert(0, 3), prepare, check)
    print(f"conversion over {shards_before} shards: {kills} kills", file=sys.stderr)
    assert kills >= 30
