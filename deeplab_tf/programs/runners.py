"""Runs a program on the runner of Apache Beam that `--runner` selects."""

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config.options import HARDWARE
from deeplab_tf.errors import UserError, require_extra

_FLAGS = {
    "runner": (
        *(flags.STRING, None),
        "Ours: run on this runner of Apache Beam, such as DirectRunner, "
        "FlinkRunner or DataflowRunner.",
    ),
    "runner_options": (
        *(flags.REPEATED, []),
        "Ours: an option of the runner; options may also follow `--`.",
    ),
}


def define_flags(values: absl_flags.FlagValues) -> None:
    """Defines --runner and --runner_options."""
    flags.define_flags(values, _FLAGS, HARDWARE)


def split_options(argv: list[str]) -> tuple[list[str], list[str]]:
    """Splits a command line at `--` into the program's flags and a runner's options."""
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]


def add_options(values: absl_flags.FlagValues, options: Sequence[str]) -> None:
    """Adds the options that follow `--` to --runner_options."""
    if options and ("runner" not in values or not values.runner):
        raise UserError(
            f"{options[0]!r} follows `--`, which is for the options of --runner"
        )
    if options:
        values.runner_options = [*values.runner_options, *options]


def check(values: absl_flags.FlagValues, unavailable: Sequence[str]) -> None:
    """Raises UserError if --runner cannot be used.

    `unavailable` are flags that only work in one process.
    """
    if not values.runner:
        if values.runner_options:
            raise UserError("--runner_options has no effect without --runner")
        return
    for name in unavailable:
        if values[name].present and values[name].value:
            raise UserError(f"--{name} is not available with --runner; remove one")
    require_extra(["apache_beam"], "beam", "--runner needs")


def list_given(values: absl_flags.FlagValues) -> list[str]:
    """Returns the command line of the flags that were given."""
    given = (values[name] for name in values if values[name].present)
    return [line for flag in given for line in flag.serialize().split("\n")]


def parse_given(program: str, given: Sequence[str]) -> absl_flags.FlagValues:
    """Parses the flags of `list_given` in a worker; `program` is a module."""
    values = importlib.import_module(program).define_flags()
    values(["worker", *given])
    return values


def run_tasks(
    values: absl_flags.FlagValues,
    work: Sequence[Callable],
    tasks: Sequence[Any],
    folder: str,
) -> list[Any]:
    """Runs tasks on --runner; see `beam.pipelines.run_tasks`.

    `work` are the functions of `beam.workers.Work`.
    """
    logging.disable(logging.WARNING)  # Beam warns about packages of Google Cloud
    from deeplab_tf.beam import pipelines

    logging.disable(logging.NOTSET)

    runner = pipelines.Runner(values.runner, values.runner_options)
    return pipelines.run_tasks(pipelines.Work(*work), tasks, folder, runner)
