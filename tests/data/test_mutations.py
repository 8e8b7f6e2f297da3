"""Mutated records and files are read correctly or refused by name.

All mutations use fixed seeds, so that failures are reproducible.
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

# Pillow warns about damaged files that it can read, and about large images.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::Warning:PIL.{module}")
    for module in ("Image", "TiffImagePlugin")
]
# Kinds of problems for which training refuses a record; "rotated" is not one.
_REFUSED_KINDS = {"broken", "size", "format", "value"}
# Measured on two cores: 0.3 GB. A header that claims 134 million pixels, the limit,
# may cost a decoder 1.2 GB.
_MAX_MEMORY = 2 << 30


@pytest.fixture(autouse=True)
def limit_time_and_memory(capfd):
    """Ends the run if a test hangs, and fails tests that need too much memory."""
    with capfd.disabled():
        stderr = os.dup(2)
    faulthandler.dump_traceback_later(300, exit=True, file=stderr)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(stderr)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert growth << 10 < _MAX_MEMORY


def iterate_split(folder, training, batch_size=1):
    """Yields every batch, or the error message that replaces it."""
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


def parse_record_location(message):
    """Returns the path and number of the record in an error message."""
    match = re.match(r"record (\d+) of (\S+?):? ", message)
    assert match and message.isprintable(), message
    return match[2], int(match[1])


def write_mutants(folder, mutants):
    """Writes a shard of mutants; returns them by path and number."""
    path = str(folder / "train-mutants")
    with tf.io.TFRecordWriter(path) as writer:
        for mutant in mutants:
            writer.write(mutant.record)
    return {(path, i): mutant for i, mutant in enumerate(mutants)}


def write_shards(folder, valid_records, count, rng):
    """Writes mutated shards; returns their records by path and number.

    Checks that truncated shards are refused before the first batch.
    """
    records_by_frame = {
        mutations.frame_record(valid_record.record()): valid_record
        for valid_record in valid_records
    }
    results = {}
    for i in range(count):
        content, description = mutations.mutate_shard(
            rng.sample(list(records_by_frame), 3), rng
        )
        frames = mutations.split_frames(content)
        if None in frames:
            assert_cut_shard_is_refused(folder / "cut", content, len(frames) - 1)
            continue
        path = folder / f"train-{i:05d}"
        path.write_bytes(content)
        for number, frame in enumerate(frames):
            valid_record = records_by_frame.get(frame)
            expected = valid_record and (valid_record.pixels, valid_record.ids)
            results[str(path), number] = Mutant(
                frame, description, expected, valid_record is None
            )
    return results


def assert_cut_shard_is_refused(folder, content, number):
    folder.mkdir(exist_ok=True)
    path = folder / "train-00000-of-00001.tfrecord"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        deeplab_tf.load_dataset(DataConfig(str(folder)), "train", training=True)
    assert parse_record_location(str(error.value)) == (str(path), number)


def assert_valid(image, label, info):
    assert label.size and image.shape == (*label.shape[:2], info.channels)
    assert image.dtype == np.float32 and label.dtype == np.uint8
    max_stored = 255 if info.max_value == 255 else 65535
    assert image.min() >= 0 and image.max() <= max_stored * 255 / info.max_value + 1e-2
    assert set(np.unique(label)) <= {*range(info.num_classes), info.ignore_label}


def assert_expected(image, label, mutant, info):
    assert_valid(image, label, info)
    assert not mutant.is_refused, mutant.description
    if mutant.expected is not None:
        pixels, ids = mutant.expected
        scaled = pixels * np.float32(255 / info.max_value)
        np.testing.assert_allclose(image, scaled, 0, 1e-3, err_msg=mutant.description)
        np.testing.assert_array_equal(label[..., 0], ids, err_msg=mutant.description)


def evaluate_records(folder, expected, info):
    """Checks the records that are read; returns the locations of the refused ones."""
    refused = set()
    results = iterate_split(folder, training=False)
    for (location, mutant), batch in zip(expected.items(), results, strict=True):
        if isinstance(batch, str):
            assert mutant.is_refused is not False, (mutant.description, batch)
            assert parse_record_location(batch) == location
            refused.add(location)
        else:
            assert_expected(batch[0][0], batch[1][0], mutant, info)
    return refused


def train_on_records(folder, count, info, batch_size=1):
    """Returns the locations of refused records in `count` batches, in order."""
    refused = []
    results = iterate_split(folder, True, batch_size)
    for _, batch in zip(range(count), results, strict=False):
        if isinstance(batch, str):
            refused.append(parse_record_location(batch))
            continue
        for image, label in zip(*batch, strict=True):
            assert image.shape[:2] == (14, 18)
            assert_valid(image, label, info)
    return refused


def find_problems_with_doctor(folder, count):
    report = validation.examine_split(open_split(None, str(folder), "train"), "train")
    assert report.examined == count
    return {
        parse_record_location(p.text)
        for p in report.problems
        if p.kind in _REFUSED_KINDS
    }


def make_dataset(folder, kind, num_records, num_shards=0):
    """Writes mutated records and shards; returns the records by path and number."""
    records.write_info(INFOS[kind], str(folder))
    valid_records = mutations.valid_records(kind)
    rng = random.Random(f"{kind} {num_records}")
    expected = write_shards(folder, valid_records, num_shards, rng)
    mutants = [mutations.make_mutant(valid_records, rng) for _ in range(num_records)]
    return expected | write_mutants(folder, mutants)


@pytest.mark.parametrize(
    ("kind", "num_records", "num_shards"),
    [
        *((kind, 40, 20) for kind in ("colour", "planes")),
        *(pytest.param(kind, 1100, 500, marks=pytest.mark.slow) for kind in INFOS),
    ],
)
def test_mutated_records_are_read_or_named_in_errors(
    tmp_path, kind, num_records, num_shards
):
    info, expected = INFOS[kind], make_dataset(tmp_path, kind, num_records, num_shards)
    refused = evaluate_records(tmp_path, expected, info)
    # Many are read and many refused.
    assert 0.2 < len(refused) / len(expected) < 0.8
    # An epoch has each record once, and decodes only the visible rows of a JPEG.
    in_epoch = train_on_records(tmp_path, len(expected), info)
    assert len(set(in_epoch)) == len(in_epoch) and set(in_epoch) <= refused
    not_in_epoch = refused - set(in_epoch)
    assert not [
        expected[location].description
        for location in not_in_epoch
        if expected[location].is_refused
    ]
    assert not not_in_epoch or kind in ("colour", "grey")
    assert find_problems_with_doctor(tmp_path, len(expected)) == refused


@pytest.mark.slow
def test_error_names_refused_record_in_a_batch(tmp_path):
    expected = make_dataset(tmp_path, "colour", 600)
    refused = evaluate_records(tmp_path, expected, INFOS["colour"])
    in_batches = train_on_records(tmp_path, 400, INFOS["colour"], batch_size=3)
    assert 100 < len(in_batches) < 400 and set(in_batches) <= refused


def write_voc(root):
    """Writes images and labels of several formats in VOC layout; returns the files."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    records.write_info(INFOS["colour"], str(root))
    valid_records = [mutations.valid_records("colour")[i] for i in (0, 1, 3, 4, 6)]
    for valid_record, mode in zip(
        valid_records, ("P", "L", "I;16", "P", "L"), strict=True
    ):
        suffix = ".png" if valid_record.image[:4] == b"\x89PNG" else ".jpg"
        (root / f"JPEGImages/{valid_record.name}{suffix}").write_bytes(
            valid_record.image
        )
        label = mutations.encode_mode(valid_record.ids, mode)
        (root / f"SegmentationClass/{valid_record.name}.png").write_bytes(label)
    names = "\n".join(valid_record.name for valid_record in valid_records)
    (root / "ImageSets/Segmentation/train.txt").write_text(names)
    return [path for path in sorted(root.rglob("*.*")) if path.suffix != ".json"]


