"""Whatever happens to a training, what was saved is whole and it ends the same."""

import json
import os
import pathlib
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from loopback import cluster_configs

from deeplab_tf.files.locks import TRAINING_LOCK

# Saves and evaluations fall together now and then, but not always.
STEPS, SAVE, EVALUATE = 100, 3, 10
STEPS_OF_TWO = 40
TRAINING = (
    *("--model_variant=mobilenet_v2", "--depth_multiplier=0.1"),
    *("--aspp_convs_filters=16", "--train_crop_size=33,33", "--train_batch_size=4"),
    *("--base_learning_rate=0.05", "--log_steps=1", "--deterministic"),
    *(f"--training_number_of_steps={STEPS}", f"--save_interval_steps={SAVE}"),
    f"--eval_interval_steps={EVALUATE}",
)
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# The tests themselves may run under nohup.
HANGS_UP = ("env", "--default-signal=HUP")
RUNNING = []


@pytest.fixture(autouse=True)
def _nothing_runs_on():
    yield
    while RUNNING:
        process = RUNNING.pop()
        process.kill()
        process.wait()


class Training:
    """A process of train.py.

    Args:
        records: The `dataset_dir`.
        logs: The `train_logdir`; what the process prints lies beside it.
        *flags: More of them.
        before: Words of the command line before it.
        tf_config: Its place among several workers.
    """

    def __init__(self, records, logs, *flags, before=(), tf_config=None):
        self.logs = pathlib.Path(logs)
        worker = tf_config["task"]["index"] if tf_config else 0
        self._printed = [
            self.logs.with_name(f"{self.logs.name}.{worker}.{i}") for i in (1, 2)
        ]
        where = (f"--dataset_dir={records}", f"--train_logdir={logs}")
        command = (sys.executable, ROOT / "train.py", *where, *TRAINING, *flags)
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        if tf_config:
            environment["TF_CONFIG"] = json.dumps(tf_config)
        out, errors = (path.open("w") for path in self._printed)
        with out, errors:
            self.process = subprocess.Popen(
                [*before, *command], stdout=out, stderr=errors, env=environment
            )
        RUNNING.append(self.process)
        self.first = newest(self.logs)

    @property
    def out(self):
        return self._printed[0].read_text()

    @property
    def errors(self):
        """What stands on stderr, progress bars included."""
        return self._printed[1].read_text()

    @property
    def has_trained(self):
        return "img_per_s" in self.errors

    @property
    def has_saved(self):
        return newest(self.logs) > self.first

    @property
    def is_saving(self):
        return any(self.logs.glob(f".writing-{self.process.pid}-*"))

    @property
    def is_evaluating(self):
        return "evaluating" in self.errors

    def wait_for(self, sign):
        """Waits until something holds."""
        assert self._holds_within(300, sign), self.errors

    def wait_a_while(self, seconds):
        """Waits, but not for many steps where they are quick."""
        limit = newest(self.logs) + SAVE
        self._holds_within(seconds, lambda training: newest(training.logs) >= limit)

    def _holds_within(self, seconds, sign):
        end = time.monotonic() + seconds
        while not sign(self):
            if time.monotonic() > end:
                return False
            assert self.process.poll() is None, self.errors
            time.sleep(0.002)
        return True

    def send(self, number):
        self.process.send_signal(number)
        return self.process.wait(60)

    def ended(self, seconds=300):
        """Returns the exit status."""
        return self.process.wait(seconds)


def newest(logs):
    """Returns the step of the newest checkpoint, 0 where there is none."""
    found = re.findall(r"model\.ckpt-(\d+)\.index", " ".join(names(logs)))
    return max(map(int, found), default=0)


def names(logs):
    return sorted(os.listdir(logs)) if logs.exists() else []


def values_of(prefix):
    """Returns all that a checkpoint holds: weights, slots, seeds and counters."""
    reader = tf.train.load_checkpoint(str(prefix))
    keys = [k for k in reader.get_variable_to_shape_map() if k.endswith(VALUE)]
    return {key: np.asarray(reader.get_tensor(key)) for key in keys}


