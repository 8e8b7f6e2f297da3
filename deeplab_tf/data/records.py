"""Reads, indexes and publishes TFRecords in the official schema.

No other module names the keys of a record.
"""

import dataclasses
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.data.info import DatasetInfo, normalize_split
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds, text_files
from deeplab_tf.files.outputs import write_text
from deeplab_tf.images.decoding import EncodedImage

INFO_FILE = "dataset_info.json"
# Suffixes of shards that are being written, and of complete ones not yet published.
UNFINISHED, FINISHED = ".unfinished", ".finished"
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\.tfrecord)?")
_OWN_SHARD = re.compile(
    r".+-\d{5}-of-\d{5}\.tfrecord"
    rf"({re.escape(UNFINISHED)}|{re.escape(FINISHED)})?"
)
# While shards are being published, this file in their folder lists them.
_PUBLISHING = ".publishing.json"


class Keys(NamedTuple):
    """Keys of a record's encoded image, encoded label and name ("" if it has none)."""

    image: str
    label: str
    name: str


OFFICIAL_KEYS = Keys(
    "image/encoded", "image/segmentation/class/encoded", "image/filename"
)


def serialize(image: EncodedImage, label: bytes, name: str) -> bytes:
    """Returns a sample as a record in the official schema.

    `label` is a PNG with one channel.
    """

    def bytes_feature(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def int_feature(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    keys = OFFICIAL_KEYS
    feature = {
        keys.image: bytes_feature(image.content),
        keys.name: bytes_feature(name.encode()),
        "image/format": bytes_feature(image.format.encode()),
        "image/height": int_feature(image.height),
        "image/width": int_feature(image.width),
        "image/channels": int_feature(image.channels),
        keys.label: bytes_feature(label),
        "image/segmentation/class/format": bytes_feature(b"png"),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    # Otherwise, the order of the features is random in each process.
    return example.SerializeToString(deterministic=True)


def parse(record, keys: Keys = OFFICIAL_KEYS):
    """Returns encoded image, encoded label and name of a record as string scalars."""
    string = tf.io.FixedLenFeature([], tf.string)
    features = {keys.image: string, keys.label: string}
    if keys.name:
        features[keys.name] = tf.io.FixedLenFeature([], tf.string, default_value="")
    sample = tf.io.parse_single_example(record, features)
    return sample[keys.image], sample[keys.label], sample.get(keys.name, "")


def parse_class(record, keys: Keys):
    """Returns the encoded image and the class id of a classification record."""
    features = {
        keys.image: tf.io.FixedLenFeature([], tf.string),
        keys.label: tf.io.FixedLenFeature([], tf.int64),
    }
    sample = tf.io.parse_single_example(record, features)
    return sample[keys.image], sample[keys.label]


def list_split_files(folder: str, split: str) -> list[str]:
    """Returns the sorted paths of a split's shards, including unfinished ones.

    Matches `<split>-*`, like the official code, but leaves out the shards of other
    splits whose names also start with `<split>-`.
    """
    # Not with a glob, which would fail in a folder named `a[1]`.
    found = []
    for name in _list_names(folder):
        shard = _SHARD.fullmatch(name.removesuffix(UNFINISHED).removesuffix(FINISHED))
        if shard[1] == split if shard else name.startswith(f"{split}-"):
            found.append(os.path.join(folder, name))
    return found


def parse_split(name: str) -> str:
    """Returns the split in the name of a shard written by our converters."""
    return name.rsplit("-", 3)[0]


def is_shard(path: str) -> bool:
    """Returns whether a path has the name of a shard written by our converters."""
    return bool(_OWN_SHARD.fullmatch(os.path.basename(path)))


def publish(
    shards: Mapping[str, Sequence[str]], info: DatasetInfo, folder: str
) -> None:
    """Replaces the shards of the given splits and `dataset_info.json`.

    If interrupted, `finish_publishing` completes the call, so that our readers see
    either the old or the new files. `shards` maps each split to the names of all its
    shards; the files of new shards still end in `FINISHED`.
    """
    publication = _Publication({k: list(v) for k, v in shards.items()}, info)
    text = strict_json.dump(dataclasses.asdict(publication))
    write_text(text, os.path.join(folder, _PUBLISHING))
    finish_publishing(folder)


def finish_publishing(folder: str) -> None:
    """Completes an interrupted call of `publish`, if there was one."""
    pending = _read_pending(folder)
    if pending is None:
        return
    for split, names in pending.shards.items():
        for path in (os.path.join(folder, name) for name in names):
            if tf.io.gfile.exists(path + FINISHED):
                tf.io.gfile.rename(path + FINISHED, path, overwrite=True)
        for path in list_split_files(folder, split):
            # We did not write other files whose names start with `<split>-`.
            if is_shard(path) and os.path.basename(path) not in names:
                tf.io.gfile.remove(path)
    write_info(pending.info, folder)
    tf.io.gfile.remove(os.path.join(folder, _PUBLISHING))


@dataclasses.dataclass(frozen=True)
class _Publication:
    """Content of the file that lists the shards being published, by split."""

    shards: dict[str, list[str]]
    info: DatasetInfo


def _read_pending(folder: str) -> _Publication | None:
    """Returns the interrupted publication of a folder, None without one."""
    path = os.path.join(folder, _PUBLISHING)
    if not tf.io.gfile.exists(path):
        return None
    content = text_files.read_content(path)
    pending = strict_json.from_json(_Publication, content, path)
    for name in (name for names in pending.shards.values() for name in names):
        if "/" in name or not is_shard(name):
            raise UserError(f"{path} lists {name!r}, which is not the name of a shard")
    return pending


def _list_names(folder: str) -> list[str]:
    """Lists the names in a folder; none if it does not exist."""
    is_folder = file_kinds.find_kind(folder) is file_kinds.Kind.DIRECTORY
    return file_kinds.list_names(folder) if is_folder else []


def find_shards(dataset_dir: str, split: str) -> list[str]:
    """Returns the sorted paths of a split's shards.

    Raises:
        UserError: if the split has no shards, some are missing, they come from
            different conversions, or one is not a file.
    """
    split = normalize_split(split)
    pending = _read_pending(dataset_dir)
    if pending and split in pending.shards:
        paths = [os.path.join(dataset_dir, n) for n in pending.shards[split]]
        new = [path + FINISHED for path in paths]
        return [
            n if tf.io.gfile.exists(n) else p for p, n in zip(paths, new, strict=True)
        ]
    paths = list_split_files(dataset_dir, split)
    paths = [p for p in paths if not p.endswith((UNFINISHED, FINISHED))]
    if not paths:
        splits = list_splits(dataset_dir)
        found = f"its splits are {', '.join(splits)}" if splits else "it has no records"
        raise UserError(f"{dataset_dir or '.'} has no records named {split}-*; {found}")
    _require_one_set(paths)
    for path in file_kinds.find_non_files(paths):
        file_kinds.require_file(path)
    return paths


def _require_one_set(paths: Sequence[str]) -> None:
    """Raises `UserError` if names of shards show an incomplete or a mixed set."""
    shards = [_SHARD.fullmatch(os.path.basename(path)) for path in paths]
    numbered = [(int(s[2]), int(s[3])) for s in shards if s]
    numbers, counts = ({n[i] for n in numbered} for i in (0, 1))
    if len(counts) > 1 or len(numbered) > len(numbers):
        raise UserError(
            f"{paths[0]} and {paths[-1]} belong to different conversions; remove the "
            "shards of one of them"
        )
    if counts and len(numbers) < max(counts):
        raise UserError(
            f"only {len(numbers)} of {max(counts)} shards like {paths[0]} exist; copy "
            "or convert them again"
        )


def list_splits(dataset_dir: str) -> list[str]:
    """Returns the sorted names of the splits that have shards in a folder."""
    shards = [_SHARD.fullmatch(name) for name in _list_names(dataset_dir)]
    pending = _read_pending(dataset_dir)
    found = {shard[1] for shard in shards if shard}
    return sorted(found | set(pending.shards if pending else ()))


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """The positions of all records in a list of files, for random access.

    Attributes:
        paths: Paths of the files.
        file: Index into `paths`, int32 `[records]`.
        number: Position of the record in its file, from 0, int64 `[records]`.
        offset: Offset of the record in bytes, int64 `[records]`.
    """

    paths: tuple[str, ...]
    file: np.ndarray
    number: np.ndarray
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.file)

    def select(self, chosen: np.ndarray) -> "RecordIndex":
        """Returns an index of only the records at the chosen positions."""
        parts = (self.file[chosen], self.number[chosen], self.offset[chosen])
        return RecordIndex(self.paths, *parts)


def index_records(paths: Sequence[str]) -> RecordIndex:
    """Indexes TFRecord files, reading only the length of each record.

    Raises:
        UserError: if a path is not a file, a file is cut off, or an empty shard comes
            before one with records.
    """
    offsets = [_read_offsets(path) for path in paths]
    counts = [len(file_offsets) for file_offsets in offsets]
    _require_only_last_empty(paths, counts)
    return RecordIndex(
        tuple(paths),
        np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        np.concatenate([np.arange(n, dtype=np.int64) for n in counts] or [[]]),
        np.concatenate([np.array(o, np.int64) for o in offsets] or [[]]),
    )


def _read_offsets(path: str) -> list[int]:
    """Returns the offset of each record in a file, in bytes."""
    # A record is its length (8 bytes), a checksum (4), the data, and a checksum (4).
    offsets, offset = [], 0
    with file_kinds.open_file(path) as file:
        size = file_kinds.get_file_size(file)
        while offset < size:
            file.seek(offset)
            header = file.read(8)
            length = struct.unpack("<Q", header)[0] if len(header) == 8 else size
            offsets.append(offset)
            offset += 16 + length
            if offset > size:
                number = len(offsets) - 1
                raise UserError(f"record {number} of {path} is broken or cut off")
    return offsets


def _require_only_last_empty(paths: Sequence[str], counts: Sequence[int]) -> None:
    """Raises `UserError` if an empty file precedes one with records.

    The official converters fill one shard after another, so only the last ones can be
    empty.
    """
    for i, path in enumerate(paths):
        if not counts[i] and any(counts[i:]):
            raise UserError(
                f"{path} is empty, but later shards of its split are not; copy or "
                "convert it again"
            )


@tf.autograph.experimental.do_not_convert
def read_record(path, offset) -> tf.data.Dataset:
    """Returns a dataset of the record at a byte offset, with verified checksums."""
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.reshape(path, [1]),
        compression_type="",
        buffer_size=tf.constant(0, tf.int64),
        byte_offsets=tf.reshape(offset, [1]),
        metadata="",
    )
    record = tf.TensorSpec([], tf.string)
    return tf.data.experimental.from_variant(variant, record).take(1)


def read_records(locations: Sequence[tuple[str, int]]) -> Iterator[bytes]:
    """Reads the records at the given paths and byte offsets; see `read_record`."""
    if not locations:
        return iter(())
    paths, offsets = zip(*locations, strict=True)
    dataset = tf.data.Dataset.from_tensor_slices(
        (list(paths), np.array(offsets, np.int64))
    )
    return dataset.flat_map(read_record).as_numpy_iterator()


def write_info(info: DatasetInfo, folder: str) -> None:
    """Writes `dataset_info.json` into a folder."""
    write_text(info.to_json(), os.path.join(folder, INFO_FILE))


def read_info(folder: str) -> DatasetInfo | None:
    """Returns the `dataset_info.json` of a folder, or None if there is none."""
    pending = _read_pending(folder)
    if pending:
        return pending.info
    path = os.path.join(folder, INFO_FILE)
    if not tf.io.gfile.exists(path):
        return None
    file_kinds.require_file(path)
    return DatasetInfo.from_json(text_files.read_content(path), source=path)
