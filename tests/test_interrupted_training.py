"""Interrupted trainings keep intact checkpoints and resume bit-exactly."""

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

# Saves and evaluations coincide only at some steps.
STEPS, SAVE, EVALUATE = 100, 3, 10
STEPS_TWO_WORKERS = 40
TRAINING = (
    *("--model_variant=mobilenet_v2", "--depth_multiplier=0.1"),
    *("--aspp_convs_filters=16", "--train_crop_size=33,33", "--train_batch_size=4"),
    *("--base_learning_rate=0.05", "--log_steps=1", "--deterministic"),
    *(f"--training_number_of_steps={STEPS}", f"--save_interval_steps={SAVE}"),
    f"--eval_interval_steps={EVALUATE}",
)
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# The tests themselves may run under nohup, which ignores the signal.
ACCEPT_SIGHUP = ("env", "--default-signal=HUP")
RUNNING = []


@pytest.fixture(autouse=True)
def _stop_processes():
    yield
    while RUNNING:
        process = RUNNING.pop()
        process.kill()
        process.wait()


class Training:
    """A process of train.py.

    Args:
        records: The `dataset_dir`.
        logs: The `train_logdir`; the output is written next to it.
        *flags: Further flags.
        prefix: A command that runs the process, such as `env`.
        tf_config: `TF_CONFIG` of a worker, if there are several.
    """

    def __init__(self, records, logs, *flags, prefix=(), tf_config=None):
        self.logs = pathlib.Path(logs)
        worker = tf_config["task"]["index"] if tf_config else 0
        self._printed = [
            self.logs.with_name(f"{self.logs.name}.{worker}.{i}") for i in (1, 2)
        ]
        paths = (f"--dataset_dir={records}", f"--train_logdir={logs}")
        command = (sys.executable, ROOT / "train.py", *paths, *TRAINING, *flags)
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "0"}
        if tf_config:
            environment["TF_CONFIG"] = json.dumps(tf_config)
        out, errors = (path.open("w") for path in self._printed)
        with out, errors:
            self.process = subprocess.Popen(
                [*prefix, *command], stdout=out, stderr=errors, env=environment
            )
        RUNNING.append(self.process)
        self.first = newest_step(self.logs)

    @property
    def out(self):
        return self._printed[0].read_text()

    @property
    def errors(self):
        """The text on stderr, including progress bars."""
        return self._printed[1].read_text()

    @property
    def has_trained(self):
        return "img_per_s" in self.errors

    @property
    def has_saved(self):
        return newest_step(self.logs) > self.first

    @property
    def is_saving(self):
        return any(self.logs.glob(f".writing-{self.process.pid}-*"))

    @property
    def is_evaluating(self):
        return "evaluating" in self.errors

    def wait_for(self, condition):
        """Waits until a condition holds."""
        assert self._holds_within(300, condition), self.errors

    def wait_a_while(self, seconds):
        """Waits some seconds, but at most for a few steps."""
        limit = newest_step(self.logs) + SAVE
        self._holds_within(
            seconds, lambda training: newest_step(training.logs) >= limit
        )

    def _holds_within(self, seconds, condition):
        end = time.monotonic() + seconds
        while not condition(self):
            if time.monotonic() > end:
                return False
            assert self.process.poll() is None, self.errors
            time.sleep(0.002)
        return True

    def send(self, number):
        self.process.send_signal(number)
        return self.process.wait(60)

    def wait(self, seconds=300):
        """Waits for the process; returns its exit status."""
        return self.process.wait(seconds)


def newest_step(logs):
    """Returns the step of the newest checkpoint, or 0."""
    found = re.findall(r"model\.ckpt-(\d+)\.index", " ".join(list_names(logs)))
    return max(map(int, found), default=0)


def list_names(logs):
    return sorted(os.listdir(logs)) if logs.exists() else []


def read_values(prefix):
    """Returns all values of a checkpoint: weights, slots, seeds and counters."""
    reader = tf.train.load_checkpoint(str(prefix))
    keys = [k for k in reader.get_variable_to_shape_map() if k.endswith(VALUE)]
    return {key: np.asarray(reader.get_tensor(key)) for key in keys}


