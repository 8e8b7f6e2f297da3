"""Training state on disk: saving, restoring, damage and killed processes."""

import dataclasses
import itertools
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf
from listing import list_outputs
from training_states import WEIGHTS, fill_with, get_number, make_state, run_in_process

from deeplab_tf import UserError
from deeplab_tf.checkpoints.tf1 import resolve
from deeplab_tf.files import locks, outputs
from deeplab_tf.files.lock_file import Owner
from deeplab_tf.files.locks import TRAINING_LOCK, training_lock
from deeplab_tf.training import state as state_module
from deeplab_tf.training.state import TrainingState

INDEX, DATA = "index", "data-00000-of-00001"


@pytest.fixture(autouse=True)
def _short_lock_periods(monkeypatch):
    """Shortens the waiting times of locks without flock."""
    monkeypatch.setattr(locks, "HEARTBEAT_SECS", 0.1)
    monkeypatch.setattr(locks, "SETTLE_SECS", 0.01)


def save_steps(folder, *steps, **options):
    for step in steps:
        make_state(folder, float(step), **options)[0].save()


def saved_steps(folder):
    """Returns the steps of complete checkpoints; asserts that all are complete."""
    names = {n for n in tf.io.gfile.listdir(str(folder)) if n.startswith("model.ckpt")}
    steps = sorted(int(n.split("-")[1].split(".")[0]) for n in names if INDEX in n)
    assert names == {f"model.ckpt-{s}.{part}" for s in steps for part in (INDEX, DATA)}
    return steps


