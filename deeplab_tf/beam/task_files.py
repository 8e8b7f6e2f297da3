"""Files of tasks and their results, in a folder that all workers can reach."""

import contextlib
import os
import pickle
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.files import ledger, scratch
from deeplab_tf.files.file_kinds import is_remote


@contextlib.contextmanager
def create_folder(parent: str) -> Iterator[str]:
    """Creates a scratch folder and removes it at the end."""
    if not is_remote(parent):
        with scratch.create_folder(parent) as folder:
            yield folder
        return
    folder = os.path.join(parent, f".deeplab_tf-{secrets.token_hex(8)}.tmp")
    tf.io.gfile.makedirs(folder)
    try:
        yield folder
    finally:
        tf.io.gfile.rmtree(folder)


def write_task(folder: str, number: int, task: Any) -> None:
    """Writes the task with the given number."""
    write(task, _name_file(folder, number, "task"))


def has_result(folder: str, number: int) -> bool:
    """Returns whether the result of a task exists."""
    return tf.io.gfile.exists(_name_file(folder, number, "result"))


def read_result(folder: str, number: int) -> Any:
    """Returns the result of a task, or the UserError that it raised."""
    return read(_name_file(folder, number, "result"))


def run_task(folder: str, number: int, run: Callable[[Any], Any]) -> None:
    """Runs a task and writes its result, or the UserError that it raised."""
    try:
        with ledger.write_part(f"{number:06d}"):
            result = run(read(_name_file(folder, number, "task")))
    except UserError as error:
        result = error
    # Two workers may run the same task.
    unfinished = _name_file(folder, number, secrets.token_hex(8))
    write(result, unfinished)
    tf.io.gfile.rename(unfinished, _name_file(folder, number, "result"), overwrite=True)


def _name_file(folder: str, number: int, suffix: str) -> str:
    return os.path.join(folder, f"{number:06d}.{suffix}")


def write(value: Any, path: str) -> None:
    """Pickles a value to a file."""
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(pickle.dumps(value))


def read(path: str) -> Any:
    """Returns the value in a file of `write`."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return pickle.loads(file.read())
