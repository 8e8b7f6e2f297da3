"""Runs independent tasks on a runner of Apache Beam.

The elements of a pipeline are task numbers. Each task reads its input and writes its
output itself, so a bundle that a runner retries writes the same files again, and no
data passes between stages.
"""

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from deeplab_tf.beam import task_files
from deeplab_tf.beam.workers import RunTask, Work
from deeplab_tf.errors import UserError, one_line, suggest_similar

# The job servers of these runners define further options.
_WITH_JOB_SERVER = ("Flink", "Kafka", "Portable", "Prism", "Spark")


class Runner(NamedTuple):
    """A Beam runner, such as DirectRunner, and its options."""

    name: str
    options: Sequence[str] = ()

    def make_options(self) -> PipelineOptions:
        """Parses the options.

        Raises:
            UserError: if Beam has no such runner, or an option is unknown or has an
                invalid value.
        """
        try:
            beam.runners.runner.create_runner(self.name)
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(f"--runner={self.name}: {one_line(error)}") from error
        # Options that come later take precedence.
        first = [f"--runner={self.name}", "--default_sdk_harness_log_level=WARNING"]
        options = PipelineOptions([*first, *self.options])
        try:
            # argparse prints the error and exits.
            with contextlib.redirect_stderr(io.StringIO()) as output:
                known = options.get_all_options()
        except SystemExit as error:
            message = output.getvalue().strip().rpartition("error: ")[2]
            raise UserError(f"--runner={self.name}: {message}") from error
        unknown = options.get_all_options(retain_unknown_options=True).keys() - known
        if unknown and not self.name.startswith(_WITH_JOB_SERVER):
            name = f"--{min(unknown)}"
            similar = suggest_similar(name, [f"--{option}" for option in known])
            raise UserError(f"--runner={self.name} has no option {name}; {similar}")
        return options


def run_tasks(
    work: Work, tasks: Sequence[Any], folder: str, runner: Runner
) -> list[Any]:
    """Runs tasks on the workers of a runner and returns their results in order.

    Args:
        work: What to run.
        tasks: The tasks; like results, they are pickled.
        folder: An output folder that all workers can reach. Tasks and results are in a
            scratch folder in it.
        runner: The runner.

    Raises:
        UserError: the first one that a task raised; or if the pipeline failed.
    """
    options = runner.make_options()
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    with task_files.create_folder(folder) as scratch:
        for number, task in enumerate(tasks):
            task_files.write_task(scratch, number, task)
        with _exit_if_worker_dies():
            _run_pipeline(RunTask(work, scratch), len(tasks), options, runner)
        numbers = range(len(tasks))
        missing = sum(not task_files.has_result(scratch, i) for i in numbers)
        if missing:
            raise UserError(
                f"--runner={runner.name} returned no result for {missing} of "
                f"{len(tasks)} tasks; check that all workers can write to {folder}"
            )
        results = [task_files.read_result(scratch, i) for i in numbers]
    for result in results:
        if isinstance(result, UserError):
            raise result
    return results


def _run_pipeline(
    do_fn: beam.DoFn, num_tasks: int, options: PipelineOptions, runner: Runner
) -> None:
    """Runs the pipeline and waits for it; raises UserError if it fails."""
    try:
        pipeline = beam.Pipeline(options=options)
        # Without a shuffle, a runner may run all tasks in one bundle.
        numbers = pipeline | beam.Create(range(num_tasks)) | beam.Reshuffle()
        numbers | beam.ParDo(do_fn)
        state = pipeline.run().wait_until_finish()
    except Exception as error:
        message = one_line(error) or type(error).__name__
        raise UserError(f"--runner={runner.name} failed: {message}") from error
    if state not in (None, PipelineState.DONE):
        raise UserError(f"--runner={runner.name} ended in state {state}")


@contextlib.contextmanager
def _exit_if_worker_dies() -> Iterator[None]:
    """Exits if a worker process of the DirectRunner is killed.

    The DirectRunner raises the error in a background thread, and its main thread keeps
    waiting for the worker.
    """
    earlier = threading.excepthook

    def handle(arguments: threading.ExceptHookArgs) -> None:
        thread = arguments.thread
        if thread is not None and thread.name == "run_worker":
            _exit(f"a worker process ended: {arguments.exc_value}")
        earlier(arguments)

    threading.excepthook = handle
    try:
        yield
    finally:
        threading.excepthook = earlier


def _exit(reason: str) -> NoReturn:
    """Exits immediately; other workers exit when they lose their connection."""
    name = os.path.basename(sys.argv[0])
    print(f"{name}: {reason}; run the command again", file=sys.stderr, flush=True)
    os._exit(1)
