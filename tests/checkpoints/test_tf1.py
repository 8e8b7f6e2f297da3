"""Finding, reading and writing checkpoint files, official ones and ours."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf import UserError, load_tf1_checkpoint, save_tf1_checkpoint
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.restore import load_tf1_variables
from deeplab_tf.checkpoints.tf1 import (
    find_checkpoint,
    read_checkpoint,
    read_variables,
    resolve,
)
from deeplab_tf.models.variables import official_variables
from deeplab_tf.training.state import TrainingState


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
def test_saved_weights_are_loaded(folder, zero_model, arrays, has_values, tmp_path):
    prefix = f"{folder or tmp_path / 'export'}/model.ckpt-7"
    load_tf1_variables(zero_model, arrays)
    save_tf1_checkpoint(zero_model, prefix)
    for variable in official_variables(zero_model).values():
        variable.assign(np.zeros(variable.shape))
    report = load_tf1_checkpoint(zero_model, prefix)
    assert report.complete
    assert len(report.restored) == 272
    assert has_values(zero_model, arrays)
    # The official code expects exactly these names and the step.
    reader = tf.compat.v1.train.NewCheckpointReader(prefix)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    assert reader.get_variable_to_shape_map() == shapes | {"global_step": []}
    assert reader.get_variable_to_dtype_map()["global_step"] == tf.int64


def test_official_training_checkpoint_is_loaded(
    zero_model, arrays, has_values, tmp_path
):
    slots = {f"{name}/Momentum": np.zeros_like(a) for name, a in arrays.items()}
    official = arrays | slots | {"global_step": np.int64(30000)}
    write_checkpoint(tmp_path / "model.ckpt-30000", official)
    assert load_tf1_checkpoint(zero_model, str(tmp_path)).complete
    assert has_values(zero_model, arrays)


def test_deeplab_tf_training_checkpoint_is_loaded(
    zero_model, arrays, has_values, tmp_path
):
    load_tf1_variables(zero_model, arrays)
    variables = official_variables(zero_model)
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
    assert load_tf1_checkpoint(zero_model, str(tmp_path)).complete
    assert has_values(zero_model, arrays)


def test_excluded_scopes_are_not_restored(zero_model, arrays, has_values, tmp_path):
    write_checkpoint(tmp_path / "model.ckpt", arrays)
    report = load_tf1_checkpoint(zero_model, str(tmp_path), exclude=("logits",))
    assert len(report.restored) == 270
    assert not official_variables(zero_model)["logits/semantic/weights"].numpy().any()


def test_official_checkpoint_is_restored_completely(zero_model, voc_checkpoint):
    report = load_tf1_checkpoint(zero_model, voc_checkpoint)
    assert report.complete
    assert len(report.restored) == 272


def test_folder_resolves_to_its_highest_step(tmp_path):
    for step in (9, 10, 100):
        write_checkpoint(tmp_path / f"model.ckpt-{step}", SMALL)
    assert resolve(str(tmp_path)) == str(tmp_path / "model.ckpt-100")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-9"\n')
    assert resolve(str(tmp_path)) == str(tmp_path / "model.ckpt-9")


def test_checkpoint_without_a_step_is_the_oldest(tmp_path):
    for name in ("model.ckpt", "model.ckpt-1"):
        write_checkpoint(tmp_path / name, SMALL)
    assert resolve(str(tmp_path)) == str(tmp_path / "model.ckpt-1")


def make_folder(folder, text, steps=(5, 7)):
    """Writes index files and a `checkpoint` file; returns their folder."""
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
            "names model.ckpt-5, although .* also has model.ckpt-7",
        ),
        (
            LATEST.replace(b"-5", b"-9"),
            "model.ckpt-7",
            "names model.ckpt-9, which does not exist; using model.ckpt-7",
        ),
        (
            LATEST.replace(b"model.ckpt", b"/old/model.ckpt")
            + ALL % b"/old/model.ckpt-5",
            "model.ckpt-5",
            "names /old/model.ckpt-5; using model.ckpt-5 of ",
        ),
    ],
)
def test_checkpoint_file_is_followed_within_its_folder(
    state, name, warning, tmp_path, capsys
):
    folder = make_folder(tmp_path, state)
    # Resolving a folder repeatedly prints one warning.
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
def test_invalid_checkpoint_file_is_refused(state, tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}/checkpoint") as error:
        resolve(make_folder(tmp_path, state))
    assert "\n" not in str(error.value)


def test_checkpoint_file_is_followed_on_ram_file_system():
    folder = "ram://state_file"
    for name in ("model.ckpt-5.index", "model.ckpt-7.index"):
        with tf.io.gfile.GFile(f"{folder}/{name}", "w") as file:
            file.write("")
    with tf.io.gfile.GFile(f"{folder}/checkpoint", "wb") as file:
        file.write(LATEST + ALL % b"model.ckpt-5")
    assert resolve(folder) == f"{folder}/model.ckpt-5"


def test_index_file_resolves_to_its_prefix(tmp_path):
    prefix = write_checkpoint(tmp_path / "model.ckpt-3", SMALL)
    assert resolve(prefix) == resolve(prefix + ".index") == prefix


def test_wrong_prefix_error_names_the_alternatives(tmp_path):
    write_checkpoint(tmp_path / "model.ckpt-3", SMALL)
    with pytest.raises(
        UserError, match=r"no checkpoint .*/model.ckpt-4 .*: model.ckpt-3$"
    ):
        resolve(str(tmp_path / "model.ckpt-4"))


@pytest.mark.parametrize("subfolder", ["", "logs"])
def test_missing_checkpoint_is_refused(subfolder, tmp_path):
    with pytest.raises(UserError, match=r"^no checkpoint"):
        resolve(str(tmp_path / subfolder))
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
def test_damaged_files_give_one_line_error(suffix, damage, tmp_path):
    prefix = write_checkpoint(tmp_path / "model.ckpt", SMALL)
    path = tmp_path / f"model.ckpt{suffix}"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"model.ckpt cannot be read as") as error:
        read_variables(prefix)
    assert "\n" not in str(error.value)


NAME = "logits/semantic/biases"
INDEX, DATA = ".index", ".data-00000-of-00001"


def write_number(prefix, number):
    """Writes a checkpoint of one value."""
    write_checkpoint(prefix, {NAME: np.full(1000, number, np.float32)})


def remove(prefix):
    for suffix in (INDEX, DATA):
        tf.io.gfile.remove(f"{prefix}{suffix}")


@pytest.fixture
def at_first_read(monkeypatch):
    """A function that sets actions before and after the first read of variables."""

    def install(before=None, after=None):
        actions = [(before, after)]

        def read(prefix):
            first, last = actions.pop() if actions else (None, None)
            if first:
                first()
            arrays = read_variables(prefix)
            if last:
                last()
            return arrays

        monkeypatch.setattr(tf1, "read_variables", read)

    return install


def replace_data(prefix, number):
    """Replaces the data of an index, as a killed save of the same step does."""
    write_number(f"{prefix}-new", number)
    tf.io.gfile.rename(f"{prefix}-new{DATA}", f"{prefix}{DATA}", overwrite=True)
    tf.io.gfile.remove(f"{prefix}-new{INDEX}")


@pytest.mark.parametrize("folder", [None, "ram://test_tf1/changing"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_newest_checkpoint_is_read_if_the_first_is_removed(
    moment, folder, at_first_read, tmp_path
):
    folder = f"{folder or tmp_path}/{moment}"
    write_number(f"{folder}/model.ckpt-1", 1)

    def save_and_remove():
        write_number(f"{folder}/model.ckpt-2", 2)
        remove(f"{folder}/model.ckpt-1")

    at_first_read(**{moment: save_and_remove})
    checkpoint = read_checkpoint(folder)
    assert checkpoint.prefix == f"{folder}/model.ckpt-2"
    assert set(checkpoint.arrays[NAME]) == {2}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_checkpoint_replaced_while_reading_is_read_again(
    moment, at_first_read, tmp_path
):
    prefix = str(tmp_path / "model.ckpt-1")
    write_number(prefix, 1)
    at_first_read(**{moment: lambda: write_number(prefix, 2)})
    assert set(read_checkpoint(prefix).arrays[NAME]) == {2}


def test_data_of_another_save_is_not_read(at_first_read, tmp_path, monkeypatch):
    # Between moving the data and moving the index.
    prefix = str(tmp_path / "model.ckpt-1")
    write_number(prefix, 1)

    def replace_data_and_remove_index():
        replace_data(prefix, 2)
        tf.io.gfile.remove(f"{prefix}{INDEX}")

    at_first_read(before=replace_data_and_remove_index)
    monkeypatch.setattr(tf1.time, "sleep", lambda seconds: write_number(prefix, 2))
    assert set(read_checkpoint(prefix).arrays[NAME]) == {2}


def test_data_that_never_matches_its_index_is_refused(at_first_read, tmp_path):
    prefix = str(tmp_path / "model.ckpt-1")
    write_number(prefix, 1)
    at_first_read(before=lambda: replace_data(prefix, 2))
    with pytest.raises(UserError, match="cannot be read as a checkpoint: "):
        read_checkpoint(prefix)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_checkpoint_removed_while_reading_is_refused(moment, at_first_read, tmp_path):
    prefix = str(tmp_path / "model.ckpt-1")
    write_number(prefix, 1)
    at_first_read(**{moment: lambda: remove(prefix)})
    message = rf"^{prefix} was removed or replaced while it was read; .*its folder"
    with pytest.raises(UserError, match=message):
        read_checkpoint(prefix)


@pytest.mark.parametrize("is_folder", [True, False])
def test_index_of_a_replaced_checkpoint_is_awaited(is_folder, tmp_path, monkeypatch):
    prefix = tmp_path / "model.ckpt-1"
    write_number(prefix, 1)
    (tmp_path / f"model.ckpt-1{INDEX}").rename(tmp_path / "index")

    def finish(seconds):
        (tmp_path / "index").rename(tmp_path / f"model.ckpt-1{INDEX}")

    monkeypatch.setattr(tf1.time, "sleep", finish)
    assert find_checkpoint(str(tmp_path if is_folder else prefix)) == str(prefix)


def test_missing_checkpoint_is_not_awaited(tmp_path, monkeypatch):
    monkeypatch.delattr(tf1.time, "sleep")
    write_number(tmp_path / "model.ckpt-1", 1)
    for missing in ("model.ckpt-2", "logs", "logs/model.ckpt-1"):
        with pytest.raises(UserError, match=r"^no checkpoint"):
            read_checkpoint(str(tmp_path / missing))