def assert_identical(logs, expected):
    """Checks that two trainings have bit-identical results."""
    prefix = f"model.ckpt-{newest_step(expected)}"
    values = [read_values(folder / prefix) for folder in (logs, expected)]
    assert {key.split("/")[0] for key in values[1]} == {
        *("model", "optimizer", "seeds", "step", "samples", "format_version")
    }
    assert values[0].keys() == values[1].keys()
    assert [
        k for k, v in values[0].items() if v.tobytes() != values[1][k].tobytes()
    ] == []
    for name in ("history.jsonl", "best/metrics.json"):
        assert (logs / name).read_text() == (expected / name).read_text()
    assert list_names(logs / "best") == list_names(expected / "best")
    assert [n for n in list_names(logs) if n.startswith("model.ckpt")] == [
        n for n in list_names(expected) if n.startswith("model.ckpt")
    ]


@pytest.fixture(scope="module")
def uninterrupted(tiny_records, tmp_path_factory):
    """The `train_logdir` of an uninterrupted training."""
    training = Training(tiny_records, tmp_path_factory.mktemp("uninterrupted") / "logs")
    assert training.wait() == 0, training.errors
    return training.logs


# The condition to wait for, and the longest random delay after it. All but the first,
# three of four kills, hit a training that is running.
MOMENTS = {
    "starting": (lambda training: True, 8.0),
    "training": (lambda training: training.has_saved, 0.5),
    "saving": (lambda training: training.is_saving, 0.05),
    "evaluating": (lambda training: training.is_evaluating, 0.5),
}


@pytest.mark.slow
def test_resume_is_bit_exact_after_sigkill(uninterrupted, tiny_records, tmp_path):
    seed = random.randrange(1000)
    rng = random.Random(seed)
    moments = [*5 * ["starting"], *8 * ["training"]]
    moments += [*4 * ["saving"], *3 * ["evaluating"]]
    rng.shuffle(moments)
    print("seed", seed)
    for moment in moments:
        training = Training(tiny_records, tmp_path / "logs")
        condition, longest = MOMENTS[moment]
        training.wait_for(condition)
        delay = rng.uniform(0, longest)
        training.wait_a_while(delay)
        assert training.send(signal.SIGKILL) == -signal.SIGKILL
        state = "in a save" if training.is_saving else ""
        print(
            moment, round(delay, 3), training.first, newest_step(training.logs), state
        )
        assert "damaged" not in training.errors
    training = Training(tiny_records, tmp_path / "logs")
    assert training.wait() == 0, training.errors
    assert "damaged" not in training.errors
    assert_identical(training.logs, uninterrupted)


@pytest.mark.slow
def test_resume_is_bit_exact_after_sigterm(uninterrupted, tiny_records, tmp_path):
    # Only the signal and evaluations trigger a save.
    rarely = "--save_interval_steps=0"
    statuses = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
    for number, status in statuses.items():
        training = Training(
            tiny_records, tmp_path / "logs", rarely, prefix=ACCEPT_SIGHUP
        )
        training.wait_for(lambda training: training.has_trained)
        time.sleep(random.uniform(0, 0.5))
        assert training.send(number) == status, training.errors
        line = r"interrupted after step (\d+); saved (\S+)\n"
        stopped = re.search(line, training.errors)
        assert training.first < int(stopped[1]) == newest_step(training.logs) < STEPS
        assert stopped[2] == f"{training.logs}/model.ckpt-{stopped[1]}"
        assert "Traceback" not in training.errors
        command = f"python {ROOT}/train.py --dataset_dir={tiny_records} --train_logdir="
        assert f"\nto resume, run: {command}" in training.errors
        assert not (training.logs / TRAINING_LOCK).exists()
    training = Training(tiny_records, tmp_path / "logs")
    assert training.wait() == 0, training.errors
    assert f"resuming from {training.logs}/model.ckpt-{stopped[1]};" in training.out
    assert_identical(training.logs, uninterrupted)


