"""Random folders, masks, class files and flags: the truth, or refused in one line."""

import collections
import math
import re

import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from program_runs import run
from random_class_tables import write_any
from random_folders import RandomFolder
from random_masks import RandomMasks, near_edges

from deeplab_tf.convert import findings
from deeplab_tf.convert.class_list import read_class_list
from deeplab_tf.convert.color_labels import Masks
from deeplab_tf.data import records
from deeplab_tf.errors import UserError
from deeplab_tf.files.ledger import LEDGER
from deeplab_tf.images import decoding

FOLDER = "deeplab_tf.programs.convert.folder"


def snapshot(folder):
    """Returns the content of every file in a folder, but not the ledger of digests."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p: p.read_bytes() for p in paths if p.name != LEDGER}


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def decode(record):
    image, label, name = records.parse(record)
    return decoding.decode_image(image), decoding.decode_label(label)[..., 0], name


def read_records(out):
    """Returns image, label and split of each record by name."""
    found = {}
    for split in records.list_splits(out):
        for record in tf.data.TFRecordDataset(records.find_shards(out, split)):
            pixels, label, name = (part.numpy() for part in decode(record))
            assert name.decode() not in found
            found[name.decode()] = pixels, label, split
    return found


def place(record):
    """Returns the name of the image, and where its record begins in it."""
    match = re.fullmatch(r"(.*)@(\d+),(\d+)", record)
    return (match[1], int(match[2]), int(match[3])) if match else (record, 0, 0)


def check_records(case, out):
    """Compares everything that was converted with the truth."""
    info, found = records.read_info(out), read_records(out)
    names = list(info.class_names)
    if case.names is None:  # in the order of the annotations
        assert names[0] == "background" and len({*names}) == len(names)
        assert {*names} <= {*case.masks.names}
        names += {*case.masks.names} - {*names}
    else:
        assert names == case.names
    assert case.colors is None or list(info.colors) == case.colors
    assert info.ignore_label == case.void
    assert info.split_sizes == collections.Counter(s for _, _, s in found.values())
    left = {name: np.ones(scene.label.shape) for name, scene in case.scenes.items()}
    splits = collections.defaultdict(set)
    for record, (pixels, label, split) in found.items():
        name, top, first = place(record)
        splits[name].add(split)
        height, width = label.shape
        area = slice(top, top + height), slice(first, first + width)
        left[name][area] = 0
        scene = case.scenes[name]
        truth = case.masks.to_labels(scene.label, names, case.void)[area]
        np.testing.assert_array_equal(pixels, scene.pixels[area])
        wrong = label != truth
        if "nearest" in case.flags:
            wrong &= ~scene.uncertain[area]
        assert not wrong.any()
        assert max(label.shape) <= case.flags.get("tile", 99)
        assert "tile" in case.flags or record == name
    assert splits.keys() == case.scenes.keys() - case.broken
    assert not any(left[name].any() for name in splits)
    check_splits(case, {name: split for name, (split,) in splits.items()})


def check_splits(case, splits):
    """Checks the share of the validation images, and that groups are complete."""
    split = case.flags.get("split", "train")
    if "val_share" not in case.flags:
        assert {*splits.values()} == {split}
        return
    assert {*splits.values()} == {split, "val"}
    if group_by := case.flags.get("group_by"):
        pattern = r"(.*/)?" if group_by == "folder" else group_by
        groups = {(re.match(pattern, name)[0], s) for name, s in splits.items()}
        assert len(dict(groups)) == len(groups)
        return
    validation = sum(s == "val" for s in splits.values())
    expected = math.floor(case.flags["val_share"] * len(splits) + 0.5)
    # Images may turn out to be broken after they were divided.
    assert abs(validation - expected) <= len(case.broken)


def convert(case, root):
    """Runs the program; returns the message if it refuses, and checks the result."""
    before = snapshot(root / "out")
    try:
        run(FOLDER, *case.command())
    except SystemExit as error:
        assert isinstance(error.code, str) and "\n" not in error.code
        assert snapshot(root / "out") == before
        return error.code
    assert not case.is_wrong
    assert not case.broken or "skip_broken" in case.flags
    check_records(case, str(root / "out"))
    return ""


def convert_random_folder(seed, root):
    """Returns the message of the first run on a random folder, "" if it converted."""
    root.mkdir()
    case = RandomFolder(seed, root)
    case.add_images()
    messages = [convert(case, root)]
    again = case.random.choice(("", "", "same", "more"))
    if again == "more":
        case.add_images()
    if again:
        messages.append(convert(case, root))
    if again == "same":
        assert bool(messages[0]) == bool(messages[1])
    return messages[0]


def test_random_folders_are_converted_or_refused(tmp_path):
    messages = [convert_random_folder(seed, tmp_path / str(seed)) for seed in range(20)]
    assert 4 < messages.count("") < 18


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_many_random_folders_are_converted_or_refused(tmp_path, block):
    seeds = range(block * 248 + 20, block * 248 + 268)
    messages = [convert_random_folder(seed, tmp_path / str(seed)) for seed in seeds]
    assert 70 < messages.count("") < 220


def read_masks(seed, folder):
    """Returns whether random masks were read; fails if not as the truth."""
    folder.mkdir()
    case = RandomMasks(seed)
    truths, paths = [case.draw() for _ in range(3)], []
    for i, truth in enumerate(truths):
        content, suffix = case.encode(truth)
        paths.append(epath.Path(folder / f"{i}{suffix}"))
        paths[-1].write_bytes(content)
    is_decidable = False
    while not is_decidable:
        text, *columns = write_any(case.random, case.table())
        is_decidable = case.is_decidable(*columns)
    path = epath.Path(folder / "classes.txt")
    path.write_text(text)
    options = case.choose_options()
    try:
        classes = read_class_list(path, "random", options)
        masks = Masks(classes, paths)
        with findings.collect() as found:
            labels = [masks.read(path) for path in paths]
        for finding in found:
            masks.add(finding)
    except UserError as error:
        assert "\n" not in str(error)
        return False
    for label, truth in zip(labels, truths, strict=True):
        truth = case.to_labels(truth, classes.info.class_names)
        wrong = label != truth
        if options.nearest:
            wrong &= ~near_edges(truth)
        assert not wrong.any(), f"seed {seed}: {case.coding}, {options}"
    return True


@pytest.mark.parametrize(
    "seeds", [range(250), pytest.param(range(250, 2500), marks=pytest.mark.slow)]
)
def test_random_masks_are_read_as_the_truth_or_refused(tmp_path, seeds):
    read = sum(read_masks(seed, tmp_path / str(seed)) for seed in seeds)
    assert len(seeds) / 4 < read < len(seeds) * 0.9
