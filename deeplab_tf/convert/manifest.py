"""The manifest of a conversion: what each record was made from."""

import dataclasses
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.data import records
from deeplab_tf.data.info import check_hash
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs, text_files

MANIFEST = "conversion.json"
_PART = re.compile(rf"\.{re.escape(MANIFEST)}\..+-\d{{5}}-of-\d{{5}}\.tfrecord")
_HASH_MODULUS = 1 << 256
# A million images.
_MAX_BYTES = 1 << 29


class Member(NamedTuple):
    """A record of a finished shard.

    Attributes:
        name: Name in the record.
        image: Path of the image.
        files: Hash of the paths of image and label.
        sources: Hash of the paths, sizes and times of both, and of the settings.
        pixels: Number of pixels of each class that occurs.
        digest: SHA-256 of name and pixels, hexadecimal.
    """

    name: str
    image: str
    files: str
    sources: str
    pixels: dict[int, int]
    digest: str

    @classmethod
    def from_text(cls, text: str, where: str) -> "Member":
        """Parses a line of the file, the JSON of a member; raises UserError."""
        try:
            *strings, pixels, digest = json.loads(text)
            if len(strings) != 4 or not all(isinstance(s, str) for s in strings):
                raise ValueError
            check_hash(digest, where)
            pixels = {int(class_id): int(count) for class_id, count in pixels.items()}
            if any(not 0 <= k < 256 or count < 0 for k, count in pixels.items()):
                raise ValueError
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where} is not a record: {text[:80]!r}") from error
        return cls(*strings, pixels, digest)


def summarize(members: Iterable[Member], num_classes: int) -> dict[str, Any]:
    """Returns the counts and the hash of a split, by field of `DatasetInfo`.

    The hash is the sum of the digests, independent of order and sharding.
    """
    images, hashes = 0, 0
    class_pixels, class_image_pixels = [0] * num_classes, [0] * num_classes
    for member in members:
        images += 1
        hashes += int(member.digest, 16)
        labelled = sum(member.pixels.values())
        for class_id, count in member.pixels.items():
            class_pixels[class_id] += count
            class_image_pixels[class_id] += labelled if count else 0
    return {
        "split_sizes": images,
        "class_pixels": class_pixels,
        "class_image_pixels": class_image_pixels,
        "content_hashes": f"{hashes % _HASH_MODULUS:064x}",
    }


class Shard(NamedTuple):
    """A finished shard: its size in bytes and its records in order."""

    size: int
    members: tuple[Member, ...]


class Skipped(NamedTuple):
    """A sample that could not be converted."""

    name: str
    sources: str
    reason: str


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A shard in the file; members are JSON because names may be any string."""

    size: int
    members: list[str]


@dataclasses.dataclass(frozen=True)
class _ManifestFile:
    shards: dict[str, _Entry]
    skipped: dict[str, list[str]]  # by split; JSON as well


class Manifest:
    """The finished shards of a folder, in its `conversion.json`.

    The key of a shard is its file name, with `records.FINISHED` until it is published.
    Entries whose file is missing or has another size are dropped. A manifest that
    cannot be read is reported and starts empty. The parts that an interrupted run left
    are added; see `write_part`.

    Attributes:
        found: Whether the folder had a manifest.
        shards: The shards by key.
        skipped: The samples of each split that were skipped, by name.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._path = os.path.join(folder, MANIFEST)
        self.shards: dict[str, Shard] = {}
        self.skipped: dict[str, dict[str, Skipped]] = {}
        is_complete = tf.io.gfile.exists(self._path)
        parts = self._list_parts()
        self.found = is_complete or bool(parts)
        for path in [self._path] * is_complete + parts:
            try:
                self._read(path)
            except UserError as error:
                shards = "its shard" if path in parts else "every shard"
                print(
                    f"warning: {error}; {shards} will be written again",
                    file=sys.stderr,
                )
        if parts:
            self._write()
            remove(parts)

    def _list_parts(self) -> list[str]:
        if not tf.io.gfile.isdir(self._folder):
            return []
        names = sorted(tf.io.gfile.listdir(self._folder))
        return [os.path.join(self._folder, n) for n in names if _PART.fullmatch(n)]

    def _read(self, path: str) -> None:
        """Reads the shards whose files still have the recorded size."""
        content = text_files.read_content(path, _MAX_BYTES)
        values = strict_json.load(content, path, _MAX_BYTES)
        file = strict_json.build_dataclass(_ManifestFile, values, path)
        skipped = {
            split: [Skipped(*_parse_strings(row, 3, path)) for row in rows]
            for split, rows in file.skipped.items()
        }
        shards = {key: _parse_entry(e, path) for key, e in file.shards.items()}
        for split, rows in skipped.items():
            self.skipped.setdefault(split, {}).update({row.name: row for row in rows})
        # A finished shard without a file was published just before an interruption.
        for key in sorted(shards, key=lambda key: key.endswith(records.FINISHED)):
            name = key.removesuffix(records.FINISHED)
            for existing in (key, name):
                if self._get_file_size(existing) == shards[key].size:
                    self.shards[existing] = shards[key]
                    break

    def _get_file_size(self, name: str) -> int | None:
        return _find_size(os.path.join(self._folder, name))

    def add(self, key: str, members: Sequence[Member]) -> Shard:
        """Adds a finished shard, whose file exists, and writes the manifest."""
        self.shards[key] = Shard(self._get_file_size(key) or 0, tuple(members))
        self._write()
        return self.shards[key]

    def add_skipped(self, split: str, row: Skipped) -> None:
        """Adds a skipped sample, which the next `add` writes."""
        self.skipped.setdefault(split, {})[row.name] = row

    def keep_only(self, is_kept: Callable[[str], bool]) -> None:
        """Drops the shards whose key is not kept; removes an empty manifest."""
        kept = {k: v for k, v in self.shards.items() if is_kept(k)}
        if len(kept) < len(self.shards):
            self.shards = kept
            self._write()

    def has_parts(self) -> bool:
        """Returns whether there are parts."""
        return bool(self._list_parts())

    def remove_parts(self) -> None:
        """Removes the parts of shards that were added."""
        remove(self._list_parts())

    def publish(self, is_kept: Callable[[str], bool]) -> None:
        """Renames the finished shards and drops those that are not kept."""
        plain = {k: v for k, v in self.shards.items() if is_kept(k)}
        for key, shard in self.shards.items():
            if key.endswith(records.FINISHED):
                plain[key.removesuffix(records.FINISHED)] = shard
        self.shards = {k: v for k, v in plain.items() if is_kept(k)}
        self._write()

    def members(self, split: str) -> dict[str, Member]:
        """Returns the published records of a split, by name."""
        return {
            member.name: member
            for key, shard in self.shards.items()
            if is_published(key, split)
            for member in shard.members
        }

    def _write(self) -> None:
        """Writes the file atomically, or removes it if there are no shards."""
        if not self.shards:
            remove([self._path])
            return
        outputs.write_text(_format(self.shards, self.skipped), self._path)


