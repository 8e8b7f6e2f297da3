"""Measures memory and time of training steps."""

import concurrent.futures
import dataclasses
import multiprocessing
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf import memory
from deeplab_tf.config import ModelConfig, TrainConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.precision import use_precision
from deeplab_tf.training import distribution
from deeplab_tf.training.trainer import Trainer

# Leaves room for variation between steps and for evaluations.
_USABLE = 0.9
_MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Cell:
    """A configuration of a training step.

    Attributes:
        crop_size: Height and width, in pixels.
        output_stride: Output stride during training.
        images: Images per forward pass: batch size / `--accumulate_steps`.
        precision: "float32", "bfloat16" or "float16".
        jit: "auto", "on" or "off", as in `TrainConfig`.
        recompute: Whether the backward pass recomputes activations.
    """

    crop_size: tuple[int, int]
    output_stride: int
    images: int
    precision: str = "float32"
    jit: str = "auto"
    recompute: bool = False


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Memory and time of a training step.

    Attributes:
        cell: The configuration measured.
        mebibytes: Peak memory of the GPU, or of the process on CPU.
        compile_seconds: Time of the first step, which includes compilation.
        step_seconds: Median time of the later steps.
    """

    cell: Cell
    mebibytes: float
    compile_seconds: float
    step_seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput, with or without accumulation."""
        return self.cell.images / self.step_seconds


def measure(
    cell: Cell, model: ModelConfig, train: TrainConfig, steps: int
) -> Measurement:
    """Measures a training step in this process, which should be a new one.

    The cell overrides the configs. `steps` are timed after the first.
    """
    use_precision(cell.precision)
    keras.utils.set_random_seed(0)
    config = dataclasses.replace(
        train,
        train_logdir=None,
        training_number_of_steps=steps + 1,
        accumulate_steps=1,
        jit=cell.jit,
        recompute=cell.recompute,
    )
    network = build_model(model.at_output_stride(cell.output_stride))
    trainer = Trainer(network, config)
    random = np.random.default_rng(0)
    shape = (cell.images, *cell.crop_size)
    images = random.uniform(0, 255, (*shape, model.channels)).astype(np.float32)
    labels = random.integers(0, model.num_classes, shape, np.uint8)
    data = trainer.iterate(tf.data.Dataset.from_tensors((images, labels)).repeat())
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        trainer.train_steps(data, 1)
        seconds.append(time.perf_counter() - start)
    first, *later = seconds
    return Measurement(
        cell, _read_peak_bytes() / _MEBIBYTE, first, statistics.median(later)
    )


def _read_peak_bytes() -> int:
    """Returns the peak memory of the GPU or, without one, of this process."""
    if distribution.has_gpu():
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return memory.peak_bytes()


def measure_in_new_process(
    cell: Cell, model: ModelConfig, train: TrainConfig, steps: int
) -> Measurement | None:
    """Runs `measure` in a new process; returns None if it ran out of memory."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        try:
            return pool.submit(measure, cell, model, train, steps).result()
        except (
            concurrent.futures.process.BrokenProcessPool,  # killed by the system
            tf.errors.ResourceExhaustedError,
            MemoryError,
        ):
            return None


def device_mebibytes() -> float:
    """Returns the memory of the first GPU, or of the machine if there is none.

    Raises:
        UserError: if the memory of the GPU is unknown.
    """
    if not distribution.has_gpu():
        return memory.machine_bytes() / _MEBIBYTE
    program = shutil.which("nvidia-smi")
    if program is None:
        raise UserError(
            "the memory of the GPU is unknown because there is no nvidia-smi; give "
            "--memory_gib"
        )
    query = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    listed = subprocess.run(
        [program, *query], capture_output=True, text=True, check=True
    )
    return float(listed.stdout.split()[0])


def usable_mebibytes(mebibytes: float) -> float:
    """Returns the part of a device's memory that a step may use."""
    return _USABLE * mebibytes


def predict_mebibytes(measured: Sequence[Measurement], images: int) -> float | None:
    """Extrapolates memory to more images from the last two measurements, in mebibytes.

    The measurements, in ascending order, differ only in their number of images. Returns
    None if there are fewer than two.
    """
    if len(measured) < 2:
        return None
    first, last = measured[-2:]
    slope = (last.mebibytes - first.mebibytes) / (last.cell.images - first.cell.images)
    return last.mebibytes + slope * (images - last.cell.images)


def select_largest(
    measured: Sequence[Measurement], batch: int, mebibytes: float
) -> Measurement | None:
    """Returns the measurement with the most images that fit and divide the batch.

    More images improve batch normalisation (DeepLabv3, 1706.05587, Sec. 4.1) and are
    rarely slower per image. `batch` is the batch size of an optimiser step, `mebibytes`
    the memory of the device.
    """
    fitting = [
        one
        for one in measured
        if batch % one.cell.images == 0 and one.mebibytes <= usable_mebibytes(mebibytes)
    ]
    return max(fitting, key=lambda one: one.cell.images, default=None)


def training_flags(best: Measurement, batch: int) -> list[str]:
    """Returns the flags of train.py that reproduce a measured step."""
    cell = best.cell
    height, width = cell.crop_size
    flags = [
        f"--train_crop_size={height},{width}",
        f"--output_stride={cell.output_stride}",
        f"--train_batch_size={batch}",
    ]
    parts = batch // cell.images
    if parts > 1:
        flags.append(f"--accumulate_steps={parts}")
    if cell.precision != "float32":
        flags.append(f"--precision={cell.precision}")
    if cell.jit != "auto":
        flags.append(f"--jit={cell.jit}")
    if cell.recompute:
        flags.append("--recompute")
    return flags