@pytest.mark.slow
def test_finished_training_is_not_repeated(uninterrupted, tiny_records, tmp_path):
    logs = pathlib.Path(shutil.copytree(uninterrupted, tmp_path / "logs"))
    kept = {name: (logs / name).stat().st_mtime_ns for name in list_names(logs)}
    training = Training(tiny_records, logs)
    assert training.wait() == 0, training.errors
    assert not training.has_trained
    for name in kept:
        if name.startswith(("model.ckpt", "history")):
            assert (logs / name).stat().st_mtime_ns == kept[name], name
    assert_identical(logs, uninterrupted)


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_to_the_previous(
    uninterrupted, tiny_records, tmp_path
):
    logs = pathlib.Path(shutil.copytree(uninterrupted, tmp_path / "logs"))
    data = logs / f"model.ckpt-{STEPS}.data-00000-of-00001"
    os.truncate(data, data.stat().st_size // 2)
    training = Training(tiny_records, logs)
    assert training.wait() == 0, training.errors
    warning = (
        rf"warning: {logs}/model.ckpt-{STEPS} is damaged \(.*\); resuming from the "
        "previous checkpoint"
    )
    assert re.search(warning, training.errors)
    assert f"resuming from {logs}/model.ckpt-{STEPS - STEPS % SAVE};" in training.out
    assert_identical(logs, uninterrupted)


def assert_refused(training, message):
    """Checks that a training exits with a one-line error that matches a message."""
    assert training.wait() == 1
    assert "Traceback" not in training.errors
    messages = [line for line in training.errors.splitlines() if "train.py: " in line]
    assert len(messages) == 1
    assert training.errors.endswith(f"{messages[0]}\n")
    assert re.search(message, messages[0]), messages[0]


@pytest.mark.slow
def test_non_finite_loss_keeps_a_finite_checkpoint(
    uninterrupted, tiny_records, tmp_path
):
    logs = pathlib.Path(shutil.copytree(uninterrupted, tmp_path / "logs"))
    flags = ("--base_learning_rate=1e30", f"--training_number_of_steps={2 * STEPS}")
    assert_refused(
        Training(tiny_records, logs, *flags),
        rf"at step {STEPS + 1}.*base_learning_rate=1e\+30",
    )
    values = read_values(logs / f"model.ckpt-{newest_step(logs)}")
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
def test_invalid_train_logdir_is_refused_before_training(
    folder, tiny_records, tmp_path
):
    (tmp_path / "a_file").write_text("mine")
    paths = f"--train_logdir={tmp_path / folder}"
    training = Training(tiny_records, tmp_path / "logs", paths)
    assert_refused(training, "(a_file|/proc/logs)")
    assert not training.has_trained
    assert (tmp_path / "a_file").read_text() == "mine"


def link_logs(logs, name):
    """Returns a symlink to a `train_logdir`."""
    path = logs.with_name(name)
    path.symlink_to(logs)
    return path


@pytest.mark.slow
def test_second_run_and_removed_folder_are_refused(tiny_records, tmp_path):
    long = "--training_number_of_steps=100000"
    first = Training(tiny_records, tmp_path / "logs", long)
    first.wait_for(lambda training: training.has_saved)
    second = Training(tiny_records, link_logs(first.logs, "second"))
    assert_refused(
        second, rf"is in use by another training run \(process {first.process.pid}"
    )
    assert "devices: " not in second.out
    sanity = Training(tiny_records, link_logs(first.logs, "sanity"), "--sanity_overfit")
    assert sanity.wait() in (0, 1)  # not learning noise is no refusal
    assert "is in use" not in sanity.errors
    assert first.process.poll() is None
    shutil.rmtree(tmp_path / "logs")
    assert_refused(first, f"--train_logdir={first.logs} was removed during")
    assert not first.logs.exists()


@pytest.mark.slow
def test_closed_terminal_saves_and_stops_training(tiny_records, tmp_path):
    logs = tmp_path / "logs"
    paths = (f"--dataset_dir={tiny_records}", f"--train_logdir={logs}")
    command = (sys.executable, ROOT / "train.py", *paths, *TRAINING)
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [
            *ACCEPT_SIGHUP,
            "setsid",
            "--ctty",
            *command,
            "--training_number_of_steps=100000",
        ],
        **dict.fromkeys(("stdin", "stdout", "stderr"), end),
    )
    RUNNING.append(process)
    os.close(end)
    while newest_step(logs) == 0:
        os.read(terminal, 10_000)
    os.close(terminal)
    assert process.wait(60) == 129
    assert newest_step(logs) > 0
    assert not (logs / TRAINING_LOCK).exists()