def assert_same_end(logs, expected):
    """Checks that two trainings ended the same to the last bit."""
    prefix = f"model.ckpt-{newest(expected)}"
    ends = [values_of(folder / prefix) for folder in (logs, expected)]
    assert {key.split("/")[0] for key in ends[1]} == {
        *("model", "optimizer", "seeds", "step", "samples", "format_version")
    }
    assert ends[0].keys() == ends[1].keys()
    assert [k for k, v in ends[0].items() if v.tobytes() != ends[1][k].tobytes()] == []
    for name in ("history.jsonl", "best/metrics.json"):
        assert (logs / name).read_text() == (expected / name).read_text()
    assert names(logs / "best") == names(expected / "best")
    assert [n for n in names(logs) if n.startswith("model.ckpt")] == [
        n for n in names(expected) if n.startswith("model.ckpt")
    ]


@pytest.fixture(scope="module")
def uninterrupted(tiny_records, tmp_path_factory):
    """The `train_logdir` of a training that nothing happened to."""
    training = Training(tiny_records, tmp_path_factory.mktemp("whole") / "logs")
    assert training.ended() == 0, training.errors
    return training.logs


# What is waited for, and the longest random time after it; all but the first, three of
# four kills, come while steps are done.
MOMENTS = {
    "starting": (lambda training: True, 8.0),
    "training": (lambda training: training.has_saved, 0.5),
    "saving": (lambda training: training.is_saving, 0.05),
    "evaluating": (lambda training: training.is_evaluating, 0.5),
}


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_uninterrupted(
    uninterrupted, tiny_records, tmp_path
):
    seed = random.randrange(1000)
    chance = random.Random(seed)
    moments = [*5 * ["starting"], *8 * ["training"]]
    moments += [*4 * ["saving"], *3 * ["evaluating"]]
    chance.shuffle(moments)
    print("seed", seed)
    for moment in moments:
        training = Training(tiny_records, tmp_path / "logs")
        sign, longest = MOMENTS[moment]
        training.wait_for(sign)
        delay = chance.uniform(0, longest)
        training.wait_a_while(delay)
        assert training.send(signal.SIGKILL) == -signal.SIGKILL
        where = "in a save" if training.is_saving else ""
        print(moment, round(delay, 3), training.first, newest(training.logs), where)
        assert "damaged" not in training.errors
    training = Training(tiny_records, tmp_path / "logs")
    assert training.ended() == 0, training.errors
    assert "damaged" not in training.errors
    assert_same_end(training.logs, uninterrupted)


@pytest.mark.slow
def test_asked_to_stop_it_saves_that_step_and_ends_as_uninterrupted(
    uninterrupted, tiny_records, tmp_path
):
    # Nothing but the signal and what is to be scored makes it save.
    rarely = "--save_interval_steps=0"
    statuses = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
    for number, status in statuses.items():
        training = Training(tiny_records, tmp_path / "logs", rarely, before=HANGS_UP)
        training.wait_for(lambda training: training.has_trained)
        time.sleep(random.uniform(0, 0.5))
        assert training.send(number) == status, training.errors
        line = r"interrupted after step (\d+); saved (\S+)\n"
        stopped = re.search(line, training.errors)
        assert training.first < int(stopped[1]) == newest(training.logs) < STEPS
        assert stopped[2] == f"{training.logs}/model.ckpt-{stopped[1]}"
        assert "Traceback" not in training.errors
        command = f"python {ROOT}/train.py --dataset_dir={tiny_records} --train_logdir="
        assert f"\nto resume, run: {command}" in training.errors
        assert not (training.logs / TRAINING_LOCK).exists()
    training = Training(tiny_records, tmp_path / "logs")
    assert training.ended() == 0, training.errors
    assert f"resuming from {training.logs}/model.ckpt-{stopped[1]};" in training.out
    assert_same_end(training.logs, uninterrupted)


