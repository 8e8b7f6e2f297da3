"""Records in the official schema, and shards that are whole or not there."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo, dataset_info
from deeplab_tf.errors import UserError

INFO = DatasetInfo(
    "toys",
    ("floor", "ball"),
    ignore_label=9,
    colors=((1, 2, 3), (4, 5, 6)),
    split_sizes={"train": 5},
)


def encoded(array, file_format, **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(file, file_format, **options)
    return file.getvalue()


def noise(*shape):
    return np.random.RandomState(3).randint(0, 256, shape).astype(np.uint8)


def features(record):
    return tf.train.Example.FromString(record).features.feature


def test_the_schema_is_the_official_one():
    feature = features(records.serialize(b"J", "jpeg", b"L", "2007_000032", 281, 500))
    kinds = {key: value.WhichOneof("kind") for key, value in feature.items()}
    assert kinds == {
        "image/encoded": "bytes_list",
        "image/filename": "bytes_list",
        "image/format": "bytes_list",
        "image/height": "int64_list",
        "image/width": "int64_list",
        "image/channels": "int64_list",
        "image/segmentation/class/encoded": "bytes_list",
        "image/segmentation/class/format": "bytes_list",
    }
    values = {
        key: list(getattr(value, kinds[key]).value) for key, value in feature.items()
    }
    assert values == {
        "image/encoded": [b"J"],
        "image/filename": [b"2007_000032"],
        "image/format": [b"jpeg"],
        "image/height": [281],
        "image/width": [500],
        "image/channels": [3],
        "image/segmentation/class/encoded": [b"L"],
        "image/segmentation/class/format": [b"png"],
    }


def test_a_record_of_image_and_label_alone_is_read():
    image, label = noise(5, 7, 3), noise(5, 7)
    record = tf.train.Example()
    for key, content in (
        ("image/encoded", encoded(image, "PNG")),
        ("image/segmentation/class/encoded", encoded(label, "PNG")),
    ):
        record.features.feature[key].bytes_list.value.append(content)
    read_image, read_label, name = records.parse(record.SerializeToString())
    np.testing.assert_array_equal(read_image, image)
    np.testing.assert_array_equal(read_label[..., 0], label)
    assert name == b""


def test_jpegs_are_decoded_by_tensorflows_default_whatever_the_format_says():
    jpeg = encoded(noise(40, 56, 3), "JPEG", quality=70)
    default = tf.io.decode_jpeg(jpeg, channels=3)
    accurate = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
    assert (default != accurate).numpy().any()
    record = records.serialize(jpeg, "png", encoded(noise(40, 56), "PNG"), "a", 40, 56)
    image, _, name = records.parse(record)
    np.testing.assert_array_equal(image, default)
    assert name == b"a"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_grey_pictures_have_three_channels(file_format):
    grey = np.full((4, 6), 77)
    image = records.decode_image(tf.constant(encoded(grey, file_format)))
    np.testing.assert_array_equal(image, np.full((4, 6, 3), 77))


@pytest.fixture(params=["disk", "ram"])
def folder(request, tmp_path):
    """A folder that is not there yet, on disk and in tf.io.gfile's memory."""
    disk = str(tmp_path / "records")
    return disk if request.param == "disk" else f"ram://{disk}"


def makers(*contents):
    return [lambda content=content: content for content in contents]


def stored(folder):
    """Returns the records by file name."""
    return {
        name: list(tf.data.TFRecordDataset(f"{folder}/{name}").as_numpy_iterator())
        for name in sorted(tf.io.gfile.listdir(folder))
    }


def test_shards_are_consecutive_and_named_as_the_official_ones(folder):
    # ceil(9 / 4) = 3 per shard, so that the last is empty; ceil(1 / 4) = 1.
    train = [b"%d" % i for i in range(9)]
    records.write_shards({"train": makers(*train), "val": makers(b"v")}, folder)
    assert stored(folder) == {
        "train-00000-of-00004.tfrecord": train[:3],
        "train-00001-of-00004.tfrecord": train[3:6],
        "train-00002-of-00004.tfrecord": train[6:],
        "train-00003-of-00004.tfrecord": [],
        "val-00000-of-00004.tfrecord": [b"v"],
        "val-00001-of-00004.tfrecord": [],
        "val-00002-of-00004.tfrecord": [],
        "val-00003-of-00004.tfrecord": [],
    }
    paths = records.shard_paths(folder, "train")
    assert [p.rpartition("/")[2] for p in paths] == sorted(stored(folder))[:4]