def convert_with(path, content, root, out):
    """Returns the number of converted images after replacing a file's content."""
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


@pytest.mark.parametrize("count", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_converted_or_named_in_the_error(tmp_path, count):
    root, out, converted = (tmp_path / name for name in ("voc", "out", "done"))
    files, rng, sizes = write_voc(root), random.Random(f"voc {count}"), []
    converted.mkdir()
    shutil.copy(root / "dataset_info.json", converted)
    for i in range(count):
        path = rng.choice(files)
        is_list = path.suffix == ".txt"
        change = rng.choice(
            mutations.BYTE_MUTATIONS if is_list else mutations.IMAGE_MUTATIONS
        )
        content = change(path.read_bytes(), rng) if i else path.read_bytes()
        sizes.append(convert_with(path, content, root, out))
        if sizes[-1]:
            os.rename(
                out / "train-00000-of-00001.tfrecord", converted / f"train-{i:05d}"
            )
            shutil.rmtree(out)
    assert sizes[0] == 5 and 0.4 < sizes.count(0) / count < 0.95
    batch_count = 0
    for batch in iterate_split(converted, training=False):
        assert not isinstance(batch, str), batch
        assert_valid(batch[0][0], batch[1][0], INFOS["colour"])
        batch_count += 1
    assert batch_count == sum(sizes)
    assert not find_problems_with_doctor(converted, sum(sizes))
