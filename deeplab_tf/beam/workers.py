"""Runs tasks in worker processes of Beam.

TensorFlow is imported only after `Work.start`.
"""

import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.utils import shared


class Work(NamedTuple):
    """The functions that the workers of a pipeline call.

    Attributes:
        start: Called first in every worker process; must not import TensorFlow when it
            is unpickled.
        load: Called once per worker process.
        run: Called with the value that `load` returned and a task. Several workers may
            run the same task, even at the same time.
    """

    start: Callable[[], object]
    load: Callable[[], Any]
    run: Callable[[Any, Any], Any]


class _Loaded:
    """A function bound to its state, in a class because `Shared` needs weakrefs."""

    def __init__(self, state: Any, run: Callable[[Any, Any], Any]):
        self.run = functools.partial(run, state)


class RunTask(beam.DoFn):
    """Runs tasks by number; their files are in `folder`, see `task_files`."""

    def __init__(self, work: Work, folder: str):
        self._start = work.start
        # Unpickling these imports TensorFlow, which `start` must configure first.
        self._pickled = pickle.dumps((work.load, work.run))
        self._folder = folder
        self._shared = shared.Shared()

    def setup(self) -> None:
        """Prepares a worker process, before anything imports TensorFlow."""
        self._start()

    def _load(self) -> _Loaded:
        load, run = pickle.loads(self._pickled)
        return _Loaded(load(), run)

    def process(self, element: int) -> Iterator[int]:
        """Yields the number once the result of its task is written."""
        from deeplab_tf.beam import task_files

        def run(task: Any) -> Any:
            return self._shared.acquire(self._load).run(task)

        task_files.run_task(self._folder, element, run)
        yield element
