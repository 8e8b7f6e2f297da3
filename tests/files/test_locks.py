"""The lock of a training folder: refusal, stale locks, takeover and release."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from deeplab_tf import UserError
from deeplab_tf.files import lock_file, locks
from deeplab_tf.files.lock_file import Owner
from deeplab_tf.files.locks import TRAINING_LOCK, training_lock, verify_training_lock

HOLD_LOCK = """
import sys, time
from deeplab_tf.files.locks import training_lock
with training_lock(sys.argv[1]):
    assert "tensorflow" not in sys.modules
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECS", 0.05)
    monkeypatch.setattr(locks, "SETTLE_SECS", 0.02)


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, tmp_path],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.fixture
def without_flock(monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)


def leave_lock(folder, **changes):
    """Writes the lock file of a killed process; returns its owner."""
    owner = dataclasses.replace(Owner.this_process(), **changes)
    (folder / TRAINING_LOCK).write_bytes(owner.to_bytes())
    return owner


def acquire(folder):
    with training_lock(str(folder)):
        return Owner.from_bytes((folder / TRAINING_LOCK).read_bytes())


OTHER_MACHINE = {"boot": "another", "host": "far"}
# A process that has ended; Linux assigns no ids this large.
DEAD_PROCESS = {"pid": 1 << 30}
# The id of a running process that started at another time.
REUSED_PID = {"pid": os.getppid(), "started": "1"}


@pytest.mark.parametrize("has_flock", [True, False])
def test_second_process_is_refused_with_id_host_and_time(
    has_flock, other_process, tmp_path, monkeypatch
):
    if not has_flock:
        monkeypatch.setattr(locks, "fcntl", None)
    owner = Owner.from_bytes((tmp_path / TRAINING_LOCK).read_bytes())
    with pytest.raises(UserError) as error:
        acquire(tmp_path)
    assert str(error.value) == (
        f"--train_logdir={tmp_path} is in use by another training run (process "
        f"{other_process.pid} on {owner.host}, since {owner.since}); stop that process "
        "or give a different --train_logdir"
    )


@pytest.mark.parametrize("has_flock", [True, False])
def test_lock_of_killed_process_is_taken_over_at_once(
    has_flock, other_process, tmp_path, monkeypatch, capfd
):
    if not has_flock:
        monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "HEARTBEAT_SECS", 1000)  # nothing is watched
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    assert (tmp_path / TRAINING_LOCK).exists()
    assert acquire(tmp_path).pid == os.getpid()
    assert not (tmp_path / TRAINING_LOCK).exists()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("changes", [DEAD_PROCESS, REUSED_PID, {}])
def test_dead_process_is_recognized_without_flock(
    changes, without_flock, tmp_path, monkeypatch
):
    monkeypatch.setattr(locks, "HEARTBEAT_SECS", 1000)
    leave_lock(tmp_path, **changes)
    assert acquire(tmp_path).pid == os.getpid()


@pytest.mark.parametrize(
    "changes", [OTHER_MACHINE, {"namespace": "pid:[1]"}, {"started": ""}]
)
def test_unverifiable_lock_owner_is_watched_without_flock(
    changes, without_flock, tmp_path, capfd
):
    owner = leave_lock(tmp_path, **changes)
    assert acquire(tmp_path).pid == os.getpid()
    first, second = capfd.readouterr().err.splitlines()
    assert f"is locked by {owner}; waiting" in first
    assert f"from {owner}, which no longer renews" in second


def test_lock_owner_on_another_machine_is_watched_despite_flock(tmp_path, capfd):
    # As on a network disk where each machine has its own locks.
    leave_lock(tmp_path, **OTHER_MACHINE)
    assert acquire(tmp_path).pid == os.getpid()
    assert "taking over" in capfd.readouterr().err


def run_while_watching(monkeypatch, action):
    """Runs an action after the lock was read, between two checks of its heartbeat."""
    sleep, actions = time.sleep, [action]

    def act_then_sleep(seconds):
        if actions:
            actions.pop()()
        sleep(seconds)

    monkeypatch.setattr(locks.time, "sleep", act_then_sleep)


@pytest.mark.parametrize("has_flock", [True, False])
def test_lock_with_heartbeat_of_another_machine_is_refused(
    has_flock, tmp_path, monkeypatch
):
    if not has_flock:
        monkeypatch.setattr(locks, "fcntl", None)
    owner = leave_lock(tmp_path, **OTHER_MACHINE)
    later = dataclasses.replace(owner, beat=1).to_bytes()
    path = tmp_path / TRAINING_LOCK
    run_while_watching(monkeypatch, lambda: path.write_bytes(later))
    message = f"process {os.getpid()} on far, since"
    with pytest.raises(UserError, match=message):
        acquire(tmp_path)
    assert path.read_bytes() == later


def test_lock_released_while_watched_is_acquired(tmp_path, monkeypatch):
    leave_lock(tmp_path, **OTHER_MACHINE)
    run_while_watching(monkeypatch, (tmp_path / TRAINING_LOCK).unlink)
    assert acquire(tmp_path).pid == os.getpid()


@pytest.mark.parametrize("folder", [None, "ram://test_locks/logs"])
def test_holder_renews_the_lock(folder, tmp_path):
    folder = folder or str(tmp_path)
    path = f"{folder}/{TRAINING_LOCK}"
    with training_lock(folder):
        end = time.monotonic() + 10
        while Owner.from_bytes(lock_file.read(path)).beat < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert lock_file.read(path) is None


