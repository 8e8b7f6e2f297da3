"""SIGKILL at any system call leaves the old state or the new one, complete.

In a process that has not used TensorFlow yet, for its threads do not survive a fork.
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
from killing import kill_at_every_call, require_strace
from PIL import Image
from tqdm import tqdm

from deeplab_tf.convert import class_list, folder as folder_program
from deeplab_tf.data import records
from deeplab_tf.files import outputs

pytestmark = pytest.mark.slow


def content_of(folder):
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


@pytest.mark.parametrize("has_earlier", [True, False])
@pytest.mark.parametrize("write", [publish_folder, publish_file, write_text])
def test_output_is_old_or_new(write, has_earlier, tmp_path):
    require_strace()
    place, states = tmp_path / "place", {}
    path = str(place / "output")
    for content in ("old", "new"):
        place.mkdir()
        if content == "old" and not has_earlier:
            states[content] = {}
        else:
            write(path, content)
            states[content] = content_of(place)
        shutil.rmtree(place)

    def prepare():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if has_earlier:
            write(path, "old")

    def check(call):
        found = {k: v for k, v in content_of(place).items() if not is_leftover(k)}
        assert found in states.values(), f"killed at {call}"
        # The next run is not disturbed by what was left, and removes it.
        write(path, "new")
        assert content_of(place) == states["new"]

    kills = kill_at_every_call(lambda: write(path, "new"), prepare, check)
    print(f"{write.__name__}: {kills} kills")
    assert kills >= 5


CONVERSIONS = """
import pathlib, sys
sys.path[:0] = ["tests", "tests/files"]
import test_killed_writers
test_killed_writers.kill_conversions(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.parametrize("shards_before", [0, 2, 3])
def test_records_are_old_or_new(shards_before, tmp_path):
    require_strace()
    arguments = [sys.executable, "-c", CONVERSIONS, str(tmp_path), str(shards_before)]
    subprocess.run(arguments, check=True)


def make_pairs(folder):
    for i in range(5):
        for name, mode in (("photos", "RGB"), ("labels", "L")):
            (folder / f"{name}{i // 3}").mkdir(exist_ok=True)
            picture = Image.fromarray(np.full((8, 8), i % 2, np.uint8)).convert(mode)
            picture.save(folder / f"{name}{i // 3}/{i}.png")
    (folder / "classes.txt").write_text("cat\ndog\n")


def images_there(out):
    """Returns the shards' bytes as our readers find them, and the info's count."""
    if not out.exists() or "train" not in records.split_names(str(out)):
        return None
    paths = records.shard_paths(str(out), "train")
    content = b"".join(pathlib.Path(path).read_bytes() for path in paths)
    return content, records.read_info(str(out)).split_sizes["train"]


def kill_conversions(folder, shards_before):
    """Kills conversions of three images, with records of two others before them."""
    # tqdm's own lock is shared with forks, and would stay locked after a killed one.
    tqdm.set_lock(threading.RLock())
    make_pairs(folder)
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
        states.append(images_there(out))

    def check(call):
        assert images_there(out) in states, f"killed at {call}"
        convert(0, 3)
        assert images_there(out) == states[1]
        names = {path.name for path in out.iterdir()}
        shards = {f"train-{i:05d}-of-00003.tfrecord" for i in range(3)}
        extra = (
            names - shards - {"dataset_info.json", "conversion.json", outputs.LEDGER}
        )
        assert not extra, f"killed at {call}: {extra}"

    kills = kill_at_every_call(lambda: convert(0, 3), prepare, check)
    print(f"conversion over {shards_before} shards: {kills} kills", file=sys.stderr)
    assert kills >= 30
