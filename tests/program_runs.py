"""Runs the programs in this process."""

import contextlib
import io

import pytest

from deeplab_tf.programs import run_program


def run(module, *arguments):
    """Runs a program and returns its output.

    Args:
        module: Its module, such as `deeplab_tf.programs.train`.
        *arguments: Its command-line arguments.
    """
    argv = [f"{module.rpartition('.')[2]}.py", *map(str, arguments)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run_program(module, argv)
    return out.getvalue()


def assert_refused(message, module, *arguments):
    """Checks that a program exits with a one-line error that matches a message."""
    with pytest.raises(SystemExit, match=message) as error:
        run(module, *arguments)
    assert "\n" not in error.value.code
