"""Runs any program of ours in this process."""

import contextlib
import io

import pytest

from deeplab_tf.programs import run_program


def run(module, *arguments):
    """Runs a program and returns what it prints.

    Args:
        module: Its name, such as `deeplab_tf.programs.train`.
        *arguments: Its command line.
    """
    argv = [f"{module.rpartition('.')[2]}.py", *map(str, arguments)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run_program(module, argv)
    return out.getvalue()


def assert_refused(message, module, *arguments):
    """Checks that a program ends with one line that holds a message."""
    with pytest.raises(SystemExit, match=message) as ended:
        run(module, *arguments)
    assert "\n" not in ended.value.code
