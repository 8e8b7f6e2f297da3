"""TFRecords in the official schema: the only file that spells their keys."""

import dataclasses
import os
import re
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.data.info import DatasetInfo, split_name
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds, text_files
from deeplab_tf.files.outputs import write_text
from deeplab_tf.images.decoding import EncodedImage

INFO_FILE = "dataset_info.json"
# Of shards that are being written, and that wait for the others of their set.
UNFINISHED, FINISHED = ".unfinished", ".finished"
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\.tfrecord)?")
_OWN_SHARD = re.compile(
    r".+-\d{5}-of-\d{5}\.tfrecord"
    rf"({re.escape(UNFINISHED)}|{re.escape(FINISHED)})?"
)
# While it is there, it says which shards a folder has.
_PUBLISHING = ".publishing.json"


class Keys(NamedTuple):
    """Where a record has what a sample is made of.

    Attributes:
        image: Key of the encoded image.
        label: Key of the encoded label.
        name: Key of the name; "" where there is none.
    """

    image: str
    label: str
    name: str


OFFICIAL_KEYS = Keys(
    "image/encoded", "image/segmentation/class/encoded", "image/filename"
)


def serialize(image: EncodedImage, label: bytes, name: str) -> bytes:
    """Returns one sample as an official record.

    Args:
        image: The encoded image.
        label: Encoded one-channel PNG of class ids.
        name: Name of the image, without folder and extension for VOC.
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
    return example.SerializeToString()


def parse(record, keys: Keys = OFFICIAL_KEYS):
    """Returns encoded image, encoded label and name of a record, string scalars."""
    string = tf.io.FixedLenFeature([], tf.string)
    features = {keys.image: string, keys.label: string}
    if keys.name:
        features[keys.name] = tf.io.FixedLenFeature([], tf.string, default_value="")
    sample = tf.io.parse_single_example(record, features)
    return sample[keys.image], sample[keys.label], sample.get(keys.name, "")


def parse_class(record, keys: Keys):
    """Returns the encoded image of a record and its class id, scalars.

    Args:
        record: Bytes, a string scalar.
        keys: Where the record has them; its label is a number.
    """
    features = {
        keys.image: tf.io.FixedLenFeature([], tf.string),
        keys.label: tf.io.FixedLenFeature([], tf.int64),
    }
    sample = tf.io.parse_single_example(record, features)
    return sample[keys.image], sample[keys.label]


def split_files(folder: str, split: str) -> list[str]:
    """Returns the paths of a split's shards, unfinished ones too, in order.

    As in the official code these are `<split>-*`, but no shards of a split whose name
    begins alike.
    """
    # Not a glob, for which a folder may have any name but `a[1]`.
    found = []
    for name in _names(folder):
        shard = _SHARD.fullmatch(name.removesuffix(UNFINISHED).removesuffix(FINISHED))
        if shard[1] == split if shard else name.startswith(f"{split}-"):
            found.append(os.path.join(folder, name))
    return found


def is_shard(path: str) -> bool:
    """Returns whether a file has the name of a shard as converters write it."""
    return bool(_OWN_SHARD.fullmatch(os.path.basename(path)))


def publish(
    shards: Mapping[str, Sequence[str]], info: DatasetInfo, folder: str
) -> None:
    """Replaces the shards of some splits and the info, atomically for our readers.

    Args:
        shards: The names of all shards of each split. Those that are new have
            `FINISHED` at their end.
        info: What becomes `dataset_info.json`.
        folder: Folder of both.
    """
    publication = _Publication({k: list(v) for k, v in shards.items()}, info)
    text = strict_json.dump(dataclasses.asdict(publication))
    write_text(text, os.path.join(folder, _PUBLISHING))
    finish_publishing(folder)


def finish_publishing(folder: str) -> None:
    """Does what `publish` had yet to do when its program was killed."""
    pending = _pending(folder)
    if pending is None:
        return
    for split, names in pending.shards.items():
        for path in (os.path.join(folder, name) for name in names):
            if tf.io.gfile.exists(path + FINISHED):
                tf.io.gfile.rename(path + FINISHED, path, overwrite=True)
        for path in split_files(folder, split):
            # A file whose name only begins like a shard's belongs to somebody else.
            if is_shard(path) and os.path.basename(path) not in names:
                tf.io.gfile.remove(path)
    write_info(pending.info, folder)
    tf.io.gfile.remove(os.path.join(folder, _PUBLISHING))


@dataclasses.dataclass(frozen=True)
class _Publication:
    """The shards of each split and the info that are being published."""

    shards: dict[str, list[str]]
    info: DatasetInfo


def _pending(folder: str) -> _Publication | None:
    path = os.path.join(folder, _PUBLISHING)
    if not tf.io.gfile.exists(path):
        return None
    content = text_files.read_content(path)
    pending = strict_json.from_json(_Publication, content, path)
    for name in (name for names in pending.shards.values() for name in names):
        if "/" in name or not is_shard(name):
            raise UserError(f"{path}: {name!r} is not the name of a shard")
    return pending


def _names(folder: str) -> list[str]:
    """Returns the names in a folder, none if there is no such folder."""
    is_folder = file_kinds.kind_of(folder) is file_kinds.Kind.DIRECTORY
    return file_kinds.list_names(folder) if is_folder else []


def shard_paths(dataset_dir: str, split: str) -> list[str]:
    """Returns the shards of a split, in order.

    Raises:
        UserError: if there are none, naming the splits that are there, if the
            names tell that some are missing, or are of two conversions, or if one is
            not a file.
    """
    split = split_name(split)
    pending = _pending(dataset_dir)
    if pending and split in pending.shards:
        paths = [os.path.join(dataset_dir, n) for n in pending.shards[split]]
        new = (path + FINISHED for path in paths)
        return [
            n if tf.io.gfile.exists(n) else p for p, n in zip(paths, new, strict=True)
        ]
    paths = split_files(dataset_dir, split)
    paths = [p for p in paths if not p.endswith((UNFINISHED, FINISHED))]
    if not paths:
        splits = split_names(dataset_dir)
        found = f"splits there: {', '.join(splits)}" if splits else "no records there"
        raise UserError(f"no {split}-* records in {dataset_dir or '.'}; {found}")
    _require_one_set(paths)
    for path in file_kinds.find_non_files(paths):
        file_kinds.require_file(path)
    return paths


def _require_one_set(paths: Sequence[str]) -> None:
    """Refuses shards whose names tell that they are not one whole set."""
    shards = [_SHARD.fullmatch(os.path.basename(path)) for path in paths]
    numbered = [(int(s[2]), int(s[3])) for s in shards if s]
    numbers, counts = ({n[i] for n in numbered} for i in (0, 1))
    if len(counts) > 1 or len(numbered) > len(numbers):
        raise UserError(
            f"{paths[0]} and {paths[-1]} are of two sets of shards; remove one of them"
        )
    if counts and len(numbers) < max(counts):
        raise UserError(
            f"{paths[0]} is one of {len(numbers)} shards of {max(counts)}; copy or "
            "convert them again"
        )


def split_names(dataset_dir: str) -> list[str]:
    """Returns the splits that a folder has shards of, in alphabetical order."""
    shards = [_SHARD.fullmatch(name) for name in _names(dataset_dir)]
    pending = _pending(dataset_dir)
    found = {shard[1] for shard in shards if shard}
    return sorted(found | set(pending.shards if pending else ()))


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """Where every record of some files is, so that any can be read by itself.

    Attributes:
        paths: The files.
        file: Index into `paths`, int32 `[records]`.
        number: Number of the record in its file, from 0, int64 `[records]`.
        offset: Byte at which it begins, int64 `[records]`.
    """

    paths: tuple[str, ...]
    file: np.ndarray
    number: np.ndarray
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.file)

    def select(self, chosen: np.ndarray) -> "RecordIndex":
        """Returns the index of some records, given by their positions."""
        parts = (self.file[chosen], self.number[chosen], self.offset[chosen])
        return RecordIndex(self.paths, *parts)


def index_records(paths: Sequence[str]) -> RecordIndex:
    """Returns the index of TFRecord files, from the lengths in them alone.

    Raises:
        UserError: where a file is cut short or not a file; names file and record.
    """
    offsets = [_offsets(path) for path in paths]
    counts = [len(of_file) for of_file in offsets]
    _require_last_empty(paths, counts)
    return RecordIndex(
        tuple(paths),
        np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        np.concatenate([np.arange(n, dtype=np.int64) for n in counts] or [[]]),
        np.concatenate([np.array(o, np.int64) for o in offsets] or [[]]),
    )


def _offsets(path: str) -> list[int]:
    """Returns the bytes at which the records of a file begin."""
    # A record: its length in 8 bytes, 4 of checksum, itself, 4 of checksum.
    offsets, offset = [], 0
    with file_kinds.open_file(path) as file:
        size = file_kinds.file_size(file)
        while offset < size:
            file.seek(offset)
            header = file.read(8)
            length = struct.unpack("<Q", header)[0] if len(header) == 8 else size
            offsets.append(offset)
            offset += 16 + length
            if offset > size:
                raise UserError(describe_broken_record(path, len(offsets) - 1))
    return offsets


def _require_last_empty(paths: Sequence[str], counts: Sequence[int]) -> None:
    """Refuses an empty file before one with records.

    The official converters fill shard by shard, so that only the last can be empty.
    """
    for i, path in enumerate(paths):
        if not counts[i] and any(counts[i:]):
            raise UserError(
                f"{path} is empty although later shards of its split are not; copy "
                "or convert it again"
            )


def describe_broken_record(path: str, number: int) -> str:
    """Returns what there is to say of a record that cannot be read."""
    return f"record {number} of {path} is broken or cut short"


def read_record(path, offset) -> tf.data.Dataset:
    """Returns a dataset of the record that begins at a byte of a file, in a graph.

    The record is read when the dataset is, and its checksums are verified.
    """
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.reshape(path, [1]),
        compression_type="",
        buffer_size=tf.constant(0, tf.int64),
        byte_offsets=tf.reshape(offset, [1]),
        metadata="",
    )
    record = tf.TensorSpec([], tf.string)
    return tf.data.experimental.from_variant(variant, record).take(1)


def write_info(info: DatasetInfo, folder: str) -> None:
    """Writes `dataset_info.json` into a folder."""
    write_text(info.to_json(), os.path.join(folder, INFO_FILE))


def read_info(folder: str) -> DatasetInfo | None:
    """Returns the `dataset_info.json` of a folder, None where there is none."""
    path = os.path.join(folder, INFO_FILE)
    pending = _pending(folder)
    if pending:
        return pending.info
    if not tf.io.gfile.exists(path):
        return None
    file_kinds.require_file(path)
    return DatasetInfo.from_json(text_files.read_content(path), source=path)
