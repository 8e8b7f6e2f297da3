"""Training state on disk: what is saved, kept, restored, refused and survives."""

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
from listing import listed
from training_states import WEIGHTS, fill_with, run_apart, state_of, the_number_in

from deeplab_tf import UserError
from deeplab_tf.checkpoints.tf1 import resolve
from deeplab_tf.files import locks, outputs
from deeplab_tf.files.lock_file import Owner
from deeplab_tf.files.locks import TRAINING_LOCK, training_lock
from deeplab_tf.training import state as state_module
from deeplab_tf.training.state import TrainingState

INDEX, DATA = "index", "data-00000-of-00001"


@pytest.fixture(autouse=True)
def _short_periods(monkeypatch):
    """Shortens what locks wait for where there is no flock."""
    monkeypatch.setattr(locks, "HEARTBEAT_SECS", 0.1)
    monkeypatch.setattr(locks, "SETTLE_SECS", 0.01)


def save_steps(folder, *steps, **options):
    for step in steps:
        state_of(folder, float(step), **options)[0].save()


def steps_in(folder):
    """Returns the steps of which all files are there, and checks there are no more."""
    names = {n for n in tf.io.gfile.listdir(str(folder)) if n.startswith("model.ckpt")}
    steps = sorted(int(n.split("-")[1].split(".")[0]) for n in names if INDEX in n)
    assert names == {f"model.ckpt-{s}.{part}" for s in steps for part in (INDEX, DATA)}
    return steps


