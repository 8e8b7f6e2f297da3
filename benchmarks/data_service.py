"""Measures the training input of a tf.data service with one and with two workers.

    python -m benchmarks.data_service --dataset_dir=tfrecord

Each worker has one core. This process, which puts the batches in order, may use all
cores: measure with records that take long to decode. Each turn uses a new iterator,
which first reads a third as many images, to drain the buffers of the workers.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from benchmarks import measuring
from benchmarks.input_pipeline import images_per_second
from deeplab_tf.config import DataConfig
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.data.service import start_dispatcher
from deeplab_tf.errors import UserError
from deeplab_tf.flags import read_size
from deeplab_tf.programs import run_program

_BUFFERED = 24  # batches of two workers


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=7,
        dataset_dir=(..., "Folder of the TFRecords."),
        train_split=("train", "Split to read."),
        train_crop_size=((513, 513), "Crop size."),
        train_batch_size=(2, "Images per batch.", 1),
        images=(150, "Images per turn.", 1),
        cores=([], "Cores of the two workers; default: the first two."),
    )


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _start_worker(dispatcher: str, core: int) -> subprocess.Popen:
    """Starts a worker on one core and waits until it serves."""
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "deeplab_tf.data.worker", "--host=localhost"),
            *(f"--dispatcher_address={dispatcher}", f"--port={_find_free_port()}"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    # Must precede imports that count cores.
    os.sched_setaffinity(worker.pid, [core])
    return worker


@contextlib.contextmanager
def run_service(cores: Sequence[int]) -> Iterator[str]:
    """Runs a dispatcher and a worker for each core; yields the address."""
    port = _find_free_port()
    address = f"grpc://localhost:{port}"
    dispatcher = start_dispatcher(port)
    workers = [_start_worker(address, core) for core in cores]
    try:
        for worker in workers:
            if not worker.stdout or not worker.stdout.readline():
                raise UserError(f"a worker of {address} did not start; see above")
        yield address
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
        del dispatcher


def measure(
    config: DataConfig, values: flags.FlagValues, cores: Sequence[int]
) -> float:
    """Returns the images per second of a service with a worker on each core."""
    with run_service(cores) as address:
        served = dataclasses.replace(config, data_service=address)
        dataset = load_dataset(served, values.train_split, training=True)
        return images_per_second(dataset, values.images, config.batch_size)


def main(values: flags.FlagValues) -> None:
    """Runs the benchmark."""
    cores = [int(core) for core in values.cores] or sorted(os.sched_getaffinity(0))[:2]
    if len(cores) != 2:
        raise UserError(f"two workers need two cores; received {cores}")
    config = DataConfig(
        values.dataset_dir,
        crop_size=read_size(values, "train_crop_size"),
        batch_size=values.train_batch_size,
    )
    least = 3 * _BUFFERED * config.batch_size
    if values.images < least:
        raise UserError(f"--images must be at least {least}, to drain the buffers")
    local, one, two = [], [], []
    for _ in range(values.turns):
        dataset = load_dataset(config, values.train_split, training=True)
        local.append(images_per_second(dataset, values.images, config.batch_size))
        one.append(measure(config, values, cores[:1]))
        two.append(measure(config, values, cores))
    result = {
        "local": float(np.median(local)),
        "one_worker": float(np.median(one)),
        "two_workers": float(np.median(two)),
        "ratio": measuring.quartiles(np.divide(two, one)),
    }
    ratio = "{median:.3f} ({low:.3f}..{high:.3f})".format(**result["ratio"])
    rows = [
        ["without service, all cores", f"{result['local']:.1f}", ""],
        ["one worker", f"{result['one_worker']:.1f}", "1"],
        ["two workers", f"{result['two_workers']:.1f}", ratio],
    ]
    names = ["", "images/s", "times one worker (quartiles)"]
    text = measuring.markdown_table(names, rows)
    measuring.report(values, "The input service", result, text)


if __name__ == "__main__":
    run_program(__name__)
