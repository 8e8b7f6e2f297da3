"""Opens the records of a split and finds the description of their dataset."""

import os
import zlib

import numpy as np
import tensorflow as tf

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo, dataset_info, normalize_split
from deeplab_tf.data.source import TFDS_PREFIX, Source
from deeplab_tf.errors import UserError


def resolve_info(
    name: str | None, dataset_dir: str, fallback: str = "pascal_voc_seg"
) -> DatasetInfo:
    """Returns the `dataset_info.json` next to the records, or a dataset by its name.

    `name` is the value of `--dataset`; `fallback` is used if there is neither a file
    nor a name.

    Raises:
        UserError: if the file and the name disagree, or the name is unknown.
    """
    stored = records.read_info(dataset_dir)
    if (name or "").startswith(TFDS_PREFIX) or stored is None:
        name = name or fallback
        if not name.startswith(TFDS_PREFIX):
            return dataset_info(name)
        from deeplab_tf.data import tfds_source  # here: it takes seconds to import

        return tfds_source.load_info(name, dataset_dir)
    if name not in (None, stored.name):
        path = os.path.join(dataset_dir, records.INFO_FILE)
        raise UserError(
            f"--dataset={name} contradicts {path}, which names {stored.name}; omit "
            "--dataset or give a different --dataset_dir"
        )
    return stored


def _require_size(split: str, dataset_dir: str, count: int) -> None:
    """Raises `UserError` unless a split has as many records as its info says.

    For splits with an empty shard, which may not have been copied completely.
    """
    info = records.read_info(dataset_dir)
    expected = info.split_sizes.get(normalize_split(split), count) if info else count
    if count != expected:
        raise UserError(
            f"{dataset_dir or '.'} has {count} records of {split} and an empty shard; "
            f"dataset_info.json says {expected} records; copy or convert them again"
        )


def list_splits(info: DatasetInfo, dataset_dir: str) -> list[str]:
    """Returns the names of a dataset's splits in a folder."""
    if info.name.startswith(TFDS_PREFIX):
        return list(info.split_sizes)
    return records.list_splits(dataset_dir)


def open_split(name: str | None, dataset_dir: str, split: str) -> Source:
    """Opens the records of a split; `name` is the value of `--dataset`, if given.

    Raises:
        UserError: if the split has no records, or one of its files is cut off.
    """
    info = resolve_info(name, dataset_dir)
    if name and name.startswith(TFDS_PREFIX):
        from deeplab_tf.data import tfds_source

        keys, index = tfds_source.open_split(name, dataset_dir, split)
        return Source(info, keys, index)
    index = records.index_records(records.find_shards(dataset_dir, split))
    if not len(index):
        raise UserError(
            f"the {split} shards in {dataset_dir or '.'} contain no records"
        )
    if len(np.unique(index.file)) < len(index.paths):
        _require_size(split, dataset_dir, len(index))
    return Source(info, records.OFFICIAL_KEYS, index)


def fingerprint_split(name: str | None, dataset_dir: str, split: str) -> str:
    """Returns the number of records of a split and a checksum, without running ops.

    The checksum is that of `dataset_info.json`, and of names, sizes and record offsets
    of the shards.
    """
    info = None
    if name and name.startswith(TFDS_PREFIX):
        from deeplab_tf.data import tfds_source

        index = tfds_source.index_split(name, dataset_dir, split)
    else:
        info = records.read_info(dataset_dir)
        index = records.index_records(records.find_shards(dataset_dir, split))
    crc = zlib.crc32(repr(info).encode())
    for path in index.paths:
        shard = f"{os.path.basename(path)} {tf.io.gfile.stat(path).length} "
        crc = zlib.crc32(shard.encode(), crc)
    for positions in (index.file, index.offset):
        crc = zlib.crc32(positions.tobytes(), crc)
    return f"{len(index)} with checksum {crc:08x}"
