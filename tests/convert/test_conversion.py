"""Conversion to shards: atomic, resumable and without repeated work."""

import dataclasses
import hashlib
import io
import os
import threading

import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from PIL import Image
from record_files import INVALID_EXIF, encode_image, write_shards

from deeplab_tf.convert import conversion, shards
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.images import decoding, mask_files

INFO = DatasetInfo("toys", ("floor", "ball", "cat"))
LABELS = [np.full((4, 5), i % 3, np.uint8) for i in range(9)]
LABELS[1][0] = 255


def image(i):
    return np.random.RandomState(i).randint(0, 256, (4, 5, 3)).astype(np.uint8)


@pytest.fixture
def sources(tmp_path):
    """A folder of nine images and labels."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for i, label in enumerate(LABELS):
        (folder / f"{i}.jpg").write_bytes(encode_image(image(i), "JPEG"))
        (folder / f"{i}_label.png").write_bytes(encode_image(label))
    return folder


@pytest.fixture(params=["disk", "ram"])
def folder(request, tmp_path):
    """A folder that does not exist yet, on disk and in memory (`ram://`)."""
    disk = str(tmp_path / "records")
    return disk if request.param == "disk" else f"ram://{disk}"


def make_samples(sources, *numbers):
    """Returns samples that append to `make_samples.read` when their labels are read."""

    def read(path):
        def read_label():
            make_samples.read.append(int(path.name[0]))
            return mask_files.read_index_label(path)

        return read_label

    make_samples.read = []
    paths = [(i, epath.Path(sources)) for i in numbers]
    return [
        conversion.Sample(
            f"image_{i}",
            path / f"{i}.jpg",
            (path / f"{i}_label.png",),
            read(path / f"{i}_label.png"),
        )
        for i, path in paths
    ]


@pytest.fixture
def convert(sources, folder):
    """A function that converts samples to the split train of the folder."""

    def run(*numbers, shards=1):
        splits = {"train": make_samples(sources, *numbers)}
        return conversion.convert(splits, INFO, folder, shards)

    return run


def read_names(folder):
    """Returns `{shard name: image names}`."""
    paths = tf.io.gfile.glob(f"{folder}/*.tfrecord")
    return {os.path.basename(path): read_names_in_file(path) for path in paths}


def read_names_in_file(path):
    parsed = (records.parse(record) for record in tf.data.TFRecordDataset(path))
    return [name.numpy().decode() for _, _, name in parsed]


def image_names(*numbers):
    return [f"image_{i}" for i in numbers]


def test_shards_are_consecutive_and_have_official_names(sources, folder):
    # ceil(9 / 4) = 3 per shard, so that the last is empty; ceil(1 / 4) = 1.
    splits = {
        "train": make_samples(sources, *range(9)),
        "val": make_samples(sources, 4),
    }
    conversion.convert(splits, INFO, folder)
    assert read_names(folder) == {
        # Three shards hold all images; a fourth would be empty.
        "train-00000-of-00003.tfrecord": image_names(0, 1, 2),
        "train-00001-of-00003.tfrecord": image_names(3, 4, 5),
        "train-00002-of-00003.tfrecord": image_names(6, 7, 8),
        "val-00000-of-00001.tfrecord": image_names(4),
    }


def test_images_are_copied_and_labels_stored_as_indices(convert, sources, folder):
    convert(1)
    (path,) = records.find_shards(folder, "train")
    (record,) = tf.data.TFRecordDataset(path)
    content, label, name = records.parse(record)
    assert content == (sources / "1.jpg").read_bytes() and name == b"image_1"
    np.testing.assert_array_equal(decoding.decode_label(label)[..., 0], LABELS[1])


def test_label_statistics_are_written(sources, folder):
    splits = {"train": make_samples(sources, 0, 1, 3), "val": make_samples(sources, 2)}
    info = conversion.convert(splits, INFO, folder)
    assert info == records.read_info(folder)
    assert info.split_sizes == {"train": 3, "val": 1}
    # 20 pixels each; five of image 1 are ignored.
    assert info.class_pixels == {"train": [40, 15, 0], "val": [0, 0, 20]}
    assert info.class_image_pixels == {"train": [40, 15, 0], "val": [0, 0, 20]}


def test_content_hash_depends_only_on_names_and_pixels(sources, tmp_path):
    def content_hash(name, numbers, shards=2):
        folder = str(tmp_path / name)
        splits = {"train": make_samples(sources, *numbers)}
        info = conversion.convert(splits, INFO, folder, shards)
        return info.content_hashes["train"]

    expected = 0
    for i in (0, 1):
        pixels = tf.io.decode_jpeg((sources / f"{i}.jpg").read_bytes()).numpy()
        text = f"image_{i}\0(4, 5, 3)\0(4, 5)\0".encode()
        digest = hashlib.sha256(text + pixels.tobytes() + LABELS[i].tobytes()).digest()
        expected += int.from_bytes(digest, "big")
    before = content_hash("a", (0, 1))
    assert before == f"{expected % 2**256:064x}"
    assert content_hash("b", (1, 0), shards=1) == before
    assert content_hash("c", (0, 1, 1)) != before
    LABELS[0][0, 0] += 1
    try:
        (sources / "0_label.png").write_bytes(encode_image(LABELS[0]))
        assert content_hash("d", (0, 1)) != before
    finally:
        LABELS[0][0, 0] -= 1


def make_broken_samples(sources, *numbers):
    """Returns samples; the image of the last is broken."""
    *valid, last = make_samples(sources, *numbers)
    (sources / f"{numbers[-1]}.jpg").write_bytes(b"no image")
    return [*valid, last]


def test_error_leaves_no_files(sources, folder):
    splits = {
        "train": make_samples(sources, 0, 1),
        "val": make_broken_samples(sources, 2, 3),
    }
    with pytest.raises(UserError, match=r"3\.jpg is broken"):
        conversion.convert(splits, INFO, folder, 1)
    assert not tf.io.gfile.exists(folder)


def test_error_keeps_earlier_records(convert, sources, folder):
    convert(0)
    info = records.read_info(folder)
    files_before = sorted(tf.io.gfile.listdir(folder))
    splits = {
        "train": make_samples(sources, 1, 2),
        "val": make_broken_samples(sources, 3),
    }
    with pytest.raises(UserError):
        conversion.convert(splits, INFO, folder, 2)
    assert read_names(folder) == {"train-00000-of-00001.tfrecord": image_names(0)}
    assert records.read_info(folder) == info
    assert sorted(tf.io.gfile.listdir(folder)) == files_before


def test_empty_split_is_refused_before_writing(sources, folder):
    with pytest.raises(UserError, match="split val has no images"):
        conversion.convert({"train": make_samples(sources, 0), "val": []}, INFO, folder)
    assert not tf.io.gfile.exists(folder)


def test_stale_shards_are_removed_and_other_splits_kept(convert, sources, folder):
    for split in ("train", "train_aug"):
        conversion.convert({split: make_samples(sources, 0, 1)}, INFO, folder, 2)
    info = convert(2, 3)
    shards = read_names(folder)
    assert [n for n in shards if n.startswith("train-")] == [
        "train-00000-of-00001.tfrecord"
    ]
    assert len([n for n in shards if n.startswith("train_aug-")]) == 2
    assert info.split_sizes == {"train": 2, "train_aug": 2}
    assert info.class_pixels == {"train": [20, 0, 20], "train_aug": [20, 15, 0]}


@pytest.mark.parametrize(
    "change", [{"name": "others"}, {"class_names": ("floor", "ball", "dog")}]
)
def test_splits_of_two_datasets_are_not_mixed(convert, sources, folder, change):
    convert(0)
    other = dataclasses.replace(INFO, **change)
    (field,) = change
    with pytest.raises(UserError, match=f"has the split train with the {field} "):
        conversion.convert({"val": make_samples(sources, 1)}, other, folder, 1)
    # Allowed if no earlier split remains.
    conversion.convert({"train": make_samples(sources, 1)}, other, folder, 1)
    written = records.read_info(folder)
    assert (written.name, written.class_names) == (other.name, other.class_names)


def test_finished_shards_are_reused(convert, folder):
    first = convert(*range(6), shards=3)
    assert sorted(make_samples.read) == list(range(6))
    assert convert(*range(6), shards=3) == first
    assert make_samples.read == []
    tf.io.gfile.remove(f"{folder}/train-00001-of-00003.tfrecord")
    assert convert(*range(6), shards=3) == first
    assert sorted(make_samples.read) == [2, 3]


def test_shards_of_changed_files_are_rewritten(convert, sources, folder):
    convert(*range(6), shards=3)
    (sources / "5_label.png").write_bytes(encode_image(LABELS[0]))
    info = convert(*range(6), shards=3)
    assert sorted(make_samples.read) == [5]  # 4 is copied from the earlier shard
    assert info.class_pixels == {"train": [60, 35, 20]}
    names = read_names(folder)["train-00002-of-00003.tfrecord"]
    assert names == image_names(4, 5)


@pytest.mark.parametrize(
    "change", [{"recipe": "other"}, {"info": dataclasses.replace(INFO, ignore_label=9)}]
)
def test_shards_of_another_recipe_are_rewritten(convert, sources, folder, change):
    convert(0, 2)
    arguments = {"info": INFO, "output_dir": folder, "num_shards": 1} | change
    conversion.convert({"train": make_samples(sources, 0, 2)}, **arguments)
    assert sorted(make_samples.read) == [0, 2]


def make_interrupted_samples(sources, *numbers):
    """Returns samples; reading the last raises KeyboardInterrupt."""
    *valid, last = make_samples(sources, *numbers)

    def interrupt():
        raise KeyboardInterrupt

    return [*valid, last._replace(read_label=interrupt)]


def test_interrupted_conversion_resumes(convert, sources, folder, monkeypatch):
    # One worker, so that the first two shards are finished before the last.
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        splits = {"train": make_interrupted_samples(sources, *range(6))}
        conversion.convert(splits, INFO, folder, 3)
    with pytest.raises(UserError, match="it has no records"):
        records.find_shards(folder, "train")
    info = convert(*range(6), shards=3)
    assert sorted(make_samples.read) == [4, 5]
    assert info.split_sizes == {"train": 6}
    assert read_names(folder)["train-00000-of-00003.tfrecord"] == image_names(0, 1)
    assert not [n for n in tf.io.gfile.listdir(folder) if "finished" in n]


def test_error_after_interruption_leaves_no_files(sources, folder, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        splits = {"train": make_interrupted_samples(sources, *range(6))}
        conversion.convert(splits, INFO, folder, 3)
    with pytest.raises(UserError):
        conversion.convert(
            {"train": make_broken_samples(sources, *range(6))}, INFO, folder, 3
        )
    assert not tf.io.gfile.exists(folder)


def test_shards_rolled_back_after_an_error_are_rewritten(
    convert, sources, folder, monkeypatch
):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    convert(*range(6), shards=3)
    # The first shard is rewritten before the last fails.
    (sources / "0_label.png").write_bytes(encode_image(LABELS[2]))
    valid = (sources / "5.jpg").read_bytes()
    with pytest.raises(UserError):
        conversion.convert(
            {"train": make_broken_samples(sources, *range(6))}, INFO, folder, 3
        )
    assert records.read_info(folder).class_pixels == {"train": [40, 35, 40]}
    (sources / "5.jpg").write_bytes(valid)
    info = convert(*range(6), shards=3)
    assert info.class_pixels == {"train": [20, 35, 60]}
    assert {0} <= set(make_samples.read) <= {0, 5}  # 5.jpg may have a new time


@pytest.mark.parametrize("shards_before", [2, 3])
def test_interrupted_publishing_is_atomic(convert, folder, shards_before, monkeypatch):
    convert(0, 1, shards=shards_before)
    rename, renamed = tf.io.gfile.rename, []

    def interrupted_rename(source, *arguments, **options):
        if source.endswith(".tfrecord.finished"):
            if renamed:
                raise KeyboardInterrupt
            renamed.append(source)
        rename(source, *arguments, **options)

    monkeypatch.setattr(tf.io.gfile, "rename", interrupted_rename)
    with pytest.raises(KeyboardInterrupt):
        convert(3, 4, 5, shards=3)
    paths = records.find_shards(folder, "train")
    names = [name for path in paths for name in read_names_in_file(path)]
    assert sorted(names) == image_names(3, 4, 5)
    assert records.read_info(folder).split_sizes == {"train": 3}
    monkeypatch.setattr(tf.io.gfile, "rename", rename)
    convert(3, 4, 5, shards=3)
    assert make_samples.read == []
    assert sorted(name for (name,) in read_names(folder).values()) == image_names(
        3, 4, 5
    )


def test_edited_manifest_is_refused(convert, folder):
    convert(0)
    manifest = f"{folder}/conversion.json"
    with tf.io.gfile.GFile(manifest, "a") as file:
        file.write(" ")
    with pytest.raises(UserError, match=r"conversion\.json exists but was not written"):
        convert(1)
    assert read_names(folder) == {"train-00000-of-00001.tfrecord": image_names(0)}
    tf.io.gfile.remove(manifest)
    convert(1)
    assert read_names(folder) == {"train-00000-of-00001.tfrecord": image_names(1)}


def test_output_into_the_image_folder_is_refused(sources):
    before = {path: path.read_bytes() for path in sources.iterdir()}
    with pytest.raises(UserError, match="is the folder of the images or labels"):
        conversion.convert({"train": make_samples(sources, 0)}, INFO, str(sources))
    assert {path: path.read_bytes() for path in sources.iterdir()} == before


def test_foreign_files_named_like_a_split_are_kept(convert, folder):
    tf.io.gfile.makedirs(folder)
    foreign_files = [
        "train-log.txt",
        "train-000.png",
        "train-1-of-2",
        "train-a.unfinished",
    ]
    for name in foreign_files:
        with tf.io.gfile.GFile(f"{folder}/{name}", "w") as file:
            file.write("mine")
    with tf.io.gfile.GFile(f"{folder}/train-00000-of-00009.tfrecord", "w") as file:
        file.write("a shard of an earlier conversion")
    for number in (0, 1):
        convert(number)
        assert read_names(folder) == {
            "train-00000-of-00001.tfrecord": image_names(number)
        }
    assert set(foreign_files) < set(tf.io.gfile.listdir(folder))


def test_samples_are_converted_in_parallel(sources, folder, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    both = threading.Barrier(2, timeout=20)

    def wait_for_both(sample):
        def read_label():
            both.wait()  # raises unless two samples are read at once
            return sample.read_label()

        return sample._replace(read_label=read_label)

    splits = {
        "train": [wait_for_both(sample) for sample in make_samples(sources, 0, 2)]
    }
    conversion.convert(splits, INFO, folder, 2)
    assert len(read_names(folder)) == 2


@pytest.mark.parametrize("num_shards", [1, 2, 4])
def test_first_broken_sample_is_named(sources, folder, monkeypatch, num_shards):
    """Also if it is the slowest of several."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    later = threading.Event()

    def break_sample(sample, i):
        def read_label():
            later.wait(20) if i == 1 else later.set()
            raise UserError(f"label {i} is broken")

        return sample._replace(read_label=read_label)

    first, *others = make_samples(sources, *range(4))
    broken = [break_sample(sample, i) for i, sample in enumerate(others, 1)]
    with pytest.raises(UserError, match="label 1 is broken"):
        conversion.convert({"train": [first, *broken]}, INFO, folder, num_shards)
    assert later.is_set()


