"""Checkpoint files, official and ours: found, read, written, refused."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf import UserError, load_tf1_checkpoint, save_tf1_checkpoint
from deeplab_tf.checkpoints.restore import load_tf1_variables
from deeplab_tf.checkpoints.tf1 import read_variables, resolve
from deeplab_tf.models.variables import official_variables
from deeplab_tf.training.resume import TrainingState


def write_checkpoint(prefix, arrays):
    """Writes arrays as the official code's Saver does; no `checkpoint` file."""
    tf.io.gfile.makedirs(str(prefix).rpartition("/")[0])
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=list(map(tf.constant, arrays.values())),
    )
    return str(prefix)


SMALL = {"logits/semantic/biases": np.arange(1000, dtype=np.float32)}


@pytest.mark.parametrize("folder", ["ram://test_tf1/export", None])
def test_saved_weights_are_read_back(folder, zeros, arrays, holds, tmp_path):
    prefix = f"{folder or tmp_path / 'export'}/model.ckpt-7"
    load_tf1_variables(zeros, arrays)
    save_tf1_checkpoint(zeros, prefix)
    for variable in official_variables(zeros).values():
        variable.assign(np.zeros(variable.shape))
    report = load_tf1_checkpoint(zeros, prefix)
    assert report.complete
    assert len(report.restored) == 272
    assert holds(zeros, arrays)
    # The official code looks for these names and the step, and nothing beside them.
    reader = tf.compat.v1.train.NewCheckpointReader(prefix)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    assert reader.get_variable_to_shape_map() == shapes | {"global_step": []}
    assert reader.get_variable_to_dtype_map()["global_step"] == tf.int64


def test_an_official_training_checkpoint_is_read(zeros, arrays, holds, tmp_path):
    slots = {f"{name}/Momentum": np.zeros_like(a) for name, a in arrays.items()}
    official = arrays | slots | {"global_step": np.int64(30000)}
    write_checkpoint(tmp_path / "model.ckpt-30000", official)
    assert load_tf1_checkpoint(zeros, str(tmp_path)).complete
    assert holds(zeros, arrays)


def test_our_training_checkpoint_is_read_by_the_same_reader(
    zeros, arrays, holds, tmp_path
):
    load_tf1_variables(zeros, arrays)
    variables = official_variables(zeros)
    kernel = "MobilenetV2/Conv/weights"
    slot = keras.Variable(np.ones(variables[kernel].shape), name="slot")
    step = keras.Variable(12, dtype="int64", name="step")
    groups = {"model": variables, "optimizer": {f"{kernel}/Momentum": slot}}
    state = TrainingState(str(tmp_path), groups, step, tf.Variable(96))
    prefix = state.save()
    assert prefix == str(tmp_path / "model.ckpt-12")
    assert set(read_variables(prefix)) == set(arrays)
    for variable in variables.values():
        variable.assign(np.zeros(variable.shape))
    assert load_tf1_checkpoint(zeros, str(tmp_path)).complete
    assert holds(zeros, arrays)


def test_scopes_are_excluded(zeros, arrays, holds, tmp_path):
    write_checkpoint(tmp_path / "model.ckpt", arrays)
    report = load_tf1_checkpoint(zeros, str(tmp_path), exclude=("logits",))
    assert len(report.restored) == 270
    assert not official_variables(zeros)["logits/semantic/weights"].numpy().any()


def test_the_real_official_checkpoint_is_restored_whole(zeros, voc_checkpoint):
    report = load_tf1_checkpoint(zeros, voc_checkpoint)
    assert report.complete
    assert len(report.restored) == 272


def test_a_folder_means_its_highest_step(tmp_path):
    for step in (9, 10, 100):
        write_checkpoint(tmp_path / f"model.ckpt-{step}", SMALL)
    assert resolve(str(tmp_path)) == str(tmp_path / "model.ckpt-100")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-9"\n')
    assert resolve(str(tmp_path)) == str(tmp_path / "model.ckpt-9")


def test_a_checkpoint_without_a_step_comes_before_all_steps(tmp_path):
    for name in ("model.ckpt", "model.ckpt-1"):
        write_checkpoint(tmp_path / name, SMALL)
    assert resolve(str(tmp_path)) == str(tmp_path / "model.ckpt-1")