def flip_bit(path, share):
    """Flips one bit at a relative position in a file."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("folder", [None, "ram://test_state/state"])
def test_all_values_are_restored(folder, tmp_path):
    folder = folder or str(tmp_path)
    for _ in range(2):  # the second replaces the first
        assert make_state(folder, 7.0)[0].save() == f"{folder}/model.ckpt-7"
    assert list_outputs(folder) == [
        "checkpoint",
        "model.ckpt-7.data-00000-of-00001",
        "model.ckpt-7.index",
    ]
    state, variables = make_state(folder, 0.0)
    assert state.restore_latest() == f"{folder}/model.ckpt-7"
    assert get_number(variables) == 7


def test_checkpoint_keys_are_official_names_by_group(tmp_path):
    prefix = make_state(tmp_path, 7.0)[0].save()
    keys = dict(tf.train.list_variables(prefix))
    assert keys.pop("_CHECKPOINTABLE_OBJECT_GRAPH") == []
    assert {key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") for key in keys} == {
        "model/a.Sweights",
        "model/a.SBatchNorm.Smoving_mean",
        "optimizer/a.Sweights.SMomentum",
        "step",
        "samples",
        "format_version",
    }


def test_checkpoint_of_checkpoint_manager_is_restored(tmp_path):
    # The first versions used one; it adds its own counter.
    saved, _ = make_state(tmp_path, 7.0)
    tf.train.CheckpointManager(
        saved._checkpoint, str(tmp_path), max_to_keep=5, checkpoint_name="model.ckpt"
    ).save(checkpoint_number=7)
    assert any("save_counter" in k for k, _ in tf.train.list_variables(str(tmp_path)))
    state, variables = make_state(tmp_path, 0.0)
    assert state.restore_latest() == str(tmp_path / "model.ckpt-7")
    assert get_number(variables) == 7


def test_restore_latest_returns_none_without_checkpoint(tmp_path):
    assert make_state(tmp_path / "new", 0.0)[0].restore_latest() is None
    assert make_state(tmp_path, 0.0)[0].restore_latest() is None


@pytest.mark.parametrize("folder", [None, "ram://test_state/kept"])
def test_last_five_checkpoints_are_kept(folder, tmp_path):
    # In numerical order: 9 is before 10.
    folder = folder or str(tmp_path)
    save_steps(folder, *range(5, 12))
    assert saved_steps(folder) == [7, 8, 9, 10, 11]
    checkpoints = tf.train.get_checkpoint_state(folder)
    assert checkpoints.model_checkpoint_path == f"{folder}/model.ckpt-11"
    assert list(checkpoints.all_model_checkpoint_paths) == [
        f"{folder}/model.ckpt-{step}" for step in range(7, 12)
    ]


def test_restart_at_lower_step_keeps_new_checkpoint(tmp_path):
    save_steps(tmp_path, 10, 11, 12, 13, 14, 2)
    assert saved_steps(tmp_path) == [2, 11, 12, 13, 14]
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-2")


def test_folder_can_be_moved(tmp_path):
    save_steps(tmp_path / "a", 6, 7)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = str(tmp_path / "b")
    assert tf.train.latest_checkpoint(moved) == f"{moved}/model.ckpt-7"
    assert make_state(moved, 0.0)[0].restore_latest() == f"{moved}/model.ckpt-7"


def test_best_checkpoint_is_kept_in_subfolder(tmp_path):
    save_steps(tmp_path, 3, 4)
    for step in (4, 3):  # a training that was restarted
        prefix = make_state(tmp_path, float(step))[0].save_best()
        assert prefix == str(tmp_path / f"best/model.ckpt-{step}")
        assert saved_steps(tmp_path / "best") == [step]
        assert tf.train.latest_checkpoint(str(tmp_path / "best")) == prefix
    assert saved_steps(tmp_path) == [3, 4]
    state, variables = make_state(tmp_path / "best", 0.0)
    state.restore_latest()
    assert get_number(variables) == 3


def test_non_chief_workers_keep_no_files(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    prefixes = []
    write = tf.train.Checkpoint.write

    def record_write(checkpoint, prefix):
        prefixes.append(prefix)
        return write(checkpoint, prefix)

    monkeypatch.setattr(tf.train.Checkpoint, "write", record_write)
    folder = tmp_path / "logs"
    state, _ = make_state(folder, 7.0, is_chief=False)
    assert state.save() == str(folder / "model.ckpt-7")
    assert state.save_best() == str(folder / "best/model.ckpt-7")
    assert [pathlib.Path(p).parents[1] for p in prefixes] == [elsewhere, elsewhere]
    assert not folder.exists()
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"size": 4},
            r"moving_mean is float32 of shape \[3\] in .* but .* \[4\] here",
        ),
        ({"weights": ("b/weights", WEIGHTS[1])}, "a/weights is .* not in use here"),
        (
            {"weights": (*WEIGHTS, "x/weights")},
            "x/weights is missing in the checkpoint, but float32",
        ),
        # The checkpoint has a moving mean that the model lacks.
        ({"weights": WEIGHTS[:1]}, "moving_mean is .*, but not in use here"),
    ],
)
def test_checkpoint_of_a_different_model_is_refused(
    options, reason, tmp_path, caplog, capfd
):
    save_steps(tmp_path, 6)
    save_steps(tmp_path, 7)
    state, variables = make_state(tmp_path, 0.0, **options)
    message = rf"^\S+model.ckpt-7 does not match this model and .*: .*{reason}"
    with pytest.raises(UserError, match=message) as error:
        state.restore_latest()
    assert "\n" not in str(error.value)
    assert get_number(variables) == 0
    assert not caplog.records
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("group", "flag"),
    [("average", "ema_decay"), ("loss_scale", "precision"), ("optimizer", "optimizer")],
)
def test_error_names_flag_of_missing_group(group, flag, tmp_path):
    names = ("model", "optimizer")
    groups = {n: {"a/weights": keras.Variable([0.0])} for n in names if n != group}
    counters = keras.Variable(0, dtype="int64"), tf.Variable(0, dtype=tf.int64)
    TrainingState(str(tmp_path), groups, *counters).save()
    groups[group] = {"a/weights": keras.Variable([0.0])}
    with pytest.raises(
        UserError, match=f"logdir, or the same --{flag} as before: {group}/a/"
    ):
        TrainingState(str(tmp_path), groups, *counters).restore_latest()


def test_different_dtype_is_refused(tmp_path):
    save_steps(tmp_path, 7)
    step = keras.Variable(0, dtype="int64")
    samples = tf.Variable(0, dtype=tf.int32)
    groups = {"model": {n: keras.Variable([0.0] * 3) for n in WEIGHTS}}
    groups["optimizer"] = {"a/weights/Momentum": keras.Variable([0.0] * 3)}
    with pytest.raises(UserError, match=r"samples is int64 .*, but int32"):
        TrainingState(str(tmp_path), groups, step, samples).restore_latest()


def test_different_format_version_is_refused(tmp_path, monkeypatch):
    save_steps(tmp_path, 7)
    monkeypatch.setattr(state_module, "FORMAT_VERSION", 2)
    state, _ = make_state(tmp_path, 0.0, size=4)
    with pytest.raises(
        UserError, match=r"has format version 1, but .* only resume version 2;"
    ):
        state.restore_latest()


def test_tf1_checkpoint_is_refused(tmp_path):
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model.ckpt-9"),
        tensor_names=["a/weights"],
        shape_and_slices=[""],
        tensors=[tf.zeros(3)],
    )
    with pytest.raises(UserError, match=r"ckpt-9 is a TF1 checkpoint, .* --tf_init"):
        make_state(tmp_path, 0.0)[0].restore_latest()


DAMAGES = {
    "index cut": (INDEX, lambda path: truncate(path, -40)),
    "index empty": (INDEX, lambda path: truncate(path, 0)),
    "index flipped": (INDEX, lambda path: flip_bit(path, 0.4)),
    "data cut": (DATA, lambda path: truncate(path, -40)),
    "data empty": (DATA, lambda path: truncate(path, 0)),
    "first data flipped": (DATA, lambda path: flip_bit(path, 0)),
    "big tensor flipped": (DATA, lambda path: flip_bit(path, 0.5)),
    "last data flipped": (DATA, lambda path: flip_bit(path, 0.999999)),
    "data missing": (DATA, pathlib.Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_skipped(damage, tmp_path, capfd):
    size = 1_000_000 if "tensor" in damage else 3
    save_steps(tmp_path, 5, 6, 7, size=size)
    part, apply_damage = DAMAGES[damage]
    apply_damage(tmp_path / f"model.ckpt-7.{part}")
    state, variables = make_state(tmp_path, 0.0, size=size)
    assert state.restore_latest() == str(tmp_path / "model.ckpt-6")
    assert get_number(variables) == 6
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/model.ckpt-7 is damaged (")
    assert line.endswith("); resuming from the previous checkpoint")
    # Saving the same step again replaces the damaged checkpoint.
    fill_with(variables, 7)
    state.save()
    assert state.restore_latest() == str(tmp_path / "model.ckpt-7")


def test_damaged_block_of_large_index_is_detected(tmp_path):
    # Blocks have 256 KiB; names without common prefix are stored in full.
    names = tuple(f"{i}/{1000 * 'x'}" for i in range(300))
    save_steps(tmp_path, 7, weights=names)
    index = tmp_path / "model.ckpt-7.index"
    assert index.stat().st_size > 280_000
    state, _ = make_state(tmp_path, 0.0, weights=names)
    for share in (0.1, 0.7):
        flip_bit(index, share)
        with pytest.raises(UserError, match=r"-7 is damaged \(its index lacks "):
            state.restore_latest()
        flip_bit(index, share)
    assert state.restore_latest()


def test_error_if_all_checkpoints_are_damaged(tmp_path, capfd):
    save_steps(tmp_path, 6, 7)
    (tmp_path / f"model.ckpt-6.{DATA}").unlink()
    truncate(tmp_path / "model.ckpt-7.index", 30)
    state, variables = make_state(tmp_path, 0.0)
    message = (
        r"no checkpoint in \S+ is intact \(\S+model.ckpt-7 is damaged \(.*\)\); give"
    )
    with pytest.raises(UserError, match=message) as error:
        state.restore_latest()
    assert "\n" not in str(error.value)
    assert get_number(variables) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [None, "", 'model_checkpoint_path: "model.ck'])
def test_state_file_is_optional(content, tmp_path):
    save_steps(tmp_path, 6, 7)
    (tmp_path / "checkpoint").unlink()
    if content is not None:
        (tmp_path / "checkpoint").write_text(content)
    state, variables = make_state(tmp_path, 0.0)
    assert state.restore_latest() == str(tmp_path / "model.ckpt-7")
    assert get_number(variables) == 7
    fill_with(variables, 8)
    state.save()
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-8")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_non_finite_weights_are_not_saved(number, tmp_path):
    save_steps(tmp_path, 6)
    state, variables = make_state(tmp_path, 7.0)
    variables["a/BatchNorm/moving_mean"].assign([0, number, 0])
    message = (
        r"^the weights are no longer finite at step 7 \(first: "
        r"a/BatchNorm/moving_mean\); nothing was saved$"
    )
    for save in (state.save, state.save_best):
        with pytest.raises(UserError, match=message):
            save()
    assert saved_steps(tmp_path) == [6]
    assert not (tmp_path / "best").exists()


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    save_steps(tmp_path, 6)
    leftover = f".writing-{os.getpid()}-0123abcd"
    for name in (".writing-1-01234567/model.ckpt-7_temp", leftover):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(tmp_path / "model.ckpt-6.index", tmp_path / name)
    shutil.copy(tmp_path / f"model.ckpt-6.{DATA}", tmp_path / f"model.ckpt-7.{DATA}")
    index = str(tmp_path / "model.ckpt-6.index")
    outputs.record_before_move(index, str(tmp_path / "model.ckpt-7.index"))
    (tmp_path / f"model.ckpt-5.{DATA}").write_text("not ours")
    save_steps(tmp_path, 8)
    assert (tmp_path / f"model.ckpt-5.{DATA}").read_text() == "not ours"
    (tmp_path / f"model.ckpt-5.{DATA}").unlink()
    assert saved_steps(tmp_path) == [6, 8]
    assert not list(tmp_path.glob(".writing-*"))


def test_files_of_other_programs_are_kept(tmp_path):
    names = (
        ".writing-1",
        ".writing-mine",
        ".writing-1-0123456",
        "a.writing-1-01234567",
    )
    for name in (*names, "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".writing-1-01234567").symlink_to("elsewhere")
    save_steps(tmp_path, 8)
    for name in (*names, "elsewhere", ".writing-1-01234567"):
        assert (tmp_path / name / "file").exists()


def test_scratch_folder_of_an_active_run_is_kept(tmp_path, monkeypatch):
    # Its lock belongs to another machine and has a heartbeat.
    save_steps(tmp_path, 6)
    owner = dataclasses.replace(Owner.this_process(), boot="another", host="far")
    lock, scratch = tmp_path / TRAINING_LOCK, tmp_path / ".writing-9-01234567"
    lock.write_bytes(owner.to_bytes())
    scratch.mkdir()
    beats = itertools.count(1)

    def beat_then_sleep(seconds, sleep=time.sleep):
        lock.write_bytes(dataclasses.replace(owner, beat=next(beats)).to_bytes())
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", beat_then_sleep)
    with pytest.raises(UserError, match=r"is in use by another training run \(process"):
        save_steps(tmp_path, 8)
    assert scratch.exists()
    lock.unlink()
    assert saved_steps(tmp_path) == [6]


@pytest.mark.parametrize("moment", ["before", "while writing", "while moving"])
@pytest.mark.parametrize("save", ["save", "save_best"])
def test_removed_folder_raises_error(moment, save, tmp_path, monkeypatch):
    folder = tmp_path / "logs"
    state, variables = make_state(folder, 7.0)
    write, rename = tf.train.Checkpoint.write, tf.io.gfile.rename

    def write_then_vanish(checkpoint, prefix):
        write(checkpoint, prefix)
        shutil.rmtree(folder)

    def vanish_then_rename(*arguments, **options):
        shutil.rmtree(folder)
        rename(*arguments, **options)

    with training_lock(str(folder)):
        state.save()
        fill_with(variables, 8)
        if moment == "before":
            shutil.rmtree(folder)
        if moment == "while writing":
            monkeypatch.setattr(tf.train.Checkpoint, "write", write_then_vanish)
        if moment == "while moving":
            monkeypatch.setattr(tf.io.gfile, "rename", vanish_then_rename)
        message = f"^--train_logdir={folder} was removed during this training run; "
        with pytest.raises(UserError, match=message):
            getattr(state, save)()
    assert not folder.exists()


@pytest.mark.parametrize("save", ["save", "save_best"])
def test_folder_locked_by_another_run_is_unchanged(save, tmp_path):
    state, _ = make_state(tmp_path, 7.0)
    owner = dataclasses.replace(Owner.this_process(), token="other")
    with training_lock(str(tmp_path)):
        (tmp_path / TRAINING_LOCK).write_bytes(owner.to_bytes())
        with pytest.raises(UserError, match=f"was taken over by {owner} during"):
            getattr(state, save)()
    assert os.listdir(tmp_path) == [TRAINING_LOCK]


@pytest.mark.parametrize("before", [(), (6,), (6, 7)])
def test_failed_save_keeps_previous_checkpoints(before, tmp_path):
    save_steps(tmp_path, *before, size=10_000)
    if before:
        intact = f"the previous checkpoint, {tmp_path}/model.ckpt-6, is intact"
    else:
        intact = "no earlier checkpoint is intact"
    if 7 in before:
        flip_bit(tmp_path / f"model.ckpt-7.{DATA}", 0.5)
    state, _ = make_state(tmp_path, 8.0, size=10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError) as error:
            state.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == (
        f"could not save model.ckpt-8 in {tmp_path}: File too large; {intact}"
    )
    assert saved_steps(tmp_path) == list(before)
    assert not list(tmp_path.glob(".writing-*"))
    state.save()
    assert saved_steps(tmp_path) == [*before, 8]


def test_data_and_index_always_belong_to_same_save(tmp_path, monkeypatch, capfd):
    save_steps(tmp_path, 6, 7)
    state, variables = make_state(tmp_path, 7.0)
    variables["a/weights"].assign(3 * [8.0])
    rename = tf.io.gfile.rename

    def rename_data(source, *arguments, **options):
        if source.endswith("model.ckpt-7.index"):
            raise OSError("killed")
        rename(source, *arguments, **options)

    monkeypatch.setattr(tf.io.gfile, "rename", rename_data)
    message = r"model.ckpt-7 in .*: killed; .*-7-replaced, is intact"
    with pytest.raises(UserError, match=message):
        state.save()
    # The previous checkpoint of the same step is kept under a different name.
    for _ in range(2):
        assert state.restore_latest() == str(tmp_path / "model.ckpt-7-replaced")
        assert get_number(variables) == 7
        assert resolve(str(tmp_path)) == str(tmp_path / "model.ckpt-7-replaced")
        with pytest.raises(UserError, match=message):
            state.save()
    monkeypatch.undo()
    assert capfd.readouterr().err == ""
    state.save()
    assert saved_steps(tmp_path) == [6, 7]


def fill_the_disk(folder):
    """Saves on a file system of 4 MB with little space left, then with enough."""
    folder = pathlib.Path(folder)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True
    )
    state, variables = make_state(folder, 0.0, size=50_000)  # 600 kB a checkpoint
    for step in range(1, 4):
        fill_with(variables, step)
        state.save()
    filler = folder / "filler"
    # Full at the first byte, within the data, at the index and at the state file.
    free = shutil.disk_usage(folder).free
    for remaining in (0, 4096, 100_000, *range(600_000, 630_000, 4096)):
        filler.write_bytes(bytes(max(0, free - remaining)))
        fill_with(variables, 4)
        try:
            state.save()
        except UserError as error:
            assert str(error) == (
                f"could not save model.ckpt-4 in {folder}: No space left on device; "
                f"the previous checkpoint, {folder}/model.ckpt-3, is intact"
            )
            assert state.restore_latest() == f"{folder}/model.ckpt-3"
            assert get_number(variables) == 3
            assert list_outputs(folder) == sorted(
                ["checkpoint", "filler"]
                + [
                    f"model.ckpt-{s}.{part}"
                    for s in (1, 2, 3)
                    for part in (INDEX, DATA)
                ]
            )
        else:
            assert remaining > 600_000
            break
    else:
        raise AssertionError("no save found enough room")
    assert state.restore_latest() == f"{folder}/model.ckpt-4"
    assert get_number(variables) == 4


@pytest.mark.slow
def test_full_disk_keeps_previous_checkpoints(tmp_path):
    unshare = ("unshare", "--map-root-user", "--mount")
    try:
        mount = ("mount", "-t", "tmpfs", "none", tmp_path)
        subprocess.run([*unshare, *mount], check=True, stderr=subprocess.PIPE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs unshare and leave to mount a tmpfs")
    run_in_process("training/test_state", f"fill_the_disk({str(tmp_path)!r})", *unshare)


def train_until_killed(folder, report, kill_at):
    """Restores the latest checkpoint and saves step after step.

    Args:
        folder: The `train_logdir`.
        report: File descriptor for the step of every save.
        kill_at: Number of files moved or removed before the process kills itself.
    """
    state, variables = make_state(folder, 0.0, size=20_000)
    calls = 0

    def kill_on_call(function):
        def count_and_call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return count_and_call

    for name in ("rename", "remove", "rmtree"):
        setattr(tf.io.gfile, name, kill_on_call(getattr(tf.io.gfile, name)))
    state.restore_latest()
    step = get_number(variables)
    assert tf.train.latest_checkpoint(folder) or step == 0
    for directory in (pathlib.Path(folder), pathlib.Path(folder, "best")):
        for index in directory.glob("*.index"):
            assert index.with_name(f"{index.stem}.{DATA}").exists()
    os.write(report, f"{step}\n".encode())
    while True:
        step += 1
        fill_with(variables, step)
        state.save()
        state.save_best()
        os.write(report, f"{step}\n".encode())


def kill_repeatedly(folder):
    """Kills one training after another; each resumes from the previous one."""
    saved = 0
    # The first training saves seven times, so that all later ones remove files, too;
    # `save` and `save_best` together move and remove 13 files.
    for kill_at in [80, *range(1, 14), *5 * [None]]:
        reader, writer = os.pipe()
        # Forks, which is faster than importing TensorFlow; it has no threads yet.
        child = os.fork()
        if child == 0:
            try:
                train_until_killed(folder, writer, kill_at)
            finally:
                traceback.print_exc()
                os._exit(1)
        os.close(writer)
        with open(reader) as reports:
            restored = int(reports.readline())
            if kill_at is None:
                time.sleep(random.uniform(0, 0.1))
                os.kill(child, signal.SIGKILL)
            steps = [restored, *map(int, reports)]
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        # The last completed save is restored, or the one that was interrupted.
        assert restored in (saved, saved + 1), (restored, saved, kill_at)
        saved = steps[-1]
    print("saved", saved, file=sys.stderr)


@pytest.mark.slow
def test_last_checkpoint_is_intact_after_sigkill(tmp_path):
    messages = run_in_process(
        "training/test_state", f"kill_repeatedly({str(tmp_path)!r})"
    )
    assert "damaged" not in messages
    saved = int(messages.split()[-1])
    assert saved > 12
    state, variables = make_state(tmp_path, 0.0, size=20_000)
    state.restore_latest()
    assert get_number(variables) in (saved, saved + 1)
    fill_with(variables, saved + 2)
    state.save()
    assert len(saved_steps(tmp_path)) == 5
    assert not list(tmp_path.glob(".writing-*"))


def save_and_restore_mirrored(folder):
    """Saves and restores two replicas, with a variable that is averaged when read."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, 2 * [tf.config.LogicalDeviceConfiguration()]
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        state, variables = make_state(folder, 7.0)
        local = tf.Variable(
            [1.0],
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )
    assert len(variables["a/weights"].value.values) == 2
    groups = {"model": {**{n: variables[n] for n in WEIGHTS}, "local": local}}
    state = TrainingState(folder, groups, variables["step"], variables["samples"])
    state.save()
    fill_with(variables, 0)
    local.assign([0.0])
    assert state.restore_latest() == f"{folder}/model.ckpt-7"
    for replica in (0, 1):
        values = variables["a/weights"].value.values[replica].numpy()
        np.testing.assert_array_equal(values, 3 * [7.0])
        np.testing.assert_array_equal(local.values[replica].numpy(), [1.0])
    variables["a/weights"].value.values[0].assign(3 * [np.nan])
    with pytest.raises(UserError, match="no longer finite"):
        state.save()


@pytest.mark.slow
def test_mirrored_variables_are_restored_on_all_devices(tmp_path):
    run_in_process(
        "training/test_state", f"save_and_restore_mirrored({str(tmp_path)!r})"
    )