def test_remote_folder_is_locked_by_heartbeat():
    folder = "ram://test_locks/remote"
    path = f"{folder}/{TRAINING_LOCK}"
    with training_lock(folder):
        record = lock_file.read(path)
        far = dataclasses.replace(Owner.from_bytes(record), token="x", **OTHER_MACHINE)
        lock_file.write(path, far.to_bytes())
        with pytest.raises(UserError, match=r"was taken over by process .* on far"):
            verify_training_lock(folder)
    assert Owner.from_bytes(lock_file.read(path)) == far


def test_one_of_two_processes_wins_without_flock(without_flock, tmp_path, monkeypatch):
    run_while_watching(monkeypatch, lambda: leave_lock(tmp_path, **OTHER_MACHINE))
    with pytest.raises(UserError, match=r"in use by another training run .* on far"):
        acquire(tmp_path)
    assert Owner.from_bytes((tmp_path / TRAINING_LOCK).read_bytes()).host == "far"


def test_lock_is_reentrant(tmp_path):
    with training_lock(str(tmp_path)):
        first = Owner.from_bytes((tmp_path / TRAINING_LOCK).read_bytes())
        assert acquire(tmp_path).token == first.token
        verify_training_lock(str(tmp_path))
    assert acquire(tmp_path).token != first.token
    verify_training_lock(str(tmp_path))  # not held: nothing to check


@pytest.mark.parametrize("is_recreated", [False, True])
def test_removed_folder_is_neither_locked_nor_recreated(is_recreated, tmp_path):
    folder = tmp_path / "logs"
    with training_lock(str(folder)):
        shutil.rmtree(folder)
        if is_recreated:
            folder.mkdir()
        time.sleep(0.12)  # two heartbeats
        message = f"^--train_logdir={folder} was removed during this training run; "
        for check in (verify_training_lock, acquire):
            with pytest.raises(UserError, match=message):
                check(folder if check is acquire else str(folder))
        assert folder.exists() == is_recreated
        assert not (folder / TRAINING_LOCK).exists()


def test_lock_that_was_taken_over_is_kept(tmp_path):
    with training_lock(str(tmp_path)):
        other = leave_lock(tmp_path, token="other")
        time.sleep(0.12)
        with pytest.raises(UserError, match=f"was taken over by {other} during"):
            verify_training_lock(str(tmp_path))
    assert Owner.from_bytes((tmp_path / TRAINING_LOCK).read_bytes()) == other


def test_folder_created_only_for_the_lock_is_removed(tmp_path):
    for content in ((), ("file",)):
        with training_lock(str(tmp_path / "a/b")):
            for name in content:
                (tmp_path / "a/b" / name).touch()
        assert (tmp_path / "a").exists() == bool(content)


FORK_WITH_LOCK = """
import os, signal, sys, time
from deeplab_tf.files.locks import training_lock
with training_lock(sys.argv[1]):
    if os.fork() == 0:
        print("forked", flush=True)
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_fork_does_not_keep_the_lock_of_a_killed_parent(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", FORK_WITH_LOCK, tmp_path],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    with process:
        assert process.stdout.readline() == b"forked\n"
        assert process.wait(60) == -signal.SIGKILL
        assert (tmp_path / TRAINING_LOCK).exists()
        try:
            assert acquire(tmp_path).pid == os.getpid()
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the forked process, in its session


EXIT_FORK = """
import os, sys
from deeplab_tf.files.locks import training_lock
with training_lock(sys.argv[1]):
    child = os.fork()
    if child == 0:
        sys.exit()
    os.waitpid(child, 0)
    print(os.listdir(sys.argv[1]))
"""


def test_fork_that_exits_does_not_release_the_lock(tmp_path):
    output = subprocess.check_output(
        [sys.executable, "-c", EXIT_FORK, tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert output == f"{[TRAINING_LOCK]}\n"


def make_symlink(path):
    path.with_name("mine").write_text("mine")
    path.symlink_to("mine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("mine"), "lock is not a lock file; "),
        (make_symlink, "cannot be locked: .*symbolic"),
        (os.mkfifo, "cannot be locked: .*not a regular file"),
        (os.mkdir, "cannot be locked: .*directory"),
    ],
)
def test_file_that_is_not_a_lock_is_refused_and_kept(make, message, tmp_path):
    make(tmp_path / TRAINING_LOCK)
    before = os.lstat(tmp_path / TRAINING_LOCK)
    with pytest.raises(UserError, match=message) as error:
        acquire(tmp_path)
    assert "\n" not in str(error.value)
    assert os.path.samestat(before, os.lstat(tmp_path / TRAINING_LOCK))
    for path in tmp_path.iterdir():
        assert not path.is_file() or path.read_text() == "mine"


@pytest.mark.parametrize("content", [b"", bytes(1024)])
def test_lock_without_content_is_acquired(content, tmp_path):
    (tmp_path / TRAINING_LOCK).write_bytes(content)
    assert acquire(tmp_path).pid == os.getpid()


@pytest.mark.parametrize("folder", ["", "/proc/logs", "file/logs"])
def test_folder_that_cannot_be_locked_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^--train_logdir(={folder} cannot| is empty)"):
        acquire(folder) if folder else training_lock("").__enter__()