@pytest.mark.parametrize(
    ("num_images", "num_shards"),
    # The four official splits of VOC, then those of Cityscapes.
    [(1464, 4), (1449, 4), (2913, 4), (10582, 4), (2975, 10), (500, 10), (22973, 10)],
)
def test_official_splits_have_the_official_shard_count(num_images, num_shards):
    names = [
        shard.name
        for shard in shards.split_into_shards("train", range(num_images), num_shards)
    ]
    assert names == [
        f"train-{i:05d}-of-{num_shards:05d}.tfrecord" for i in range(num_shards)
    ]


@pytest.mark.parametrize(
    ("num_images", "num_shards", "sizes"),
    [(3, 4, [1, 1, 1]), (3, 10**6, [1, 1, 1]), (5, 4, [2, 2, 1]), (4, 3, [2, 2])],
)
def test_no_shard_is_empty(num_images, num_shards, sizes):
    made = shards.split_into_shards("train", range(num_images), num_shards)
    assert [len(shard.items) for shard in made] == sizes
    assert {s.name.partition("-of-")[2] for s in made} == {f"{len(sizes):05d}.tfrecord"}


def test_image_that_tensorflow_cannot_decode_is_refused(sources, folder):
    # Pillow reads PNGs of any width, TensorFlow's libpng up to a million.
    wide = np.zeros((1, 1_000_001), np.uint8)
    (sources / "0.jpg").write_bytes(encode_image(wide, "PNG"))
    sample = make_samples(sources, 0)[0]._replace(read_label=lambda: wide)
    with pytest.raises(UserError, match=r"0\.jpg cannot be decoded by TensorFlow: "):
        conversion.convert({"train": [sample]}, INFO, folder)


