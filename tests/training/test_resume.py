"""Reading and writing `experiment.json` of a `train_logdir`."""

import resource

import pytest
import tensorflow as tf

from deeplab_tf import Experiment, UserError
from deeplab_tf.training.resume import read_experiment, write_experiment


def test_experiment_is_stored_next_to_checkpoints():
    folder = "ram://test_resume/logs"
    assert read_experiment(folder) is None
    write_experiment(Experiment(split="trainval"), folder)
    assert read_experiment(folder) == Experiment(split="trainval")
    with tf.io.gfile.GFile(f"{folder}/experiment.json", "w") as file:
        file.write("{")
    with pytest.raises(UserError, match=r"^ram://test_resume/logs/experiment.json: "):
        read_experiment(folder)


def test_failed_write_keeps_previous_experiment(tmp_path):
    write_experiment(Experiment(split="trainval"), str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"No room for the ledger|File too large"):
            write_experiment(Experiment(split="train"), str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_experiment(str(tmp_path)) == Experiment(split="trainval")