@pytest.mark.slow
def test_evaluation_and_export_run_during_training(tiny_records, tmp_path):
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
        second = Training(tiny_records, link_logs(logs, f"second{number}"), *often)
        assert_refused(second, "is in use by another training run")
        for reader in readers:
            printed, _ = reader.communicate()
            assert reader.returncode == 0, printed
    assert training.send(signal.SIGTERM) == 143, training.errors


# Runs a command with a folder limited to 1.5 MB, about three checkpoints, and again
# with the folder completely full.
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
def test_full_disk_leaves_saved_checkpoints_intact(
    uninterrupted, tiny_records, tmp_path
):
    logs, kept = tmp_path / "logs", tmp_path / "logs.kept"
    logs.mkdir()
    command = ("unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK)
    training = Training(tiny_records, logs, prefix=(*command, logs))
    if training.wait() == 99:
        pytest.skip("needs permission to mount a tmpfs")
    assert training.wait() == 1
    assert "status 1\n" in training.errors
    assert "Traceback" not in training.errors
    messages = [line for line in training.errors.splitlines() if "train.py: " in line]
    assert len(messages) == 2
    assert all("No space left on device" in line for line in messages)
    assert f"{logs}/model.ckpt-{newest_step(kept)}, is intact" in messages[0]
    training = Training(tiny_records, kept)
    assert training.wait() == 0, training.errors
    assert_identical(kept, uninterrupted)


def start_two_workers(records, logs, *flags):
    """Starts and yields two workers of one training."""
    flags = (f"--training_number_of_steps={STEPS_TWO_WORKERS}", *flags)
    for tf_config in cluster_configs():
        yield Training(records, logs, *flags, tf_config=tf_config)


def finish_two_workers(records, logs):
    for worker in list(start_two_workers(records, logs)):
        assert worker.wait() == 0, worker.errors


@pytest.fixture(scope="module")
def uninterrupted_workers(tiny_records, tmp_path_factory):
    """The `train_logdir` of an uninterrupted training with two workers."""
    logs = tmp_path_factory.mktemp("two") / "logs"
    finish_two_workers(tiny_records, logs)
    return logs


@pytest.mark.slow
def test_two_workers_resume_bit_exactly_after_sigkill(
    uninterrupted_workers, tiny_records, tmp_path
):
    logs = tmp_path / "logs"
    for victim in (0, 1, 0):
        workers = list(start_two_workers(tiny_records, logs))
        workers[0].wait_for(lambda training: training.has_saved)
        workers[0].wait_a_while(random.uniform(0, 1))
        assert workers[victim].send(signal.SIGKILL) == -signal.SIGKILL
        other = workers[1 - victim]
        # It stops by itself, without a signal.
        assert other.wait(60) > 0, other.errors
        assert "lost contact with another worker and stops" in other.errors
        assert "Traceback" not in other.errors
    finish_two_workers(tiny_records, logs)
    assert_identical(logs, uninterrupted_workers)


@pytest.mark.slow
def test_sigterm_to_one_worker_stops_both_at_the_same_step(
    uninterrupted_workers, tiny_records, tmp_path
):
    logs = tmp_path / "logs"
    for signalled in (0, 1):
        workers = list(start_two_workers(tiny_records, logs, "--save_interval_steps=0"))
        workers[0].wait_for(lambda training: training.has_trained)
        time.sleep(random.uniform(0, 0.5))
        workers[signalled].process.send_signal(signal.SIGTERM)
        assert [worker.wait(60) for worker in workers] == [143, 143]
        # A worker at another step would have waited for ever.
        stopped = re.search(r"interrupted after step (\d+)", workers[0].errors)
        assert (
            workers[0].first < int(stopped[1]) == newest_step(logs) < STEPS_TWO_WORKERS
        )
    finish_two_workers(tiny_records, logs)
    assert_identical(logs, uninterrupted_workers)
