"""The manifest of a conversion: what each record was made from."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.data import records
from deeplab_tf.data.info import check_hash
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs, text_files

MANIFEST = "conversion.json"
_HASH_MODULUS = 1 << 256
# A million images.
_MAX_BYTES = 1 << 29


@dataclasses.dataclass
class Content:
    """Additive counts and hash of some samples.

    Pixel counts are int64 `[num_classes]`, as in `DatasetInfo`; `hash_sum` adds the
    samples' SHA-256, independent of order and sharding.
    """

    images: int
    class_pixels: np.ndarray
    class_image_pixels: np.ndarray
    hash_sum: int

    @classmethod
    def empty(cls, num_classes: int) -> "Content":
        """Returns the content of zero samples."""
        zeros = np.zeros(num_classes, np.int64)
        return cls(0, zeros, zeros, 0)

    def __add__(self, other: "Content") -> "Content":
        return Content(
            self.images + other.images,
            self.class_pixels + other.class_pixels,
            self.class_image_pixels + other.class_image_pixels,
            (self.hash_sum + other.hash_sum) % _HASH_MODULUS,
        )

    def to_json(self) -> dict:
        """Returns the content as JSON values."""
        return {
            "images": self.images,
            "class_pixels": self.class_pixels.tolist(),
            "class_image_pixels": self.class_image_pixels.tolist(),
            "content_hash": f"{self.hash_sum:064x}",
        }


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

    def content(self, num_classes: int) -> Content:
        """Returns the counts and the hash of this sample."""
        counts = np.zeros(num_classes, np.int64)
        for class_id, count in self.pixels.items():
            counts[class_id] = count
        image_pixels = np.where(counts > 0, counts.sum(), 0)
        return Content(1, counts, image_pixels, int(self.digest, 16))

    def to_text(self) -> str:
        """Returns the member as one line of ASCII."""
        return json.dumps(self)

    @classmethod
    def from_text(cls, text: str, where: str) -> "Member":
        """Inverse of `to_text`; raises UserError."""
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


class Shard(NamedTuple):
    """A finished shard: its size in bytes and its records in order."""

    size: int
    members: tuple[Member, ...]

    def content(self, num_classes: int) -> Content:
        """Returns the total counts and hash."""
        contents = (member.content(num_classes) for member in self.members)
        return sum(contents, start=Content.empty(num_classes))


class Skipped(NamedTuple):
    """A sample that could not be converted."""

    name: str
    sources: str
    reason: str


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A shard in the file; each member is a line of JSON."""

    size: int
    members: list[str]


@dataclasses.dataclass(frozen=True)
class _ManifestFile:
    shards: dict[str, _Entry]
    # By split; each is [name, sources, reason] as a line of JSON.
    skipped: dict[str, list[str]]


class Manifest:
    """The finished shards of a folder, in its `conversion.json`.

    The key of a shard is its file name, with `records.FINISHED` until it is published.
    Entries whose file is missing or has another size are dropped. A manifest that
    cannot be read is reported and starts empty.

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
        self.found = tf.io.gfile.exists(self._path)
        if self.found:
            try:
                self._read()
            except UserError as error:
                print(
                    f"warning: {error}; every shard will be written again",
                    file=sys.stderr,
                )

    def _read(self) -> None:
        content = text_files.read_content(self._path, _MAX_BYTES)
        values = strict_json.load(content, self._path, _MAX_BYTES)
        file = strict_json.build(_ManifestFile, values, self._path)
        skipped = {
            split: [Skipped(*_parse_strings(row, 3, self._path)) for row in rows]
            for split, rows in file.skipped.items()
        }
        shards = {key: _parse_entry(e, self._path) for key, e in file.shards.items()}
        self.skipped = {k: {row.name: row for row in v} for k, v in skipped.items()}
        # A finished shard without a file was published just before an interruption.
        for key in sorted(shards, key=lambda key: key.endswith(records.FINISHED)):
            name = key.removesuffix(records.FINISHED)
            for existing in (key, name):
                if self._size(existing) == shards[key].size:
                    self.shards[existing] = shards[key]
                    break

    def _size(self, name: str) -> int | None:
        path = os.path.join(self._folder, name)
        return tf.io.gfile.stat(path).length if exists(path) else None

    def add(self, key: str, members: Sequence[Member]) -> Shard:
        """Adds a finished shard, whose file exists, and writes the manifest."""
        self.shards[key] = Shard(self._size(key) or 0, tuple(members))
        self._write()
        return self.shards[key]

    def skip(self, split: str, row: Skipped) -> None:
        """Adds a skipped sample, which the next `add` writes."""
        self.skipped.setdefault(split, {})[row.name] = row

    def keep(self, is_kept: Callable[[str], bool]) -> None:
        """Drops all other shards by key; removes an empty manifest."""
        kept = {k: v for k, v in self.shards.items() if is_kept(k)}
        if len(kept) < len(self.shards):
            self.shards = kept
            self._write()

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
        if not self.shards:
            remove([self._path])
            return
        values = {
            "shards": {
                key: {
                    "size": shard.size,
                    "members": [member.to_text() for member in shard.members],
                }
                for key, shard in self.shards.items()
            },
            "skipped": {
                split: [json.dumps(row) for row in rows.values()]
                for split, rows in self.skipped.items()
            },
        }
        outputs.write_text(strict_json.dump(values), self._path)


def is_published(key: str, split: str) -> bool:
    """Returns whether a key is that of a published shard of a split."""
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


def exists(*paths: str) -> bool:
    """Returns whether any of the paths exists."""
    return any(tf.io.gfile.exists(path) for path in paths)


def remove(paths: Iterable[str]) -> None:
    """Removes the files that exist."""
    for path in paths:
        if tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)
