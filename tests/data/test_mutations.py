"""Mutated records and files are read as what they are, or refused by name.

Everything derives from fixed seeds, so that a failure comes back.
"""

import faulthandler
import os
import random
import re
import resource
import shutil

import mutations
import numpy as np
import pytest
import tensorflow as tf
from mutations import INFOS, Mutant

import deeplab_tf
from deeplab_tf.config import DataConfig
from deeplab_tf.convert import voc2012
from deeplab_tf.data import records, validation
from deeplab_tf.data.reader import iterate_batches
from deeplab_tf.data.sources import open_split
from deeplab_tf.errors import UserError

# Pillow warns of what it reads nevertheless, and of large images.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::Warning:PIL.{module}")
    for module in ("Image", "TiffImagePlugin")
]
# Kinds of problems of a record that training refuses; that it is rotated is none.
_REFUSED = {"broken", "size", "format", "value"}
# Seen on two cores: 0.3 GB. A header that promises 134 million pixels, the most that
# are believed, may cost a decoder 1.2 GB.
_MOST_MEMORY = 2 << 30


@pytest.fixture(autouse=True)
def bounds(capfd):
    """Ends the run if a test hangs, and fails what needs much memory."""
    with capfd.disabled():
        stderr = os.dup(2)
    faulthandler.dump_traceback_later(300, exit=True, file=stderr)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(stderr)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown << 10 < _MOST_MEMORY


def batches_of(folder, training, batch_size=1):
    """Yields batches to the end, or in the place of one why there is none."""
    channels = open_split(None, str(folder), "train").info.channels
    config = DataConfig(
        str(folder),
        crop_size=(14, 18),
        batch_size=batch_size,
        mean_pixel=(127.5,) * channels,
    )
    iterator = iter(deeplab_tf.load_dataset(config, "train", training))
    while True:
        try:
            images, labels = next(iterate_batches(iterator))
            yield images.numpy(), labels.numpy()
        except StopIteration:
            return
        except UserError as error:
            yield str(error)


def told(message):
    """Returns path and number of the record that a line names."""
    found = re.match(r"record (\d+) of (\S+?):? ", message)
    assert found and message.isprintable(), message
    return found[2], int(found[1])


def write_records(folder, mutants):
    """Writes a shard of mutants and returns them by what names them."""
    path = str(folder / "train-mutants")
    with tf.io.TFRecordWriter(path) as writer:
        for mutant in mutants:
            writer.write(mutant.record)
    return {(path, i): mutant for i, mutant in enumerate(mutants)}


def write_shards(folder, sounds, count, chance):
    """Writes mutated shards and returns their records by what names them.

    Those that are cut short are refused before the first batch.
    """
    sound_of = {mutations.framed(sound.record()): sound for sound in sounds}
    found = {}
    for i in range(count):
        content, how = mutations.shard(chance.sample(list(sound_of), 3), chance)
        frames = mutations.frames_of(content)
        if None in frames:
            assert_cut(folder / "cut", content, len(frames) - 1)
            continue
        path = folder / f"train-{i:05d}"
        path.write_bytes(content)
        for number, frame in enumerate(frames):
            sound = sound_of.get(frame)
            known = sound and (sound.pixels, sound.ids)
            found[str(path), number] = Mutant(frame, how, known, sound is None)
    return found


def assert_cut(folder, content, number):
    folder.mkdir(exist_ok=True)
    path = folder / "train-00000-of-00001.tfrecord"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        deeplab_tf.load_dataset(DataConfig(str(folder)), "train", training=True)
    assert told(str(error.value)) == (str(path), number)


def assert_possible(image, label, info):
    assert label.size and image.shape == (*label.shape[:2], info.channels)
    assert image.dtype == np.float32 and label.dtype == np.uint8
    most = 255 if info.max_value == 255 else 65535
    assert image.min() >= 0 and image.max() <= most * 255 / info.max_value + 1e-2
    assert set(np.unique(label)) <= {*range(info.num_classes), info.ignore_label}


def assert_expected(image, label, mutant, info):
    assert_possible(image, label, info)
    assert not mutant.is_refused, mutant.what
    if mutant.expected is not None:
        pixels, ids = mutant.expected
        scaled = pixels * np.float32(255 / info.max_value)
        np.testing.assert_allclose(image, scaled, 0, 1e-3, err_msg=mutant.what)
        np.testing.assert_array_equal(label[..., 0], ids, err_msg=mutant.what)


def evaluated(folder, expected, info):
    """Returns which records are refused, after checking the others."""
    refused = set()
    found = batches_of(folder, training=False)
    for (which, mutant), batch in zip(expected.items(), found, strict=True):
        if isinstance(batch, str):
            assert mutant.is_refused is not False, (mutant.what, batch)
            assert told(batch) == which
            refused.add(which)
        else:
            assert_expected(batch[0][0], batch[1][0], mutant, info)
    return refused


