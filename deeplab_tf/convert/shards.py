"""Writes shards in parallel and publishes them together; see `conversion`."""

import contextlib
import functools
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import tensorflow as tf

from deeplab_tf.convert import additions
from deeplab_tf.convert.manifest import (
    MANIFEST,
    Manifest,
    Member,
    Shard,
    Skipped,
    remove,
)
from deeplab_tf.convert.options import RunOptions
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UnclearError, UserError, escape, one_line
from deeplab_tf.files import outputs
from deeplab_tf.progress import ProgressBar

SKIPPED_FILE = "skipped.txt"
OWN_FILES = (MANIFEST, records.INFO_FILE, SKIPPED_FILE)
# Content, pixels by class and digest of a record.
Record = tuple[bytes, dict[int, int], str]


# The converters of official datasets know all images of a split.
REPLACE = RunOptions()


class Item(NamedTuple):
    """A record to write, of a sample or copied from an earlier shard.

    Attributes:
        member: What it is made from; without counts and digest for a sample.
        sample: The sample; None for a record of an earlier run.
        earlier: The record of this name from an earlier run.
    """

    member: Member
    sample: Any = None
    earlier: Member | None = None


class PlannedShard(NamedTuple):
    """The records that one file of a split will have."""

    split: str
    name: str
    items: Sequence[Item]


_Finished = tuple[PlannedShard, Shard]


def split_into_shards(
    split: str, items: Sequence, num_shards: int
) -> list[PlannedShard]:
    """Returns shards of `ceil(n / num_shards)` samples, as in the official code.

    There may be fewer than `num_shards`, because none is empty.
    """
    size = math.ceil(len(items) / num_shards)
    num_shards = math.ceil(len(items) / size)
    return [
        PlannedShard(
            split, _shard_name(split, i, num_shards), items[i * size : (i + 1) * size]
        )
        for i in range(num_shards)
    ]


def _shard_name(split: str, number: int, num_shards: int) -> str:
    return f"{split}-{number:05d}-of-{num_shards:05d}.tfrecord"


def _describe_sources(sample: Any, settings: str) -> Member:
    """Returns the member of a sample that is not converted yet."""
    paths = [_absolute(os.fspath(path)) for path in sample.sources]
    text = [settings]
    for path in paths:
        stat = tf.io.gfile.stat(path)
        text.append(f"{sample.name} {path} {stat.length} {stat.mtime_nsec}")
    return Member(sample.name, paths[0], _hash(paths), _hash(text), {}, "")


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _hash(lines: Sequence[str]) -> str:
    text = json.dumps(lines).encode()
    return hashlib.sha256(text).hexdigest()[:32]


