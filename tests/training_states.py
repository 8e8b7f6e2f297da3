"""Small training states, and processes that save them."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf.training.state import TrainingState

WEIGHTS = ("a/weights", "a/BatchNorm/moving_mean")
TESTS = pathlib.Path(__file__).resolve().parent


def make_state(folder, fill, weights=WEIGHTS, size=3, **options):
    """Returns a state filled with one number, and its variables."""
    model = {n: keras.Variable(np.full(size, fill, np.float32)) for n in weights}
    slots = {"a/weights/Momentum": tf.Variable(np.full(size, fill, np.float32))}
    step = keras.Variable(int(fill), dtype="int64")
    samples = tf.Variable(int(fill), dtype=tf.int64)
    groups = {"model": model, "optimizer": slots, "seeds": {}}
    state = TrainingState(str(folder), groups, step, samples, **options)
    return state, {**model, **slots, "step": step, "samples": samples}


def fill_with(variables, number):
    for variable in variables.values():
        variable.assign(np.full(variable.shape, number))


def get_number(variables):
    """Returns the number that all values are equal to."""
    (number,) = {n for v in variables.values() for n in np.unique(v.numpy())}
    return int(number)


def run_in_process(module, call, *prefix):
    """Calls a function of a test module in a new process; returns its stderr.

    Args:
        module: Path of the module in tests/.
        call: The call as text.
        *prefix: Command that runs Python, such as `unshare`.
    """
    folder, name = os.path.split(TESTS / module)
    paths = (folder, str(TESTS), str(TESTS.parent))
    process = subprocess.run(
        [*prefix, sys.executable, "-c", f"import {name}; {name}.{call}"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stderr
