"""Training folders with killed processes and concurrent access."""

import functools
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time
import traceback

import numpy as np
import pytest
from training_states import fill_with, get_number, make_state, run_in_process

from deeplab_tf import Experiment, UserError
from deeplab_tf.checkpoints import tf1
from deeplab_tf.files.locks import TRAINING_LOCK, training_lock
from deeplab_tf.training.resume import read_experiment, write_experiment

# System calls that may change a file. `openat` creates files; it may also read.
CHANGES = (
    "open,openat,creat,write,pwrite64,writev,ftruncate,truncate,rename,renameat,"
    "renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,"
    "fallocate,copy_file_range,sendfile"
)


def save_number(folder, step, number, save, start):
    """Saves weights filled with a number once a byte is read from `start`."""
    state, variables = make_state(folder, 0.0, size=2000)
    fill_with(variables, number)
    variables["step"].assign(step)
    os.read(start, 1)
    getattr(state, save)()


def save_traced(options, *arguments):
    """Saves in a process under strace; returns True if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_number(*arguments, reader)
        finally:
            os._exit(0)
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-p", str(child), *options])
    while "TracerPid:\t0\n" in pathlib.Path(f"/proc/{child}/status").read_text():
        assert tracer.poll() is None, "strace cannot trace"
        time.sleep(0.005)
    os.write(writer, b"x")
    for descriptor in (reader, writer):
        os.close(descriptor)
    _, status = os.waitpid(child, 0)
    tracer.wait()
    return os.WIFSIGNALED(status)


def kill_at_every_call(folder, step, save, count):
    """Saves increasing numbers, killed at every system call that changes files.

    Args:
        folder: The `train_logdir`.
        step: Step of all checkpoints; None uses a new step each time.
        save: Name of the method that saves.
        count: Number of checkpoints in the folder at the start.
    """
    target = os.path.join(folder, "best") if save == "save_best" else folder
    for i in range(1, count + 1):
        state, variables = make_state(folder, 0.0, size=2000)
        fill_with(variables, 1)
        variables["step"].assign(i)
        getattr(state, save)()
    number, outcomes = 1, {"old": 0, "new": 0, "complete": 0}

    def save_next(*options):
        nonlocal number
        new = number + 1
        is_killed = save_traced(options, folder, step or count + new, new, save)
        state, variables = make_state(target, 0.0, size=2000)
        assert state.restore_latest(), options
        restored = get_number({n: v for n, v in variables.items() if n != "step"})
        assert restored in ((number, new) if is_killed else (new,)), options
        # Evaluations also read an intact checkpoint from the folder.
        for array in tf1.read_checkpoint(target).arrays.values():
            assert len(np.unique(array)) == 1
        kind = "new" if restored == new else "old"
        outcomes[kind if is_killed else "complete"] += 1
        number = restored
        return is_killed

    trace = os.path.join(os.path.dirname(folder), "trace")
    save_next("-e", f"trace={CHANGES}", "-o", trace)
    calls = set(re.findall(r"(?m)^\d+ +(\w+)\(", pathlib.Path(trace).read_text()))
    for call in sorted(calls):
        inject = ("-e", f"trace={call}", "-o", os.devnull, "-e")
        # Kill at the first call of this kind, at the second, until none is left.
        numbers = itertools.count(1)
        while save_next(*inject, f"inject={call}:signal=SIGKILL:when={next(numbers)}"):
            pass
    assert not list(pathlib.Path(folder).glob(".writing-*"))
    print("killed", outcomes, sorted(calls), file=sys.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "save", "count"), [(None, "save", 5), (1, "save", 1), (1, "save_best", 1)]
)
def test_old_or_new_checkpoint_is_intact_after_sigkill(step, save, count, tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    folder = tmp_path / "logs"
    arguments = f"{str(folder)!r}, {step}, {save!r}, {count}"
    messages = run_in_process(
        "training/test_shared_folder", f"kill_at_every_call({arguments})"
    )
    print(messages)
    assert "damaged" not in messages
    old, new = map(int, re.search(r"'old': (\d+), 'new': (\d+)", messages).groups())
    assert old > 20 and new > 1


ROUNDS = 200
EXPERIMENT = Experiment(split="trainval")


def train_repeatedly(root, counts):
    """Runs half of the trainings; counts refused attempts."""
    folder = str(root / "logs")
    while counts["trained"] < ROUNDS // 2:
        try:
            with training_lock(folder):
                train_few_steps(folder)
                counts["trained"] += 1
        except UserError as error:
            if "is in use by another training run (process " not in str(error):
                raise
            counts["refused"] += 1
        time.sleep(random.uniform(0, 0.2))
    (root / f"ended-{os.getpid()}").touch()


def train_few_steps(folder):
    """Resumes, saves three steps, saves the last step again and as the best."""
    write_experiment(EXPERIMENT, folder)
    state, variables = make_state(folder, 0.0, size=2000)
    state.restore_latest()
    step = get_number(variables)
    for i in range(1, 4):
        fill_with(variables, step + i)
        state.save()
    state.save()
    state.save_best()


def read_repeatedly(root, counts, name="logs"):
    """Reads the newest checkpoint repeatedly until both trainings have ended."""
    folder, newest = str(root / name), 0
    while len(list(root.glob("ended-*"))) < 2:
        try:
            checkpoint = tf1.read_checkpoint(folder)
        except UserError as error:
            # Nothing is saved yet.
            if newest or not str(error).startswith("no checkpoint"):
                raise
            time.sleep(0.1)
            continue
        (number,) = {n for a in checkpoint.arrays.values() for n in np.unique(a)}
        prefix = f"{folder}/model.ckpt-{number:.0f}"
        assert checkpoint.prefix in (prefix, f"{prefix}-replaced")
        # The previous step, while a checkpoint of the same step is being replaced.
        assert number >= newest - 1
        assert read_experiment(str(root / "logs")) == EXPERIMENT
        newest = number
        counts["read"] += 1


def run_forked(function, root, report):
    """Runs a function in a forked process that reports its counts as JSON."""
    child = os.fork()
    if child:
        return child
    counts = {"trained": 0, "refused": 0, "read": 0}
    try:
        function(root, counts)
        os.write(report, f"{json.dumps(counts)}\n".encode())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def share_folder(root):
    """Runs two trainings, two evaluations and an export in one folder."""
    reader, writer = os.pipe()
    read_best = functools.partial(read_repeatedly, name="logs/best")
    tasks = (
        train_repeatedly,
        train_repeatedly,
        read_repeatedly,
        read_repeatedly,
        read_best,
    )
    children = [run_forked(task, pathlib.Path(root), writer) for task in tasks]
    os.close(writer)
    with open(reader) as reports:
        counts = [json.loads(line) for line in reports]
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    totals = {name: sum(each[name] for each in counts) for name in counts[0]}
    print("counts", json.dumps(totals), file=sys.stderr)


@pytest.mark.slow
def test_concurrent_training_runs_and_readers(tmp_path):
    folder = tmp_path / "logs"
    call = f"share_folder({str(tmp_path)!r})"
    messages = run_in_process("training/test_shared_folder", call)
    print(messages)
    totals = json.loads(messages.split("counts ")[1].splitlines()[0])
    assert totals["trained"] == ROUNDS
    assert min(totals.values()) > 50
    assert "Traceback" not in messages and "damaged" not in messages
    state, variables = make_state(folder, 0.0, size=2000)
    state.restore_latest()
    # Every accepted training resumed from the previous one.
    assert get_number(variables) == 3 * ROUNDS
    assert not list(folder.glob(".writing-*"))
    assert not (folder / TRAINING_LOCK).exists()
