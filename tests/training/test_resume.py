"""Training state on disk: what is saved, kept, restored and refused."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf import Experiment, UserError
from deeplab_tf.training import resume
from deeplab_tf.training.resume import (
    TrainingState,
    read_experiment,
    write_experiment,
)


def state_of(folder, fill, weights=("a/weights", "a/BatchNorm/moving_mean"), size=3):
    """Returns a state whose values are all `fill`, and its variables."""
    variables = {n: keras.Variable(np.full(size, fill, np.float32)) for n in weights}
    slots = {"a/weights/Momentum": keras.Variable(np.full(size, fill, np.float32))}
    step = keras.Variable(int(fill), dtype="int64")
    samples = tf.Variable(int(8 * fill), dtype=tf.int64)
    state = TrainingState(str(folder), variables, slots, step, samples)
    return state, {**variables, **slots, "step": step, "samples": samples}


def test_everything_comes_back(tmp_path):
    saved, _ = state_of(tmp_path, 7.0)
    assert saved.save() == str(tmp_path / "model.ckpt-7")
    state, variables = state_of(tmp_path, 0.0)
    assert state.restore_latest() == str(tmp_path / "model.ckpt-7")
    assert int(variables.pop("step").numpy()) == 7
    assert int(variables.pop("samples").numpy()) == 56
    for name, variable in variables.items():
        np.testing.assert_array_equal(variable.numpy(), 3 * [7.0], err_msg=name)


def test_nothing_to_restore_is_none(tmp_path):
    state, _ = state_of(tmp_path / "new", 0.0)
    assert state.restore_latest() is None


def test_the_last_five_are_kept_across_restarts(tmp_path):
    for fill in range(1, 8):
        state, _ = state_of(tmp_path, float(fill))
        state.save()
    steps = sorted(int(p.stem.split("-")[1]) for p in tmp_path.glob("*.index"))
    assert steps == [3, 4, 5, 6, 7]
    assert state.restore_latest().endswith("model.ckpt-7")


@pytest.mark.parametrize(
    "other",
    [
        {"size": 4},
        {"weights": ("b/weights", "a/BatchNorm/moving_mean")},
        {"weights": ("a/weights", "a/BatchNorm/moving_mean", "decoder/weights")},
        # The checkpoint holds more than the model: a decoder that it lacks.
        {"weights": ("a/weights",)},
    ],
)
def test_the_state_of_another_model_is_refused_in_one_line(other, tmp_path, caplog):
    saved, _ = state_of(tmp_path, 7.0)
    saved.save()
    state, _ = state_of(tmp_path, 0.0, **other)
    with pytest.raises(UserError, match=r"model.ckpt-7 cannot be resumed") as error:
        state.restore_latest()
    assert "\n" not in str(error.value)
    # TensorFlow logs a line for every value when it forgets the restored file.
    error.value.__traceback__ = error.value.__cause__ = None
    del state, error
    gc.collect()
    assert not caplog.records


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_a_damaged_state_is_refused_in_one_line(suffix, tmp_path):
    saved, _ = state_of(tmp_path, 7.0)
    saved.save()
    path = tmp_path / f"model.ckpt-7{suffix}"
    path.write_bytes(path.read_bytes()[:-40])
    state, _ = state_of(tmp_path, 0.0)
    with pytest.raises(UserError, match=r"model.ckpt-7 cannot be resumed") as error:
        state.restore_latest()
    assert "\n" not in str(error.value)


def test_the_experiment_lies_beside_the_checkpoints():
    folder = "ram://test_resume/logs"
    assert read_experiment(folder) is None
    write_experiment(Experiment(split="trainval"), folder)
    assert read_experiment(folder) == Experiment(split="trainval")
    with tf.io.gfile.GFile(f"{folder}/experiment.json", "w") as file:
        file.write("{")
    with pytest.raises(UserError, match=r"^ram://test_resume/logs/experiment.json "):
        read_experiment(folder)


def test_another_format_is_refused(tmp_path, monkeypatch):
    saved, _ = state_of(tmp_path, 7.0)
    saved.save()
    monkeypatch.setattr(resume, "FORMAT_VERSION", 2)
    state, _ = state_of(tmp_path, 0.0)
    with pytest.raises(UserError, match=r"has format version 1; .* resumes 2$"):
        state.restore_latest()
