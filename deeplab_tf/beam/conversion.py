"""Writes the shards of a conversion on the workers of a runner."""

import functools
import os
from collections.abc import Callable, Sequence

from deeplab_tf.beam import task_files
from deeplab_tf.convert.shard_tasks import MakeRecord, ShardTask, Written

_PLAN = "plan"

# Runs `run(load(), number)` for each number, and returns the results in order.
RunNumbers = Callable[[Callable, Callable, Sequence[int], str], Sequence[Written]]


def write_shards(
    run: RunNumbers, make_record: MakeRecord, tasks: Sequence[ShardTask], folder: str
) -> Sequence[Written]:
    """Runs the tasks that write shards; see `shard_tasks.RunTasks`.

    All tasks are in one file, since samples share objects that know all of them.
    """
    with task_files.create_folder(folder) as scratch:
        task_files.write((make_record, tasks), os.path.join(scratch, _PLAN))
        load = functools.partial(_load, scratch)
        return run(load, _write_shard, range(len(tasks)), folder)


def _load(scratch: str) -> tuple[MakeRecord, Sequence[ShardTask], str]:
    return *task_files.read(os.path.join(scratch, _PLAN)), scratch


def _write_shard(
    plan: tuple[MakeRecord, Sequence[ShardTask], str], number: int
) -> Written:
    make_record, tasks, scratch = plan
    return tasks[number].run(make_record, scratch)