def _format(
    shards: Mapping[str, Shard], skipped: Mapping[str, Mapping[str, Skipped]]
) -> str:
    """Returns the content of the file."""
    values = {
        "shards": {
            key: {
                "size": shard.size,
                "members": [json.dumps(member) for member in shard.members],
            }
            for key, shard in sorted(shards.items())
        },
        "skipped": {
            split: [json.dumps(row) for row in rows.values()]
            for split, rows in sorted(skipped.items())
        },
    }
    return strict_json.dump(values)


def write_part(
    folder: str,
    scratch: str,
    key: str,
    members: Sequence[Member],
    skipped: tuple[str, Sequence[Skipped]],
) -> None:
    """Writes the entry of a finished shard to a file of its own.

    For processes other than the one that writes the manifest. If that is killed, the
    next `Manifest` of the folder reads the file.

    Args:
        folder: The folder of the shards.
        scratch: A scratch folder on the same disk.
        key: The key of the shard, whose file exists.
        members: Its records.
        skipped: Its split, and the samples that were skipped.
    """
    split, rows = skipped
    shard = Shard(_find_size(os.path.join(folder, key)) or 0, tuple(members))
    unfinished = os.path.join(scratch, f"{key}-{secrets.token_hex(8)}")
    with tf.io.gfile.GFile(unfinished, "w") as file:
        file.write(_format({key: shard}, {split: {row.name: row for row in rows}}))
    name = f".{MANIFEST}.{key.removesuffix(records.FINISHED)}"
    tf.io.gfile.rename(unfinished, os.path.join(folder, name), overwrite=True)


def _find_size(path: str) -> int | None:
    """Returns the size of a file in bytes, None if it does not exist."""
    return tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else None


def is_published(key: str, split: str) -> bool:
    """Returns whether a key belongs to a published shard of a split."""
    return (
        records.is_shard(key)
        and key.endswith(".tfrecord")
        and (records.parse_split(key) == split)
    )


def _parse_strings(text: str, count: int, where: str) -> list[str]:
    try:
        strings = json.loads(text)
    except (ValueError, RecursionError):
        strings = None
    if not isinstance(strings, list) or [type(s) for s in strings] != [str] * count:
        raise UserError(f"{where}: {text[:80]!r} is not a list of {count} strings")
    return strings


def _parse_entry(entry: _Entry, where: str) -> Shard:
    members = (Member.from_text(text, f"{where}: a member") for text in entry.members)
    return Shard(entry.size, tuple(members))


def remove(paths: Iterable[str]) -> None:
    """Removes the files that exist."""
    for path in paths:
        if tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)
