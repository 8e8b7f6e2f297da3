"""Follows the checkpoints of a training run."""

import time
from collections.abc import Iterator

import tensorflow as tf

from deeplab_tf.checkpoints import tf1
from deeplab_tf.errors import UserError


def follow_checkpoints(folder: str, seconds: float) -> Iterator[tf1.Checkpoint]:
    """Yields the newest checkpoint of a folder, then each newer one as it appears.

    Prints a message when it starts to wait. `folder` need not exist yet; `seconds` is
    the polling interval. Raises UserError if `folder` is a file.
    """
    latest, is_announced = None, False
    while True:
        began = time.monotonic()
        newest = _find_newest(folder)
        if newest not in (None, latest):
            checkpoint = tf1.read_checkpoint(folder)
            latest, is_announced = checkpoint.prefix, False
            yield checkpoint
        elif not is_announced:
            print(f"waiting for a checkpoint in {folder}", flush=True)
            is_announced = True
        time.sleep(max(1.0, began + seconds - time.monotonic()))


def _find_newest(folder: str) -> str | None:
    if tf.io.gfile.exists(folder) and not tf.io.gfile.isdir(folder):
        raise UserError(f"{folder} is not a folder; --eval_interval_secs needs one")
    try:
        return tf1.resolve(folder)
    except tf1.MissingCheckpointError:
        return None