def test_too_large_image_is_refused(convert, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 19)
    with pytest.raises(
        UserError, match=r"0\.jpg has 5x4 pixels; at most 19 are allowed"
    ):
        convert(0)


def test_label_of_rotated_image_is_refused_with_hint(convert, sources):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(image(0).transpose(1, 0, 2)).save(file, "JPEG", exif=exif)
    (sources / "0.jpg").write_bytes(file.getvalue())
    message = (
        r"0_label.png is 5x4, but its image .*0.jpg is 4x5 before its EXIF rotation"
    )
    with pytest.raises(UserError, match=message):
        convert(0)


def test_invalid_exif_data_is_ignored(convert, sources):
    jpeg = encode_image(image(0).transpose(1, 0, 2), "JPEG", exif=INVALID_EXIF)
    (sources / "0.jpg").write_bytes(jpeg)
    with pytest.raises(UserError, match=r"is 5x4, but its image .*0.jpg is 4x5$"):
        convert(0)


def test_records_without_manifest_are_replaced(sources, tmp_path):
    folder = write_shards(tmp_path / "records", b"old", split="train")
    conversion.convert({"train": make_samples(sources, 0)}, INFO, folder, 1)
    assert read_names(folder) == {"train-00000-of-00001.tfrecord": image_names(0)}