def flip_bit(path, share):
    """Flips one bit, `share` of the way through a file."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("folder", [None, "ram://test_state/state"])
def test_everything_comes_back(folder, tmp_path):
    folder = folder or str(tmp_path)
    for _ in range(2):  # the second replaces the first
        assert state_of(folder, 7.0)[0].save() == f"{folder}/model.ckpt-7"
    assert listed(folder) == [
        "checkpoint",
        "model.ckpt-7.data-00000-of-00001",
        "model.ckpt-7.index",
    ]
    state, variables = state_of(folder, 0.0)
    assert state.restore_latest() == f"{folder}/model.ckpt-7"
    assert the_number_in(variables) == 7


def test_the_keys_on_disk_are_the_official_names_by_group(tmp_path):
    prefix = state_of(tmp_path, 7.0)[0].save()
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


def test_what_a_checkpoint_manager_wrote_is_restored(tmp_path):
    # As our first versions did; it adds a counter of its own.
    saved, _ = state_of(tmp_path, 7.0)
    tf.train.CheckpointManager(
        saved._checkpoint, str(tmp_path), max_to_keep=5, checkpoint_name="model.ckpt"
    ).save(checkpoint_number=7)
    assert any("save_counter" in k for k, _ in tf.train.list_variables(str(tmp_path)))
    state, variables = state_of(tmp_path, 0.0)
    assert state.restore_latest() == str(tmp_path / "model.ckpt-7")
    assert the_number_in(variables) == 7


def test_nothing_to_restore_is_none(tmp_path):
    assert state_of(tmp_path / "new", 0.0)[0].restore_latest() is None
    assert state_of(tmp_path, 0.0)[0].restore_latest() is None


@pytest.mark.parametrize("folder", [None, "ram://test_state/kept"])
def test_the_last_five_are_kept_across_restarts(folder, tmp_path):
    # By number: 9 is before 10.
    folder = folder or str(tmp_path)
    save_steps(folder, *range(5, 12))
    assert steps_in(folder) == [7, 8, 9, 10, 11]
    kept = tf.train.get_checkpoint_state(folder)
    assert kept.model_checkpoint_path == f"{folder}/model.ckpt-11"
    assert list(kept.all_model_checkpoint_paths) == [
        f"{folder}/model.ckpt-{step}" for step in range(7, 12)
    ]


def test_a_training_that_began_anew_keeps_what_it_saves(tmp_path):
    save_steps(tmp_path, 10, 11, 12, 13, 14, 2)
    assert steps_in(tmp_path) == [2, 11, 12, 13, 14]
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-2")


def test_a_folder_can_be_moved(tmp_path):
    save_steps(tmp_path / "a", 6, 7)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = str(tmp_path / "b")
    assert tf.train.latest_checkpoint(moved) == f"{moved}/model.ckpt-7"
    assert state_of(moved, 0.0)[0].restore_latest() == f"{moved}/model.ckpt-7"


def test_of_the_best_one_is_kept_apart(tmp_path):
    save_steps(tmp_path, 3, 4)
    for step in (4, 3):  # a training that began anew
        prefix = state_of(tmp_path, float(step))[0].save_best()
        assert prefix == str(tmp_path / f"best/model.ckpt-{step}")
        assert steps_in(tmp_path / "best") == [step]
        assert tf.train.latest_checkpoint(str(tmp_path / "best")) == prefix
    assert steps_in(tmp_path) == [3, 4]
    state, variables = state_of(tmp_path / "best", 0.0)
    state.restore_latest()
    assert the_number_in(variables) == 3


def test_another_worker_writes_but_keeps_nothing(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    written = []
    write = tf.train.Checkpoint.write

    def written_to(checkpoint, prefix):
        written.append(prefix)
        return write(checkpoint, prefix)

    monkeypatch.setattr(tf.train.Checkpoint, "write", written_to)
    folder = tmp_path / "logs"
    state, _ = state_of(folder, 7.0, is_chief=False)
    assert state.save() == str(folder / "model.ckpt-7")
    assert state.save_best() == str(folder / "best/model.ckpt-7")
    assert [pathlib.Path(p).parents[1] for p in written] == [elsewhere, elsewhere]
    assert not folder.exists()
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("other", "reason"),
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
        # The checkpoint holds more than the model: a mean that it lacks.
        ({"weights": WEIGHTS[:1]}, "moving_mean is .*, but not in use here"),
    ],
)
def test_the_state_of_another_model_is_refused_in_one_line(
    other, reason, tmp_path, caplog, capfd
):
    save_steps(tmp_path, 6)
    save_steps(tmp_path, 7)
    state, variables = state_of(tmp_path, 0.0, **other)
    message = rf"^\S+model.ckpt-7 does not match this model and .*: .*{reason}"
    with pytest.raises(UserError, match=message) as error:
        state.restore_latest()
    assert "\n" not in str(error.value)
    assert the_number_in(variables) == 0
    assert not caplog.records
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("group", "flag"),
    [("average", "ema_decay"), ("loss_scale", "precision"), ("optimizer", "optimizer")],
)
def test_the_flag_behind_a_group_of_values_is_named(group, flag, tmp_path):
    names = ("model", "optimizer")
    groups = {n: {"a/weights": keras.Variable([0.0])} for n in names if n != group}
    counters = keras.Variable(0, dtype="int64"), tf.Variable(0, dtype=tf.int64)
    TrainingState(str(tmp_path), groups, *counters).save()
    groups[group] = {"a/weights": keras.Variable([0.0])}
    with pytest.raises(
        UserError, match=f"logdir, or the same --{flag} as before: {group}/a/"
    ):
        TrainingState(str(tmp_path), groups, *counters).restore_latest()


def test_another_type_of_value_is_refused(tmp_path):
    save_steps(tmp_path, 7)
    step = keras.Variable(0, dtype="int64")
    samples = tf.Variable(0, dtype=tf.int32)
    groups = {"model": {n: keras.Variable([0.0] * 3) for n in WEIGHTS}}
    groups["optimizer"] = {"a/weights/Momentum": keras.Variable([0.0] * 3)}
    with pytest.raises(UserError, match=r"samples is int64 .*, but int32"):
        TrainingState(str(tmp_path), groups, step, samples).restore_latest()


def test_another_format_is_refused(tmp_path, monkeypatch):
    save_steps(tmp_path, 7)
    monkeypatch.setattr(state_module, "FORMAT_VERSION", 2)
    state, _ = state_of(tmp_path, 0.0, size=4)
    with pytest.raises(UserError, match=r"has format version 1; .* resumes version 2$"):
        state.restore_latest()


def test_an_official_checkpoint_is_not_one_of_ours(tmp_path):
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model.ckpt-9"),
        tensor_names=["a/weights"],
        shape_and_slices=[""],
        tensors=[tf.zeros(3)],
    )
    with pytest.raises(UserError, match=r"ckpt-9 is a TF1 checkpoint, .* --tf_init"):
        state_of(tmp_path, 0.0)[0].restore_latest()


DAMAGES = {
    "index cut": (INDEX, lambda path: cut(path, -40)),
    "index empty": (INDEX, lambda path: cut(path, 0)),
    "index flipped": (INDEX, lambda path: flip_bit(path, 0.4)),
    "data cut": (DATA, lambda path: cut(path, -40)),
    "data empty": (DATA, lambda path: cut(path, 0)),
    "first data flipped": (DATA, lambda path: flip_bit(path, 0)),
    "big tensor flipped": (DATA, lambda path: flip_bit(path, 0.5)),
    "last data flipped": (DATA, lambda path: flip_bit(path, 0.999999)),
    "data missing": (DATA, pathlib.Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_passed_over(damage, tmp_path, capfd):
    size = 1_000_000 if "tensor" in damage else 3
    save_steps(tmp_path, 5, 6, 7, size=size)
    part, harm = DAMAGES[damage]
    harm(tmp_path / f"model.ckpt-7.{part}")
    state, variables = state_of(tmp_path, 0.0, size=size)
    assert state.restore_latest() == str(tmp_path / "model.ckpt-6")
    assert the_number_in(variables) == 6
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/model.ckpt-7 is damaged (")
    assert line.endswith("); resuming from the previous checkpoint")
    # Trained again up to where the damaged one is, it is replaced.
    fill_with(variables, 7)
    state.save()
    assert state.restore_latest() == str(tmp_path / "model.ckpt-7")


def test_a_damaged_block_of_a_large_index_is_found(tmp_path):
    # Blocks have 256 KiB; names that differ at once are not shortened.
    names = tuple(f"{i}/{1000 * 'x'}" for i in range(300))
    save_steps(tmp_path, 7, weights=names)
    index = tmp_path / "model.ckpt-7.index"
    assert index.stat().st_size > 280_000
    state, _ = state_of(tmp_path, 0.0, weights=names)
    for share in (0.1, 0.7):
        flip_bit(index, share)
        with pytest.raises(UserError, match=r"-7 is damaged \(its index lacks "):
            state.restore_latest()
        flip_bit(index, share)
    assert state.restore_latest()


def test_where_all_are_damaged_training_ends_with_one_line(tmp_path, capfd):
    save_steps(tmp_path, 6, 7)
    (tmp_path / f"model.ckpt-6.{DATA}").unlink()
    cut(tmp_path / "model.ckpt-7.index", 30)
    state, variables = state_of(tmp_path, 0.0)
    message = r"no checkpoint in \S+ is intact; .*: \S+model.ckpt-7 is damaged \(.*\)$"
    with pytest.raises(UserError, match=message) as error:
        state.restore_latest()
    assert "\n" not in str(error.value)
    assert the_number_in(variables) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [None, "", 'model_checkpoint_path: "model.ck'])
def test_the_state_file_is_not_needed(content, tmp_path):
    save_steps(tmp_path, 6, 7)
    (tmp_path / "checkpoint").unlink()
    if content is not None:
        (tmp_path / "checkpoint").write_text(content)
    state, variables = state_of(tmp_path, 0.0)
    assert state.restore_latest() == str(tmp_path / "model.ckpt-7")
    assert the_number_in(variables) == 7
    fill_with(variables, 8)
    state.save()
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-8")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(number, tmp_path):
    save_steps(tmp_path, 6)
    state, variables = state_of(tmp_path, 7.0)
    variables["a/BatchNorm/moving_mean"].assign([0, number, 0])
    message = (
        r"^the weights are no longer finite at step 7 \(first: "
        r"a/BatchNorm/moving_mean\); nothing was saved$"
    )
    for save in (state.save, state.save_best):
        with pytest.raises(UserError, match=message):
            save()
    assert steps_in(tmp_path) == [6]
    assert not (tmp_path / "best").exists()


def test_what_killed_processes_left_is_removed(tmp_path):
    save_steps(tmp_path, 6)
    left = f".writing-{os.getpid()}-0123abcd"
    for name in (".writing-1-01234567/model.ckpt-7_temp", left):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(tmp_path / "model.ckpt-6.index", tmp_path / name)
    shutil.copy(tmp_path / f"model.ckpt-6.{DATA}", tmp_path / f"model.ckpt-7.{DATA}")
    index = str(tmp_path / "model.ckpt-6.index")
    outputs.record_before_move(index, str(tmp_path / "model.ckpt-7.index"))
    (tmp_path / f"model.ckpt-5.{DATA}").write_text("not ours")
    save_steps(tmp_path, 8)
    assert (tmp_path / f"model.ckpt-5.{DATA}").read_text() == "not ours"
    (tmp_path / f"model.ckpt-5.{DATA}").unlink()
    assert steps_in(tmp_path) == [6, 8]
    assert not list(tmp_path.glob(".writing-*"))


def test_what_another_program_left_stays(tmp_path):
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


def test_another_training_keeps_its_scratch_folder(tmp_path, monkeypatch):
    # Its lock is of another machine, and its heartbeat is seen.
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
    with pytest.raises(UserError, match=r"is in use by another training \(process"):
        save_steps(tmp_path, 8)
    assert scratch.exists()
    lock.unlink()
    assert steps_in(tmp_path) == [6]


@pytest.mark.parametrize("moment", ["before", "while writing", "while moving"])
@pytest.mark.parametrize("save", ["save", "save_best"])
def test_a_folder_that_vanishes_ends_the_training(moment, save, tmp_path, monkeypatch):
    folder = tmp_path / "logs"
    state, variables = state_of(folder, 7.0)
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
        message = f"^--train_logdir={folder} was removed while this training ran; "
        with pytest.raises(UserError, match=message):
            getattr(state, save)()
    assert not folder.exists()


@pytest.mark.parametrize("save", ["save", "save_best"])
def test_a_folder_that_was_taken_over_is_left_alone(save, tmp_path):
    state, _ = state_of(tmp_path, 7.0)
    other = dataclasses.replace(Owner.this_process(), token="other")
    with training_lock(str(tmp_path)):
        (tmp_path / TRAINING_LOCK).write_bytes(other.to_bytes())
        with pytest.raises(UserError, match=f"was taken over by {other} while"):
            getattr(state, save)()
    assert os.listdir(tmp_path) == [TRAINING_LOCK]


@pytest.mark.parametrize("before", [(), (6,), (6, 7)])
def test_a_file_that_cannot_be_written_leaves_those_before(before, tmp_path):
    save_steps(tmp_path, *before, size=10_000)
    if before:
        whole = f"the previous checkpoint, {tmp_path}/model.ckpt-6, is intact"
    else:
        whole = "no earlier checkpoint is intact"
    if 7 in before:
        flip_bit(tmp_path / f"model.ckpt-7.{DATA}", 0.5)
    state, _ = state_of(tmp_path, 8.0, size=10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError) as error:
            state.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == (
        f"could not save model.ckpt-8 in {tmp_path}: File too large; {whole}"
    )
    assert steps_in(tmp_path) == list(before)
    assert not list(tmp_path.glob(".writing-*"))
    state.save()
    assert steps_in(tmp_path) == [*before, 8]


def test_data_of_one_save_never_lie_beside_the_index_of_another(
    tmp_path, monkeypatch, capfd
):
    save_steps(tmp_path, 6, 7)
    state, variables = state_of(tmp_path, 7.0)
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
    # The one of the same step stays, by another name.
    for _ in range(2):
        assert state.restore_latest() == str(tmp_path / "model.ckpt-7-replaced")
        assert the_number_in(variables) == 7
        assert resolve(str(tmp_path)) == str(tmp_path / "model.ckpt-7-replaced")
        with pytest.raises(UserError, match=message):
            state.save()
    monkeypatch.undo()
    assert capfd.readouterr().err == ""
    state.save()
    assert steps_in(tmp_path) == [6, 7]


def fill_the_disk(folder):
    """Saves on a file system of 4 MB until it is full, and then once more."""
    folder = pathlib.Path(folder)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True
    )
    state, variables = state_of(folder, 0.0, size=50_000)  # 600 kB a checkpoint
    for step in range(1, 4):
        fill_with(variables, step)
        state.save()
    filler = folder / "filler"
    # Full from the first byte on, within the data, at the index and at the state file.
    free = shutil.disk_usage(folder).free
    for left in (0, 4096, 100_000, *range(600_000, 630_000, 4096)):
        filler.write_bytes(bytes(max(0, free - left)))
        fill_with(variables, 4)
        try:
            state.save()
        except UserError as error:
            assert str(error) == (
                f"could not save model.ckpt-4 in {folder}: No space left on device; "
                f"the previous checkpoint, {folder}/model.ckpt-3, is intact"
            )
            assert state.restore_latest() == f"{folder}/model.ckpt-3"
            assert the_number_in(variables) == 3
            assert listed(folder) == sorted(
                ["checkpoint", "filler"]
                + [
                    f"model.ckpt-{s}.{part}"
                    for s in (1, 2, 3)
                    for part in (INDEX, DATA)
                ]
            )
        else:
            assert left > 600_000
            break
    else:
        raise AssertionError("no save found enough room")
    assert state.restore_latest() == f"{folder}/model.ckpt-4"
    assert the_number_in(variables) == 4


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoints_before(tmp_path):
    apart = ("unshare", "--map-root-user", "--mount")
    try:
        mount = ("mount", "-t", "tmpfs", "none", tmp_path)
        subprocess.run([*apart, *mount], check=True, stderr=subprocess.PIPE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs unshare and leave to mount a tmpfs")
    run_apart("training/test_state", f"fill_the_disk({str(tmp_path)!r})", *apart)


def train_until_killed(folder, report, kill_at):
    """Restores and saves step after step.

    Args:
        folder: The `train_logdir`.
        report: File descriptor to which it writes the step of every save.
        kill_at: How many files are moved or removed until it kills itself.
    """
    state, variables = state_of(folder, 0.0, size=20_000)
    calls = 0

    def or_die(function):
        def counted(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted

    for name in ("rename", "remove", "rmtree"):
        setattr(tf.io.gfile, name, or_die(getattr(tf.io.gfile, name)))
    state.restore_latest()
    step = the_number_in(variables)
    assert tf.train.latest_checkpoint(folder) or step == 0
    for place in (pathlib.Path(folder), pathlib.Path(folder, "best")):
        for index in place.glob("*.index"):
            assert index.with_name(f"{index.stem}.{DATA}").exists()
    os.write(report, f"{step}\n".encode())
    while True:
        step += 1
        fill_with(variables, step)
        state.save()
        state.save_best()
        os.write(report, f"{step}\n".encode())


def kill_again_and_again(folder):
    """Kills one training after another, each of which goes on from the one before."""
    saved = 0
    # The first saves seven times, so that all others have to remove some, too; both
    # kinds of save together move and remove 13.
    for kill_at in [80, *range(1, 14), *5 * [None]]:
        reader, writer = os.pipe()
        # A fork instead of an import of TensorFlow, which has no threads yet.
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
        # What `save` returned for is there, and at most the one it was killed in.
        assert restored in (saved, saved + 1), (restored, saved, kill_at)
        saved = steps[-1]
    print("saved", saved, file=sys.stderr)


@pytest.mark.slow
def test_whenever_it_is_killed_the_last_state_is_whole(tmp_path):
    messages = run_apart(
        "training/test_state", f"kill_again_and_again({str(tmp_path)!r})"
    )
    assert "damaged" not in messages
    saved = int(messages.split()[-1])
    assert saved > 12
    state, variables = state_of(tmp_path, 0.0, size=20_000)
    state.restore_latest()
    assert the_number_in(variables) in (saved, saved + 1)
    fill_with(variables, saved + 2)
    state.save()
    assert len(steps_in(tmp_path)) == 5
    assert not list(tmp_path.glob(".writing-*"))


def save_and_restore_mirrored(folder):
    """Two replicas; the second variable is one that they only sum up when read."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, 2 * [tf.config.LogicalDeviceConfiguration()]
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        state, variables = state_of(folder, 7.0)
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
def test_mirrored_variables_come_back_on_every_device(tmp_path):
    run_apart("training/test_state", f"save_and_restore_mirrored({str(tmp_path)!r})")