def folder_with(folder, text, steps=(5, 7)):
    """Returns a folder of checkpoints whose `checkpoint` file has a text."""
    folder.mkdir(exist_ok=True)
    for step in steps:
        (folder / f"model.ckpt-{step}.index").touch()
    (folder / "checkpoint").write_bytes(text)
    return str(folder)


LATEST = b'model_checkpoint_path: "model.ckpt-5"\n'
ALL = b'all_model_checkpoint_paths: "%s"\n'


@pytest.mark.parametrize(
    ("state", "name", "warning"),
    [
        (LATEST + ALL % b"model.ckpt-7" + ALL % b"model.ckpt-5", "model.ckpt-5", ""),
        (
            LATEST,
            "model.ckpt-5",
            "names model.ckpt-5, although .* has model.ckpt-7 too",
        ),
        (
            LATEST.replace(b"-5", b"-9"),
            "model.ckpt-7",
            "names model.ckpt-9, which is not there; using model.ckpt-7",
        ),
        (
            LATEST.replace(b"model.ckpt", b"/old/model.ckpt")
            + ALL % b"/old/model.ckpt-5",
            "model.ckpt-5",
            "names /old/model.ckpt-5; using model.ckpt-5 of ",
        ),
    ],
)
def test_a_checkpoint_file_is_followed_within_its_folder(
    state, name, warning, tmp_path, capsys
):
    folder = folder_with(tmp_path, state)
    # A program resolves a folder several times.
    assert resolve(folder) == resolve(folder) == f"{folder}/{name}"
    err = capsys.readouterr().err
    expected = rf"^warning: {folder}/checkpoint {warning}.*\n$" if warning else "^$"
    assert re.search(expected, err)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"model_checkpoint_path",
        b"\xff\xfe",
        b"[" * 100_000,
        b"steps: 7",
        LATEST + LATEST,
        LATEST[:-3],
        LATEST + ALL % b"model.ckpt-7",
        LATEST.replace(b"-5", b"-5\\n"),
        LATEST.replace(b"-5", b"-5\\377"),
        b'model_checkpoint_path: "model.ckpt-5/"',
        b'model_checkpoint_path: ".."',
    ],
)
def test_a_damaged_checkpoint_file_is_refused(state, tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}/checkpoint") as error:
        resolve(folder_with(tmp_path, state))
    assert "\n" not in str(error.value)


def test_a_checkpoint_file_in_memory_is_followed():
    folder = "ram://state_file"
    for name in ("model.ckpt-5.index", "model.ckpt-7.index"):
        with tf.io.gfile.GFile(f"{folder}/{name}", "w") as file:
            file.write("")
    with tf.io.gfile.GFile(f"{folder}/checkpoint", "wb") as file:
        file.write(LATEST + ALL % b"model.ckpt-5")
    assert resolve(folder) == f"{folder}/model.ckpt-5"


def test_a_prefix_may_be_spelled_as_its_index_file(tmp_path):
    prefix = write_checkpoint(tmp_path / "model.ckpt-3", SMALL)
    assert resolve(prefix) == resolve(prefix + ".index") == prefix


def test_a_wrong_prefix_is_told_what_is_near(tmp_path):
    write_checkpoint(tmp_path / "model.ckpt-3", SMALL)
    with pytest.raises(
        UserError, match=r"no checkpoint .*/model.ckpt-4 .*: model.ckpt-3$"
    ):
        resolve(str(tmp_path / "model.ckpt-4"))


@pytest.mark.parametrize("there", ["", "logs"])
def test_nothing_there_is_said(there, tmp_path):
    with pytest.raises(UserError, match=r"^no checkpoint"):
        resolve(str(tmp_path / there))
    with pytest.raises(UserError, match=r"^no checkpoint"):
        resolve(str(tmp_path / "logs" / "model.ckpt"))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".data-00000-of-00001", lambda data: data[: len(data) // 2]),
        (".data-00000-of-00001", lambda data: b"x" * len(data)),
        (".data-00000-of-00001", None),
        (".index", lambda data: data[: len(data) // 2]),
        (".index", lambda data: b""),
    ],
)
def test_damaged_files_are_one_line(suffix, damage, tmp_path):
    prefix = write_checkpoint(tmp_path / "model.ckpt", SMALL)
    path = tmp_path / f"model.ckpt{suffix}"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"model.ckpt cannot be read as") as error:
        read_variables(prefix)
    assert "\n" not in str(error.value)