@pytest.mark.slow
def test_what_is_finished_is_not_trained_again(uninterrupted, tiny_records, tmp_path):
    logs = pathlib.Path(shutil.copytree(uninterrupted, tmp_path / "logs"))
    kept = {name: (logs / name).stat().st_mtime_ns for name in names(logs)}
    training = Training(tiny_records, logs)
    assert training.ended() == 0, training.errors
    assert not training.has_trained
    for name in kept:
        if name.startswith(("model.ckpt", "history")):
            assert (logs / name).stat().st_mtime_ns == kept[name], name
    assert_same_end(logs, uninterrupted)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    uninterrupted, tiny_records, tmp_path
):
    logs = pathlib.Path(shutil.copytree(uninterrupted, tmp_path / "logs"))
    data = logs / f"model.ckpt-{STEPS}.data-00000-of-00001"
    os.truncate(data, data.stat().st_size // 2)
    training = Training(tiny_records, logs)
    assert training.ended() == 0, training.errors
    warning = (
        rf"warning: {logs}/model.ckpt-{STEPS} is damaged \(.*\); resuming from the "
        "previous checkpoint"
    )
    assert re.search(warning, training.errors)
    assert f"resuming from {logs}/model.ckpt-{STEPS - STEPS % SAVE};" in training.out
    assert_same_end(logs, uninterrupted)


def assert_refused(training, message):
    """Checks that a training ended with one line that holds a message."""
    assert training.ended() == 1
    assert "Traceback" not in training.errors
    told = [line for line in training.errors.splitlines() if "train.py: " in line]
    assert len(told) == 1
    assert training.errors.endswith(f"{told[0]}\n")
    assert re.search(message, told[0]), told[0]


@pytest.mark.slow
def test_a_loss_that_is_no_number_leaves_a_checkpoint_that_is_finite(
    uninterrupted, tiny_records, tmp_path
):
    logs = pathlib.Path(shutil.copytree(uninterrupted, tmp_path / "logs"))
    flags = ("--base_learning_rate=1e30", f"--training_number_of_steps={2 * STEPS}")
    assert_refused(
        Training(tiny_records, logs, *flags),
        rf"at step {STEPS + 1}.*base_learning_rate=1e\+30",
    )
    values = values_of(logs / f"model.ckpt-{newest(logs)}")
    assert all(np.isfinite(value).all() for value in values.values())
    evaluation = (
        *(sys.executable, ROOT / "eval.py", "--eval_split=val"),
        *(f"--dataset_dir={tiny_records}", f"--checkpoint_dir={logs}"),
        *("--max_number_of_evaluations=1", "--eval_crop_size=65,65"),
        f"--eval_logdir={tmp_path}/eval",
    )
    subprocess.run(evaluation, check=True)
    assert json.loads((tmp_path / "eval/metrics.json").read_text())["images"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["/proc/logs", "a_file", "a_file/logs"])
def test_a_folder_that_cannot_be_is_told_before_training(
    folder, tiny_records, tmp_path
):
    (tmp_path / "a_file").write_text("mine")
    where = f"--train_logdir={tmp_path / folder}"
    training = Training(tiny_records, tmp_path / "logs", where)
    assert_refused(training, "(a_file|/proc/logs)")
    assert not training.has_trained
    assert (tmp_path / "a_file").read_text() == "mine"


def linked(logs, name):
    """Returns another path of a `train_logdir`."""
    path = logs.with_name(name)
    path.symlink_to(logs)
    return path


@pytest.mark.slow
def test_a_second_training_and_a_removed_folder_are_refused(tiny_records, tmp_path):
    long = "--training_number_of_steps=100000"
    first = Training(tiny_records, tmp_path / "logs", long)
    first.wait_for(lambda training: training.has_saved)
    second = Training(tiny_records, linked(first.logs, "second"))
    assert_refused(
        second, rf"is in use by another training \(process {first.process.pid}"
    )
    assert "devices: " not in second.out
    sanity = Training(tiny_records, linked(first.logs, "sanity"), "--sanity_overfit")
    assert sanity.ended() in (0, 1)  # noise is not learned, which is no refusal
    assert "is in use" not in sanity.errors
    assert first.process.poll() is None
    shutil.rmtree(tmp_path / "logs")
    assert_refused(first, f"--train_logdir={first.logs} was removed while")
    assert not first.logs.exists()


@pytest.mark.slow
def test_a_closed_terminal_saves_and_ends_the_training(tiny_records, tmp_path):
    logs = tmp_path / "logs"
    where = (f"--dataset_dir={tiny_records}", f"--train_logdir={logs}")
    command = (sys.executable, ROOT / "train.py", *where, *TRAINING)
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [*HANGS_UP, "setsid", "--ctty", *command, "--training_number_of_steps=100000"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), end),
    )
    RUNNING.append(process)
    os.close(end)
    while newest(logs) == 0:
        os.read(terminal, 10_000)
    os.close(terminal)
    assert process.wait(60) == 129
    assert newest(logs) > 0
    assert not (logs / TRAINING_LOCK).exists()


