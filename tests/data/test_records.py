"""The official record schema, shards and their index."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from record_files import write_shards

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.images.decoding import EncodedImage

INFO = DatasetInfo(
    "toys",
    ("floor", "ball"),
    ignore_label=9,
    colors=((1, 2, 3), (4, 5, 6)),
    split_sizes={"train": 5},
)


def features(record):
    return tf.train.Example.FromString(record).features.feature


def test_schema_matches_official_code():
    image = EncodedImage(b"J", "jpeg", 281, 500)
    feature = features(records.serialize(image, b"L", "2007_000032"))
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


def test_record_with_only_image_and_label_is_read():
    record = tf.train.Example()
    for key in ("image/encoded", "image/segmentation/class/encoded"):
        record.features.feature[key].bytes_list.value.append(key.encode())
    image, label, name = records.parse(record.SerializeToString())
    assert image == b"image/encoded" and label == b"image/segmentation/class/encoded"
    assert name == b""


def test_records_with_custom_keys_are_read():
    record = tf.train.Example()
    for key in ("photo", "mask"):
        record.features.feature[key].bytes_list.value.append(key.encode())
    keys = records.Keys("photo", "mask", "")
    image, label, name = records.parse(record.SerializeToString(), keys)
    assert (image, label, name) == (b"photo", b"mask", "")


@pytest.fixture(params=["disk", "ram"])
def folder(request, tmp_path):
    """A folder that does not exist yet, on disk and in memory (`ram://`)."""
    disk = str(tmp_path / "records")
    return disk if request.param == "disk" else f"ram://{disk}"


def test_trainaug_is_an_alias_of_train_aug(folder):
    write_shards(folder, b"t", split="train")
    write_shards(folder, b"a", split="train_aug")
    (augmented,) = records.find_shards(folder, "trainaug")
    assert augmented.endswith("train_aug-00000-of-00001.tfrecord")
    (train,) = records.find_shards(folder, "train")
    assert train.endswith("train-00000-of-00001.tfrecord")


def test_unfinished_shards_are_not_read(folder):
    write_shards(folder, b"t", split="train")
    (path,) = records.find_shards(folder, "train")
    tf.io.gfile.copy(path, f"{path}.unfinished")
    assert records.find_shards(folder, "train") == [path]


def test_missing_split_is_reported_with_existing_splits(folder):
    for split in ("val", "train_aug"):
        write_shards(folder, b"a", split=split)
    with pytest.raises(UserError, match=r"no records named test-.; .* train_aug, val$"):
        records.find_shards(folder, "test")
    with pytest.raises(UserError, match=r"no records named val-.; it has no records$"):
        records.find_shards(f"{folder}/missing", "val")


def test_incomplete_set_of_shards_is_refused(folder):
    write_shards(folder, b"1", b"2", b"3", shards=3)
    tf.io.gfile.remove(f"{folder}/train-00001-of-00003.tfrecord")
    with pytest.raises(
        UserError, match=r"only 2 of 3 shards like .*00000-of-00003.* exist; copy"
    ):
        records.find_shards(folder, "train")


@pytest.mark.parametrize(
    "name", ["train-00000-of-00002.tfrecord", "train-00000-of-00001"]
)
def test_shards_of_different_conversions_are_refused(tmp_path, name):
    folder = write_shards(tmp_path, b"1")
    shard = f"{folder}/train-00000-of-00001.tfrecord"
    tf.io.gfile.copy(shard, f"{folder}/{name}")
    with pytest.raises(UserError, match="belong to different conversions; remove the"):
        records.find_shards(folder, "train")


def test_splits_with_a_common_prefix_are_distinguished(folder):
    for split in ("train", "train-hard", "train_aug"):
        write_shards(folder, b"1", split=split)
    (path,) = records.find_shards(folder, "train")
    assert path.endswith("/train-00000-of-00001.tfrecord")
    assert len(records.find_shards(folder, "train-hard")) == 1


def test_folder_name_may_contain_glob_characters(tmp_path):
    folder = write_shards(tmp_path / "a[1]*", b"1")
    assert len(records.find_shards(folder, "train")) == 1
    assert records.list_splits(folder) == ["train"]


def test_shards_of_any_name_are_found(folder):
    for name in ("train-a", "train-00001-of-many"):
        write_shards(folder, b"1")
        tf.io.gfile.rename(
            f"{folder}/train-00000-of-00001.tfrecord", f"{folder}/{name}"
        )
    assert len(records.find_shards(folder, "train")) == 2


def test_index_locates_every_record(folder):
    contents = [b"a", b"bb" * 300, b"", b"c", b"dd"]
    paths = records.find_shards(write_shards(folder, *contents, shards=3), "train")
    index = records.index_records(paths)
    assert index.file.tolist() == [0, 0, 1, 1, 2]
    assert index.number.tolist() == [0, 1, 0, 1, 0]
    found = [
        records.read_record(paths[f], o).get_single_element().numpy()
        for f, o in zip(index.file, index.offset, strict=True)
    ]
    assert found == contents
    selected = index.select(np.array([4, 1, 1]))
    assert selected.offset.tolist() == index.offset[[4, 1, 1]].tolist()
    assert len(selected) == 3


def test_empty_file_has_no_records(folder):
    index = records.index_records(records.find_shards(write_shards(folder), "train"))
    assert len(index) == 0


@pytest.mark.parametrize("cut", [1, 4, 5, 20, 24, 28])
def test_truncated_file_is_reported_with_the_record(folder, cut):
    # Cuts into the 16 + 10 bytes of the second record, or into the first.
    paths = records.find_shards(
        write_shards(folder, b"0123456789", b"0123456789"), "train"
    )
    with tf.io.gfile.GFile(paths[0], "rb") as file:
        content = file.read()
    tf.io.gfile.remove(paths[0])
    with tf.io.gfile.GFile(paths[0], "wb") as file:
        file.write(content[:-cut])
    broken = 0 if cut > 26 else 1
    with pytest.raises(UserError, match=rf"^record {broken} of {paths[0]} is broken"):
        records.index_records(paths)


def test_dataset_info_is_saved_as_json(folder):
    tf.io.gfile.makedirs(folder)
    assert records.read_info(folder) is None
    records.write_info(INFO, folder)
    assert records.read_info(folder) == INFO


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", ": line 1, column 2: "),
        ("[1]", " must be a JSON object"),
        ('{"name": "toys", "sizes": 3}', ': unknown key "sizes"'),
    ],
)
def test_invalid_dataset_info_is_refused_with_its_path(tmp_path, text, reason):
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/dataset_info.json{reason}"):
        records.read_info(str(tmp_path))


def test_dataset_info_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_bytes(b'{"name": "\xff"}')
    with pytest.raises(UserError, match=f"{path}: line 1 is not UTF-8 .*0xff"):
        records.read_info(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"class_names": "floor ball"}, "must be a list of names; .* 'floor ball'"),
        ({"class_names": ()}, "'toys' has no classes"),
        ({"ignore_label": 256}, "ignore_label must be .* 0..255; received 256"),
        ({"ignore_label": "255"}, "ignore_label must be an integer; received '255'"),
    ],
)
def test_invalid_fields_of_dataset_info_are_refused(field, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(INFO, **field)


def test_number_of_colors_must_match_classes():
    with pytest.raises(UserError, match="2 classes but 1 colours"):
        dataclasses.replace(INFO, colors=((1, 2, 3),))
