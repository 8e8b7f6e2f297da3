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
from typing import Any

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
from deeplab_tf.convert.shard_tasks import (
    Copy,
    Item,
    MakeRecord,
    PlannedShard,
    Record,
    ShardTask,
)
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError, escape
from deeplab_tf.files import outputs
from deeplab_tf.progress import ProgressBar

SKIPPED_FILE = "skipped.txt"
OWN_FILES = (MANIFEST, records.INFO_FILE, SKIPPED_FILE)


# The converters of official datasets know all images of a split.
REPLACE = RunOptions()


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
        make_record: MakeRecord,
        add_finding: Callable[[Any], None],
    ):
        self.folder = folder
        self.options = options
        self._settings = settings
        self._make_record = make_record
        self._add_finding = add_finding
        self._is_waiting = False  # for `options.run_tasks`
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

        The error is always that of the first broken sample.

        Args:
            shards: All shards of this run.
            workers: Number of threads, unless the options have `run_tasks`.

        Raises:
            UserError: if a sample is broken.
        """
        done = [self._find_finished(shard) for shard in shards]
        missing = [s for s, d in zip(shards, done, strict=True) if d is None]
        tasks = [self._make_task(shard) for shard in missing]
        total, left = (sum(len(s.items) for s in group) for group in (shards, missing))
        with (
            ProgressBar(
                total=total, initial=total - left, desc="records", unit="img"
            ) as bar,
            contextlib.closing(self._run_tasks(tasks, workers, bar)) as written,
        ):
            written_shards = [
                (shard, finished or self._add(shard, *next(written)))
                for shard, finished in zip(shards, done, strict=True)
            ]
        self.manifest.remove_parts()
        return written_shards

    def _make_task(self, shard: PlannedShard) -> ShardTask:
        """Returns the task that writes a shard."""
        found = [
            self._published.get((shard.split, *_get_key(item.member)))
            for item in shard.items
        ]
        copies = [
            Copy(row[0], self._offsets(row[0])[row[1]], row[2]) if row else None
            for row in found
        ]
        return ShardTask(self.folder, shard, copies, self.options.skip_broken)

    def _run_tasks(
        self, tasks: Sequence[ShardTask], workers: int, progress: ProgressBar
    ) -> Iterator[tuple[Sequence[Member], Sequence[Skipped]]]:
        """Yields the records and skipped samples of each shard, once it is finished."""
        if self.options.run_tasks is None:
            samples = (sample for task in tasks for sample in task.list_samples())
            made = _map_in_order(self._make_record, samples, workers)
            with contextlib.closing(made):
                for task in tasks:
                    yield self._write(task, made, progress)
        elif tasks:
            self._forget_finished(task.shard for task in tasks)
            self._is_waiting = True
            results = self.options.run_tasks(self._make_record, tasks, self.folder)
            self._is_waiting = False
            for task, result in zip(tasks, results, strict=True):
                for finding in result.findings:
                    self._add_finding(finding)
                if result.error is not None:
                    raise result.error
                progress.update(len(task.shard.items))
                yield result.members, result.skipped

    def _forget_finished(self, shards: Iterable[PlannedShard]) -> None:
        """Drops finished shards that an interrupted run made from other files."""
        keys = {shard.name + records.FINISHED for shard in shards}
        self.manifest.keep_only(lambda key: key not in keys)

    def _write(
        self,
        task: ShardTask,
        made: Iterator[Callable[[], Record]],
        progress: ProgressBar,
    ) -> tuple[Sequence[Member], Sequence[Skipped]]:
        """Writes a shard from the results of its samples."""
        self._forget_finished([task.shard])
        path = self.path(task.shard.name + records.UNFINISHED)
        written = task.write(path, made, self._add_finding, progress.update)
        target = self.path(task.shard.name + records.FINISHED)
        tf.io.gfile.rename(path, target, overwrite=True)
        return written

    def _add(
        self,
        shard: PlannedShard,
        members: Sequence[Member],
        skipped: Sequence[Skipped],
    ) -> Shard:
        """Adds a finished shard to the manifest."""
        for row in skipped:
            self.skipped[shard.split, row.name] = row
            self.manifest.add_skipped(shard.split, row)
        return self.manifest.add(shard.name + records.FINISHED, members)

    def _find_finished(self, shard: PlannedShard) -> Shard | None:
        """Returns a shard that an earlier run finished from the same files."""
        for key in (shard.name + records.FINISHED, shard.name):
            done = self.manifest.shards.get(key)
            if done is not None and self._is_same(shard, done):
                return done
        return None

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

    def is_resumable(self) -> bool:
        """Returns whether `options.run_tasks` failed after it finished shards."""
        return self._is_waiting and self.manifest.has_parts()

    def remove_unpublished(self, splits: Iterable[str]) -> None:
        """Removes the unpublished files of this run and of interrupted ones."""
        splits = {*splits}
        self.manifest.remove_parts()
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
        for split in dict.fromkeys(shard.split for shard in shards):
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
