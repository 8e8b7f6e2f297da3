"""`experiment.json` of a `train_logdir`: read, written and kept."""

import resource

import pytest
import tensorflow as tf

from deeplab_tf import Experiment, UserError
from deeplab_tf.training.resume import read_experiment, write_experiment


def test_the_experiment_lies_beside_the_checkpoints():
    folder = "ram://test_resume/logs"
    assert read_experiment(folder) is None
    write_experiment(Experiment(split="trainval"), folder)
    assert read_experiment(folder) == Experiment(split="trainval")
    with tf.io.gfile.GFile(f"{folder}/experiment.json", "w") as file:
        file.write("{")
    with pytest.raises(UserError, match=r"^ram://test_resume/logs/experiment.json: "):
        read_experiment(folder)


def test_an_experiment_that_cannot_be_written_leaves_the_one_before(tmp_path):
    write_experiment(Experiment(split="trainval"), str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"No room for the ledger|File too large"):
            write_experiment(Experiment(split="train"), str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_experiment(str(tmp_path)) == Experiment(split="trainval")