@pytest.mark.slow
def test_evaluations_and_an_export_run_beside_a_training(tiny_records, tmp_path):
    logs = tmp_path / "logs"
    often = ("--save_interval_steps=1", "--eval_interval_steps=0")
    training = Training(tiny_records, logs, *often, "--training_number_of_steps=100000")
    training.wait_for(lambda training: training.has_saved)
    for number in range(3):
        follow = ("--eval_interval_secs=0", "--max_number_of_evaluations=3")
        evaluation = (
            *(sys.executable, ROOT / "eval.py", f"--dataset_dir={tiny_records}"),
            *("--eval_split=val", "--eval_crop_size=65,65"),
        )
        commands = [
            (*evaluation, f"--checkpoint_dir={logs}", *follow),
            (*evaluation, f"--checkpoint_dir={logs}"),
            (
                *(sys.executable, ROOT / "export.py", f"--checkpoint_path={logs}"),
                f"--export_path={tmp_path}/export{number}",
            ),
        ]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        readers = [subprocess.Popen(c, text=True, **options) for c in commands]
        RUNNING.extend(readers)
        second = Training(tiny_records, linked(logs, f"second{number}"), *often)
        assert_refused(second, "is in use by another training")
        for reader in readers:
            printed, _ = reader.communicate()
            assert reader.returncode == 0, printed
    assert training.send(signal.SIGTERM) == 143, training.errors


# Runs a command where a folder holds 1.5 MB, about three checkpoints, and once more
# where it is full to the last byte.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=1500k none "$0" || exit 99
"$@"; echo "status $?" >&2
cat /dev/zero >"$0/filler"
"$@"; status=$?
rm "$0/filler"
cp -r "$0" "$0.kept"
exit $status
"""


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_saved(uninterrupted, tiny_records, tmp_path):
    logs, kept = tmp_path / "logs", tmp_path / "logs.kept"
    logs.mkdir()
    apart = ("unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK)
    training = Training(tiny_records, logs, before=(*apart, logs))
    if training.ended() == 99:
        pytest.skip("needs leave to mount a tmpfs")
    assert training.ended() == 1
    assert "status 1\n" in training.errors
    assert "Traceback" not in training.errors
    told = [line for line in training.errors.splitlines() if "train.py: " in line]
    assert len(told) == 2
    assert all("No space left on device" in line for line in told)
    assert f"{logs}/model.ckpt-{newest(kept)}, is intact" in told[0]
    training = Training(tiny_records, kept)
    assert training.ended() == 0, training.errors
    assert_same_end(kept, uninterrupted)


def start_two(records, logs, *flags):
    """Starts two workers of one training."""
    flags = (f"--training_number_of_steps={STEPS_OF_TWO}", *flags)
    for place in cluster_configs():
        yield Training(records, logs, *flags, tf_config=place)


def finish_two(records, logs):
    for worker in list(start_two(records, logs)):
        assert worker.ended() == 0, worker.errors


@pytest.fixture(scope="module")
def two_uninterrupted(tiny_records, tmp_path_factory):
    """The `train_logdir` of two workers that nothing happened to."""
    logs = tmp_path_factory.mktemp("two") / "logs"
    finish_two(tiny_records, logs)
    return logs


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_end_as_uninterrupted(
    two_uninterrupted, tiny_records, tmp_path
):
    logs = tmp_path / "logs"
    for victim in (0, 1, 0):
        workers = list(start_two(tiny_records, logs))
        workers[0].wait_for(lambda training: training.has_saved)
        workers[0].wait_a_while(random.uniform(0, 1))
        assert workers[victim].send(signal.SIGKILL) == -signal.SIGKILL
        other = workers[1 - victim]
        # By itself: nobody sends it a signal.
        assert other.ended(60) > 0, other.errors
        assert "lost another worker and stops" in other.errors
        assert "Traceback" not in other.errors
    finish_two(tiny_records, logs)
    assert_same_end(logs, two_uninterrupted)


@pytest.mark.slow
def test_two_workers_of_which_one_is_asked_stop_at_the_same_step(
    two_uninterrupted, tiny_records, tmp_path
):
    logs = tmp_path / "logs"
    for asked in (0, 1):
        workers = list(start_two(tiny_records, logs, "--save_interval_steps=0"))
        workers[0].wait_for(lambda training: training.has_trained)
        time.sleep(random.uniform(0, 0.5))
        workers[asked].process.send_signal(signal.SIGTERM)
        assert [worker.ended(60) for worker in workers] == [143, 143]
        # One that was at another step would have waited for ever.
        stopped = re.search(r"interrupted after step (\d+)", workers[0].errors)
        assert workers[0].first < int(stopped[1]) == newest(logs) < STEPS_OF_TWO
    finish_two(tiny_records, logs)
    assert_same_end(logs, two_uninterrupted)