def broken():
    raise UserError("b.png is broken")


def test_an_error_in_the_middle_leaves_nothing(folder):
    splits = {"train": makers(b"a", b"b"), "val": [*makers(b"c"), broken]}
    with pytest.raises(UserError, match=r"b\.png is broken"):
        records.write_shards(splits, folder, 1)
    assert not tf.io.gfile.exists(folder)


def test_an_error_in_the_middle_leaves_what_was_there(folder):
    records.write_shards({"train": makers(b"old")}, folder, 1)
    splits = {"train": makers(b"new"), "val": [broken]}
    with pytest.raises(UserError):
        records.write_shards(splits, folder, 2)
    assert stored(folder) == {"train-00000-of-00001.tfrecord": [b"old"]}


def test_an_empty_split_is_refused_before_anything_is_written(folder):
    with pytest.raises(UserError, match="split val is empty"):
        records.write_shards({"train": makers(b"a"), "val": []}, folder)
    assert not tf.io.gfile.exists(folder)


def test_stale_shards_of_another_count_go_and_other_splits_stay(folder):
    for split in ("train", "train_aug"):
        records.write_shards({split: makers(b"1", b"2")}, folder, 3)
    records.write_shards({"train": makers(b"3", b"4")}, folder, 2)
    names = list(stored(folder))
    assert [n for n in names if n.startswith("train-")] == [
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
    ]
    assert len([n for n in names if n.startswith("train_aug-")]) == 3


def test_trainaug_means_train_aug_and_train_does_not(folder):
    records.write_shards({"train": makers(b"t")}, folder, 1)
    records.write_shards({"train_aug": makers(b"a")}, folder, 1)
    (augmented,) = records.shard_paths(folder, "trainaug")
    assert augmented.endswith("train_aug-00000-of-00001.tfrecord")
    (train,) = records.shard_paths(folder, "train")
    assert train.endswith("train-00000-of-00001.tfrecord")


def test_unfinished_shards_are_not_read(folder):
    records.write_shards({"train": makers(b"t")}, folder, 1)
    (path,) = records.shard_paths(folder, "train")
    tf.io.gfile.copy(path, f"{path}.unfinished")
    assert records.shard_paths(folder, "train") == [path]


def test_a_split_without_records_names_those_that_are_there(folder):
    for split in ("val", "train_aug"):
        records.write_shards({split: makers(b"a")}, folder)
    with pytest.raises(UserError, match=r"no test-. records in .*: train_aug, val$"):
        records.shard_paths(folder, "test")
    with pytest.raises(UserError, match=r"no val-. records in .*; no records there$"):
        records.shard_paths(f"{folder}/missing", "val")


def test_dataset_info_travels_as_json(folder):
    tf.io.gfile.makedirs(folder)
    assert records.read_info(folder) is None
    records.write_info(INFO, folder)
    assert records.read_info(folder) == INFO


@pytest.mark.parametrize("text", ["{", "[1]", '{"name": "toys", "sizes": 3}'])
def test_another_json_is_refused_with_its_path(tmp_path, text):
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/dataset_info.json describes no"):
        records.read_info(str(tmp_path))


def test_the_info_beside_the_records_counts_and_a_conflict_is_refused(tmp_path):
    folder = str(tmp_path)
    assert records.resolve_info(None, folder) == dataset_info("pascal_voc_seg")
    assert records.resolve_info("camvid", folder) == dataset_info("camvid")
    with pytest.raises(UserError, match=r"must be one of pascal_voc_seg, .*'coco'"):
        records.resolve_info("coco", folder)
    records.write_info(INFO, folder)
    assert records.resolve_info(None, folder) == INFO
    assert records.resolve_info("toys", folder) == INFO
    with pytest.raises(UserError, match=r"--dataset=camvid but .*json says toys"):
        records.resolve_info("camvid", folder)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"class_names": "floor ball"}, "must be a list of names; .* 'floor ball'"),
        ({"class_names": ()}, "'toys' names no class"),
        ({"ignore_label": 256}, "ignore_label must be .* 0..255; received 256"),
        ({"ignore_label": "255"}, "ignore_label must be .* 0..255; received '255'"),
    ],
)
def test_a_description_that_cannot_be_is_refused(field, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(INFO, **field)


def test_colours_must_be_as_many_as_classes():
    with pytest.raises(UserError, match="2 classes but 1 colours"):
        dataclasses.replace(INFO, colors=((1, 2, 3),))