def trained(folder, count, info, batch_size=1):
    """Returns which records are refused in some batches, in their order."""
    refused = []
    found = batches_of(folder, True, batch_size)
    for _, batch in zip(range(count), found, strict=False):
        if isinstance(batch, str):
            refused.append(told(batch))
            continue
        for image, label in zip(*batch, strict=True):
            assert image.shape[:2] == (14, 18)
            assert_possible(image, label, info)
    return refused


def found_by_the_doctor(folder, count):
    report = validation.examine_split(open_split(None, str(folder), "train"), "train")
    assert report.examined == count
    return {told(p.text) for p in report.problems if p.kind in _REFUSED}


def made(folder, kind, of_records, of_shards=0):
    """Writes mutated records, most of them alone, and returns them by name."""
    records.write_info(INFOS[kind], str(folder))
    sounds = mutations.sound_records(kind)
    chance = random.Random(f"{kind} {of_records}")
    expected = write_shards(folder, sounds, of_shards, chance)
    mutants = [mutations.mutant(sounds, chance) for _ in range(of_records)]
    return expected | write_records(folder, mutants)


@pytest.mark.parametrize(
    ("kind", "of_records", "of_shards"),
    [
        *((kind, 80, 40) for kind in ("colour", "planes")),
        *(pytest.param(kind, 1100, 500, marks=pytest.mark.slow) for kind in INFOS),
    ],
)
def test_records_are_read_or_refused_by_name(tmp_path, kind, of_records, of_shards):
    info, expected = INFOS[kind], made(tmp_path, kind, of_records, of_shards)
    refused = evaluated(tmp_path, expected, info)
    # There is something to see of both.
    assert 0.2 < len(refused) / len(expected) < 0.8
    # An epoch has each record once. Of JPEGs it decodes those rows that it shows.
    in_epoch = trained(tmp_path, len(expected), info)
    assert len(set(in_epoch)) == len(in_epoch) and set(in_epoch) <= refused
    missed = refused - set(in_epoch)
    assert not [expected[which].what for which in missed if expected[which].is_refused]
    assert not missed or kind in ("colour", "grey")
    assert found_by_the_doctor(tmp_path, len(expected)) == refused


@pytest.mark.slow
def test_of_a_batch_the_record_that_is_refused_is_named(tmp_path):
    expected = made(tmp_path, "colour", 600)
    refused = evaluated(tmp_path, expected, INFOS["colour"])
    in_batches = trained(tmp_path, 400, INFOS["colour"], batch_size=3)
    assert 100 < len(in_batches) < 400 and set(in_batches) <= refused


def voc(root):
    """Writes images and labels of several kinds in VOC layout; returns the files."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    records.write_info(INFOS["colour"], str(root))
    sounds = [mutations.sound_records("colour")[i] for i in (0, 1, 3, 4, 6)]
    for sound, mode in zip(sounds, ("P", "L", "I;16", "P", "L"), strict=True):
        suffix = ".png" if sound.image[:4] == b"\x89PNG" else ".jpg"
        (root / f"JPEGImages/{sound.name}{suffix}").write_bytes(sound.image)
        label = mutations.saved(sound.ids, mode)
        (root / f"SegmentationClass/{sound.name}.png").write_bytes(label)
    names = "\n".join(sound.name for sound in sounds)
    (root / "ImageSets/Segmentation/train.txt").write_text(names)
    return [path for path in sorted(root.rglob("*.*")) if path.suffix != ".json"]


def converted(path, content, root, out):
    """Returns how many images are converted with another content of a file."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        return voc2012.convert(str(root), str(out), num_shards=1)["train"]
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error), error
        assert not out.exists()
        return 0
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_files_are_converted_or_refused_by_name(tmp_path, count):
    root, out, done = (tmp_path / name for name in ("voc", "out", "done"))
    files, chance, sizes = voc(root), random.Random(f"voc {count}"), []
    done.mkdir()
    shutil.copy(root / "dataset_info.json", done)
    for i in range(count):
        path = chance.choice(files)
        is_list = path.suffix == ".txt"
        change = chance.choice(mutations.BYTES if is_list else mutations.PICTURES)
        content = change(path.read_bytes(), chance) if i else path.read_bytes()
        sizes.append(converted(path, content, root, out))
        if sizes[-1]:
            os.rename(out / "train-00000-of-00001.tfrecord", done / f"train-{i:05d}")
            shutil.rmtree(out)
    assert sizes[0] == 5 and 0.4 < sizes.count(0) / count < 0.95
    batch_count = 0
    for batch in batches_of(done, training=False):
        assert not isinstance(batch, str), batch
        assert_possible(batch[0][0], batch[1][0], INFOS["colour"])
        batch_count += 1
    assert batch_count == sum(sizes)
    assert not found_by_the_doctor(done, sum(sizes))
