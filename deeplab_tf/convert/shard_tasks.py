"""The tasks that write shards, in this process or in others; see `shards`."""

import functools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from deeplab_tf.convert import additions
from deeplab_tf.convert.manifest import Member, Skipped, remove, write_part
from deeplab_tf.data import records
from deeplab_tf.errors import UnclearError, UserError, one_line


class Record(NamedTuple):
    """A converted sample.

    Attributes:
        content: The serialized record.
        pixels: Number of pixels of each class that occurs.
        digest: SHA-256 of name and pixels, hexadecimal.
        findings: What `findings.collect` found.
    """

    content: bytes
    pixels: dict[int, int]
    digest: str
    findings: Sequence[Any] = ()


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


MakeRecord = Callable[[Any], Record]


class Copy(NamedTuple):
    """A published record to copy: its file and offset, and its member."""

    path: str
    offset: int
    member: Member


class Written(NamedTuple):
    """What a task wrote.

    Attributes:
        members: The records of the shard.
        skipped: The samples that were skipped.
        findings: The findings of all records, up to the error.
        error: The error that ended the task; None if the shard is finished.
    """

    members: Sequence[Member] = ()
    skipped: Sequence[Skipped] = ()
    findings: Sequence[Any] = ()
    error: UserError | None = None


class ShardTask(NamedTuple):
    """A shard to write; can be pickled if its samples can.

    Attributes:
        folder: The output folder.
        shard: The shard.
        copies: The published record to copy for each item; None for new ones.
        skip_broken: Whether to skip broken samples.
    """

    folder: str
    shard: PlannedShard
    copies: Sequence[Copy | None]
    skip_broken: bool

    def list_samples(self) -> list[Any]:
        """Returns the samples to convert, in order."""
        items = zip(self.shard.items, self.copies, strict=True)
        return [item.sample for item, copy in items if copy is None]

    def run(self, make_record: MakeRecord, scratch: str) -> Written:
        """Writes the shard in this thread, and what the manifest will say of it.

        Several processes may run the same task at once.

        Args:
            make_record: Makes the record of a sample.
            scratch: A folder on the disk of the output.
        """
        made = (functools.partial(make_record, s) for s in self.list_samples())
        path = os.path.join(scratch, f"{self.shard.name}-{secrets.token_hex(8)}")
        findings: list[Any] = []
        try:
            members, skipped = self.write(path, made, findings.append)
        except UserError as error:
            return Written(findings=findings, error=error)
        key = self.shard.name + records.FINISHED
        tf.io.gfile.rename(path, os.path.join(self.folder, key), overwrite=True)
        write_part(self.folder, scratch, key, members, (self.shard.split, skipped))
        return Written(members, skipped, findings)

    def write(
        self,
        path: str,
        made: Iterator[Callable[[], Record]],
        add_finding: Callable[[Any], None],
        update_progress: Callable[[], Any] = lambda: None,
    ) -> tuple[list[Member], list[Skipped]]:
        """Writes the records of the shard to a file, and removes it after an error.

        Args:
            path: Path of the file.
            made: Functions that return the records of the samples.
            add_finding: Takes the findings of the records.
            update_progress: Called after each record.

        Returns:
            The records, and the samples that were skipped.
        """
        members, skipped = [], []
        try:
            with tf.io.TFRecordWriter(path) as writer:
                for content, member in self._read_items(made, add_finding, skipped):
                    if content:
                        writer.write(content)
                        members.append(member)
                    update_progress()
        except BaseException:
            remove([path])
            raise
        return members, skipped

    def _read_items(
        self,
        made: Iterator[Callable[[], Record]],
        add_finding: Callable[[Any], None],
        skipped: list[Skipped],
    ) -> Iterator[tuple[bytes, Member]]:
        """Yields the record of each item, empty if it is skipped, and its member."""
        published = records.read_records([c[:2] for c in self.copies if c])
        for item, copy in zip(self.shard.items, self.copies, strict=True):
            if copy is not None:
                content, member = next(published), copy.member
            else:
                try:
                    record = next(made)()
                except UserError as error:
                    skipped.append(self._skip(item.member, error))
                    yield b"", item.member
                    continue
                for finding in record.findings:
                    add_finding(finding)
                content = record.content
                member = item.member._replace(
                    pixels=record.pixels, digest=record.digest
                )
            additions.require_same_sources(
                self.folder, self.shard.split, item.earlier, member
            )
            yield content, member

    def _skip(self, member: Member, error: UserError) -> Skipped:
        """Returns the row of a broken sample, or raises its error."""
        if not self.skip_broken or isinstance(error, UnclearError):
            raise error
        return Skipped(member.name, member.sources, one_line(error))


# Runs tasks, each with `ShardTask.run`, in processes that can reach the output folder,
# and returns what they wrote. Tasks share objects: pickle them together.
RunTasks = Callable[[MakeRecord, Sequence[ShardTask], str], Sequence[Written]]