class Conversion:
    """One run of a converter in its output folder."""

    def __init__(
        self,
        folder: str,
        options: RunOptions,
        settings: str,
        make_record: Callable[[Any], Record],
    ):
        self.folder = folder
        self.options = options
        self._settings = settings
        self._make_record = make_record
        is_new = not tf.io.gfile.exists(folder)
        outputs.claim(folder, OWN_FILES)
        tf.io.gfile.makedirs(folder)
        records.finish_publishing(folder)
        self.manifest = Manifest(folder)
        # Whether this run or an interrupted one created the folder.
        self.is_ours = is_new or self.manifest.found
        # Samples of this run that could not be converted, by split and name.
        self.skipped: dict[tuple[str, str], Skipped] = {}
        # Path, number and member of each published record, by split, name and sources.
        self._published = {
            (records.parse_split(key), *_get_key(member)): (
                self.path(key),
                number,
                member,
            )
            for key, shard in self.manifest.shards.items()
            if not key.endswith(records.FINISHED)
            for number, member in enumerate(shard.members)
        }
        self._offsets = functools.cache(
            lambda path: records.index_records([path]).offset
        )

    def path(self, name: str) -> str:
        """Returns the path of a file in the output folder."""
        return os.path.join(self.folder, name)

    def plan(self, split: str, samples: Sequence) -> list[Item]:
        """Returns the records of a split: those of the samples and of earlier runs.

        Raises:
            UserError: if an earlier record has other content, or its image is missing.
        """
        describe = functools.partial(_describe_sources, settings=self._settings)
        with futures.ThreadPoolExecutor() as pool:  # for remote files
            described = pool.map(describe, samples)
            items = [Item(m, s) for m, s in zip(described, samples, strict=True)]
        if not self.options.adds:
            return items
        earlier = additions.find_earlier_records(self.folder, self.manifest, split)
        members = [item.member for item in items]
        kept = additions.select_kept_records(self.folder, split, earlier, members)
        items = [item._replace(earlier=earlier.get(item.member.name)) for item in items]
        items += [Item(member) for member in kept]
        return sorted(items, key=lambda item: item.member.name)

    def write_shards(
        self, shards: Sequence[PlannedShard], workers: int
    ) -> list[_Finished]:
        """Writes shards, except for those of earlier runs, and adds their records.

        Threads convert the samples, which are written in order, so that the error is
        always that of the first broken one.

        Args:
            shards: All shards of this run.
            workers: Number of threads.

        Raises:
            UserError: if a sample is broken.
        """
        done = [self._find_finished(shard) for shard in shards]
        missing = [s for s, d in zip(shards, done, strict=True) if d is None]
        samples = (
            item.sample
            for shard in missing
            for item in shard.items
            if self._find_published(shard, item) is None
        )
        total, left = (sum(len(s.items) for s in group) for group in (shards, missing))
        with (
            ProgressBar(
                total=total, initial=total - left, desc="records", unit="img"
            ) as bar,
            contextlib.closing(
                _map_in_order(self._make_record, samples, workers)
            ) as made,
        ):
            return [
                (shard, finished or self._write(shard, made, bar))
                for shard, finished in zip(shards, done, strict=True)
            ]

    def _find_finished(self, shard: PlannedShard) -> Shard | None:
        """Returns a shard that an earlier run finished from the same files."""
        for key in (shard.name + records.FINISHED, shard.name):
            done = self.manifest.shards.get(key)
            if done is not None and self._is_same(shard, done):
                return done
        return None

    def _find_published(
        self, shard: PlannedShard, item: Item
    ) -> tuple[str, int, Member] | None:
        """Returns file, number and member of a published record, None if new."""
        return self._published.get((shard.split, *_get_key(item.member)))

    def _is_same(self, shard: PlannedShard, done: Shard) -> bool:
        """Returns whether a finished shard has the records, apart from skipped ones."""
        known = self.manifest.skipped.get(shard.split, {})
        keys, skipped = [], {}
        for item in shard.items:
            row = known.get(item.member.name) if self.options.skip_broken else None
            if row is not None and row.sources == item.member.sources:
                skipped[shard.split, row.name] = row
            else:
                keys.append(_get_key(item.member))
        if keys != [_get_key(member) for member in done.members]:
            return False
        self.skipped |= skipped
        return True

    def _write(
        self,
        shard: PlannedShard,
        made: Iterator[Callable[[], Record]],
        progress: ProgressBar,
    ) -> Shard:
        """Writes a shard from the results of its samples."""
        finished = shard.name + records.FINISHED
        # One from an interrupted run was made from other files.
        self.manifest.keep_only(lambda key: key != finished)
        path = self.path(shard.name + records.UNFINISHED)
        members = []
        try:
            with tf.io.TFRecordWriter(path) as writer:
                for record, member in self._read_items(shard, made):
                    if record:
                        writer.write(record)
                        members.append(member)
                    progress.update()
        except BaseException:
            remove([path])
            raise
        tf.io.gfile.rename(path, self.path(finished), overwrite=True)
        return self.manifest.add(finished, members)

    def _read_items(
        self, shard: PlannedShard, made: Iterator[Callable[[], Record]]
    ) -> Iterator[tuple[bytes, Member]]:
        """Yields the record of each item, empty if it is skipped, and its member."""
        locations = [self._find_published(shard, item) for item in shard.items]
        published = records.read_records(
            [(path, self._offsets(path)[n]) for path, n, _ in filter(None, locations)]
        )
        for item, location in zip(shard.items, locations, strict=True):
            if location is not None:
                content, member = next(published), location[2]
            else:
                try:
                    content, pixels, digest = next(made)()
                except UserError as error:
                    self._skip(shard.split, item.member, error)
                    yield b"", item.member
                    continue
                member = item.member._replace(pixels=pixels, digest=digest)
            additions.require_same_sources(
                self.folder, shard.split, item.earlier, member
            )
            yield content, member

    def _skip(self, split: str, member: Member, error: UserError) -> None:
        """Records a broken sample as skipped, or raises its error."""
        if not self.options.skip_broken or isinstance(error, UnclearError):
            raise error
        row = Skipped(member.name, member.sources, one_line(error))
        self.skipped[split, member.name] = row
        self.manifest.add_skipped(split, row)

    def remove_unpublished(self, splits: Iterable[str]) -> None:
        """Removes the unpublished files of this run and of interrupted ones."""
        splits = {*splits}
        self.manifest.keep_only(
            lambda key: (
                not key.endswith(records.FINISHED)
                or records.parse_split(key) not in splits
            )
        )
        paths = [
            p for split in splits for p in records.list_split_files(self.folder, split)
        ]
        suffixes = (records.FINISHED, records.UNFINISHED)
        remove(p for p in paths if records.is_shard(p) and p.endswith(suffixes))
        outputs.remove_if_empty(self.folder, keep_folder=not self.is_ours)

    def renumber_shards(self, done: Sequence[_Finished]) -> list[_Finished]:
        """Copies shards with records to consecutive names, and returns them.

        Raises:
            UserError: if a split has none, because all its images were skipped.
        """
        full = [(shard, result) for shard, result in done if result.members]
        for split in {shard.split for shard, _ in done}:
            own = [i for i, (shard, _) in enumerate(full) if shard.split == split]
            if not own:
                reason = next(
                    r.reason for (s, _), r in self.skipped.items() if s == split
                )
                raise UserError(f"every image of the split {split} is broken: {reason}")
            for number, i in enumerate(own):
                shard, result = full[i]
                name = _shard_name(split, number, len(own))
                if name != shard.name:
                    self._copy_shard(shard.name, name, result)
                    full[i] = shard._replace(name=name), result
        return full

    def _copy_shard(self, old: str, new: str, shard: Shard) -> None:
        """Copies a shard to a new name, to be published."""
        finished = self.path(old + records.FINISHED)
        source = finished if tf.io.gfile.exists(finished) else self.path(old)
        target = new + records.FINISHED
        tf.io.gfile.copy(source, self.path(target), overwrite=True)
        self.manifest.add(target, shard.members)

    def publish(self, shards: Sequence[PlannedShard], info: DatasetInfo) -> None:
        """Replaces the shards of these splits.

        Also writes the info, the manifest and the list of skipped images.
        """
        names: dict[str, list[str]] = {}
        for shard in shards:
            names.setdefault(shard.split, []).append(shard.name)
        records.publish(names, info, self.folder)
        self._update_skipped(shards)
        self.manifest.publish(lambda key: tf.io.gfile.exists(self.path(key)))
        self._write_skipped()

    def _update_skipped(self, shards: Sequence[PlannedShard]) -> None:
        """Replaces the skipped samples of this run's splits in the manifest."""
        for split in {shard.split for shard in shards}:
            earlier = self.manifest.skipped.pop(split, {}) if self.options.adds else {}
            tried = {i.member.name for s in shards if s.split == split for i in s.items}
            rows = {n: row for n, row in earlier.items() if n not in tried}
            rows |= {n: row for (s, n), row in self.skipped.items() if s == split}
            self.manifest.skipped[split] = dict(sorted(rows.items()))

    def _write_skipped(self) -> None:
        """Writes the list of skipped images, or removes it if there are none."""
        rows = [row for s in self.manifest.skipped.values() for row in s.values()]
        path = self.path(SKIPPED_FILE)
        if rows:
            lines = (f"{escape(row.name)}\t{row.reason}\n" for row in rows)
            outputs.write_text("".join(lines), path)
        elif tf.io.gfile.exists(path) and outputs.is_ours(path):
            remove([path])


def _get_key(member: Member) -> tuple[str, str]:
    return member.name, member.sources


def _map_in_order(
    function: Callable[[Any], Record], values: Iterable[Any], workers: int
) -> Iterator[Callable[[], Record]]:
    """Calls a function in threads, and yields functions that return its results.

    Few results are kept, to bound the memory.
    """
    waiting: deque[futures.Future[Record]] = deque()
    with futures.ThreadPoolExecutor(workers) as pool:
        try:
            for value in values:
                waiting.append(pool.submit(function, value))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result
            while waiting:
                yield waiting.popleft().result
        finally:
            pool.shutdown(cancel_futures=True)
