"""Trained weights do not depend on the input workers, even if these are killed."""

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from loopback import find_free_ports

STEPS = 24
_PROGRAM = (sys.executable, "-m", "deeplab_tf.data.worker")


class Processes:
    """Processes that are killed at the end of a test."""

    def __init__(self, folder):
        self._folder, self._running = folder, []

    def start(self, *command):
        name = f"{len(self._running)}.log"
        with open(self._folder / name, "w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT)
        process.log = self._folder / name
        self._running.append(process)
        return process

    def kill_all(self):
        for process in self._running:
            process.kill()
            process.wait()


@pytest.fixture
def processes(tmp_path):
    found = Processes(tmp_path)
    yield found
    found.kill_all()


def wait_for(condition, *processes, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        for process in processes:
            assert process.poll() is None, process.log.read_text()
        assert time.monotonic() < end
        time.sleep(0.05)


class Service:
    """A dispatcher and its workers."""

    def __init__(self, processes, folder, workers):
        self._processes = processes
        [self._port] = find_free_ports(1)
        self._work_dir = folder / "dispatcher"
        self.flag = f"--data_service=grpc://localhost:{self._port}"
        self.start_dispatcher()
        self.workers = [self.start_worker() for _ in range(workers)]

    def start_dispatcher(self):
        self.dispatcher = self._processes.start(
            *(*_PROGRAM, "--dispatcher", f"--port={self._port}"),
            f"--work_dir={self._work_dir}",
        )
        wait_for(lambda: "port" in self.dispatcher.log.read_text(), self.dispatcher)

    def start_worker(self):
        [port] = find_free_ports(1)
        worker = self._processes.start(
            *(*_PROGRAM, f"--dispatcher_address=grpc://localhost:{self._port}"),
            *("--host=localhost", f"--port={port}"),
        )
        wait_for(lambda: "worker" in worker.log.read_text(), worker)
        return worker


@pytest.fixture(scope="module")
def flags(voc_records, voc_checkpoint):
    """The flags of a training on real images from real weights."""
    return (
        *("--model_variant=mobilenet_v2", "--train_crop_size=129,129"),
        *("--train_batch_size=4", f"--training_number_of_steps={STEPS}"),
        *("--save_interval_steps=4", "--log_steps=1", "--deterministic"),
        *("--fine_tune_batch_norm=false", f"--dataset_dir={voc_records}"),
        f"--tf_initial_checkpoint={voc_checkpoint}",
    )


@pytest.fixture(scope="module")
def expected(flags, tmp_path_factory):
    """The final weights, slots and counters of a training without input workers."""
    folder = tmp_path_factory.mktemp("local")
    processes = Processes(folder)
    try:
        finish(start_training(processes, flags, folder / "logs"))
    finally:
        processes.kill_all()
    return read_values(folder / "logs")


def start_training(processes, flags, logs, *others):
    program = (sys.executable, ROOT / "train.py", f"--train_logdir={logs}")
    return processes.start(*program, *flags, *others)


def finish(training):
    assert training.wait(300) == 0, training.log.read_text()


def has_step(logs, step):
    return lambda: (pathlib.Path(logs) / f"model.ckpt-{step}.index").exists()


def read_values(logs):
    reader = tf.train.load_checkpoint(str(logs / f"model.ckpt-{STEPS}"))
    keys = [k for k in reader.get_variable_to_shape_map() if k.endswith("VALUE")]
    assert {k.split("/")[0] for k in keys} > {"model", "optimizer", "samples"}
    return {key: np.asarray(reader.get_tensor(key)).tobytes() for key in keys}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_weights_do_not_depend_on_the_input_workers(
    count, processes, flags, expected, tmp_path
):
    service, logs = Service(processes, tmp_path, count), tmp_path / "logs"
    finish(start_training(processes, flags, logs, service.flag))
    assert read_values(logs) == expected


@pytest.mark.slow
def test_weights_survive_kills_of_every_process(processes, flags, expected, tmp_path):
    service, logs = Service(processes, tmp_path, 2), tmp_path / "logs"
    training = start_training(processes, flags, logs, service.flag)
    wait_for(has_step(logs, 4), training)
    service.workers[0].send_signal(signal.SIGKILL)
    wait_for(has_step(logs, 8), training)
    service.start_worker()
    wait_for(has_step(logs, 12), training)
    service.dispatcher.send_signal(signal.SIGKILL)
    service.dispatcher.wait()
    service.start_dispatcher()
    wait_for(has_step(logs, 16), training)
    training.send_signal(signal.SIGKILL)
    training.wait()
    finish(start_training(processes, flags, logs, service.flag))
    assert read_values(logs) == expected


@pytest.mark.slow
def test_lost_service_ends_the_training_within_a_minute(processes, flags, tmp_path):
    service, logs = Service(processes, tmp_path, 1), tmp_path / "logs"
    endless = "--training_number_of_steps=100000"
    training = start_training(processes, flags, logs, service.flag, endless)
    wait_for(has_step(logs, 4), training)
    for process in (service.dispatcher, *service.workers):
        process.send_signal(signal.SIGKILL)
    # Batches that have arrived are still used.
    assert training.wait(90) == 1
    last = training.log.read_text().splitlines()[-1]
    assert f"train.py: {service.flag} " in last, last
