"""Shards that are not files, are empty, or have a name that is not UTF-8."""

import os
import pathlib

import pytest
import tensorflow as tf

from deeplab_tf.data import records, sources
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError


def write_shards(root, *contents):
    count = len(contents)
    for i, content in enumerate(contents):
        path = f"{root}/train-{i:05d}-of-{count:05d}.tfrecord"
        with tf.io.TFRecordWriter(path) as writer:
            for record in content:
                writer.write(record)
    return records.find_shards(str(root), "train")


def test_shards_that_are_not_files_are_refused(tmp_path, special_file):
    kind, make = special_file
    (path,) = write_shards(tmp_path, [b"a"])
    os.remove(path)
    make(pathlib.Path(path))
    message = f"^{path} is a {kind}; a file is needed$"
    with pytest.raises(UserError, match=message):
        records.find_shards(str(tmp_path), "train")
    with pytest.raises(UserError, match=message):
        records.index_records([path])


def test_shard_whose_name_is_not_utf8_is_refused(tmp_path):
    write_shards(tmp_path, [b"a"])
    (tmp_path / "notes-\udce9").touch()
    assert records.list_splits(str(tmp_path)) == ["train"]
    (tmp_path / "train-\udce9").touch()
    with pytest.raises(UserError, match=r"train-\\udce9 has a name that is not UTF-8"):
        records.find_shards(str(tmp_path), "train")


def test_only_the_last_shard_may_be_empty(tmp_path):
    # The official converter leaves the last shard empty.
    paths = write_shards(tmp_path, [b"a", b"b"], [b"c"], [])
    assert len(records.index_records(paths)) == 3
    paths = write_shards(tmp_path, [b"a", b"b"], [], [b"c"])
    with pytest.raises(UserError, match=rf"^{paths[1]} is empty, but later shards"):
        records.index_records(paths)


def test_empty_last_shard_must_match_the_split_size(tmp_path):
    write_shards(tmp_path, [b"a", b"b"], [])
    assert len(sources.open_split(None, str(tmp_path), "train").index) == 2
    info = DatasetInfo("toys", ("floor", "ball"), split_sizes={"train": 3})
    records.write_info(info, str(tmp_path))
    with pytest.raises(UserError, match=r"has 2 records of train and an empty shard; "):
        sources.open_split(None, str(tmp_path), "train")
