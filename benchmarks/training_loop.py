"""Measures the overhead of `Trainer.train` over a bare compiled step.

    python -m benchmarks.training_loop --train_crop_size=129,129 --train_batch_size=4

The bare step is forward, loss with L2, gradients, multipliers and the optimiser, called
from a plain `for`; "bare step again" shows the noise. `Trainer.train` also checks for
non-finite numbers, counts classes, writes summaries and shows progress. Both train one
model on one batch in memory. Time before the first and after the last step of a turn,
such as for the final checkpoint, is not counted.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from benchmarks.contenders import noise, noise_labels
from deeplab_tf.config import ModelConfig, TrainConfig
from deeplab_tf.flags import read_size
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables
from deeplab_tf.programs import run_program
from deeplab_tf.training import losses, optimizer
from deeplab_tf.training.trainer import Trainer


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=15,
        model_variant=("mobilenet_v2", "Backbone."),
        train_crop_size=((129, 129), "Crop size."),
        train_batch_size=(4, "Images per batch.", 1),
        steps_per_call=(["1", "10"], "Steps per call of the host."),
        steps=(20, "Steps per turn.", 1),
    )


class ClockedBatches:
    """A repeated batch that records wall-clock and CPU times of each request."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.times = []
        dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
        self.dataset = dataset.map(self._record)

    def _record(self, images, labels):
        def append() -> None:
            self.times.append((time.perf_counter(), time.process_time()))

        with tf.control_dependencies([tf.numpy_function(append, [], [])]):
            return tf.identity(images), tf.identity(labels)


def make_bare_loop(model: keras.Model, config: TrainConfig, jit: bool) -> Callable:
    """Returns a function that runs bare steps on a dataset."""
    trained = {n: v for n, v in official_variables(model).items() if v.trainable}
    variables = [v.value for v in trained.values()]
    factors = [optimizer.gradient_multiplier(name, config) for name in trained]
    momentum = optimizer.make_optimizer(config)
    optimizer.build(momentum, trained)

    @tf.function(jit_compile=jit)
    def step(images, labels):
        with tf.GradientTape() as tape:
            loss = losses.segmentation_loss(labels, model(images, training=True))
            loss += losses.regularization_loss(trained, config.weight_decay)
        gradients = tape.gradient(loss, variables)
        gradients = [f * g for f, g in zip(factors, gradients, strict=True)]
        momentum.apply(gradients, list(trained.values()))
        return loss

    def loop(dataset: tf.data.Dataset, steps: int) -> None:
        for images, labels in dataset.take(steps):
            step(images, labels)

    return loop


def train_more(trainer: Trainer, dataset: tf.data.Dataset, steps: int) -> None:
    """Trains for `steps` more steps."""
    trainer.config = dataclasses.replace(
        trainer.config, training_number_of_steps=trainer.step + steps
    )
    trainer.train(dataset)


def seconds_per_step(loop: Callable, batch: ClockedBatches, steps: int) -> np.ndarray:
    """Returns wall-clock and CPU seconds per step."""
    batch.times.clear()
    loop(batch.dataset, steps + 2)
    # The first two batches are requested at once, because one is prefetched.
    times = batch.times[1:]
    return np.subtract(times[-1], times[0]) / (len(times) - 1)


def make_loops(values: flags.FlagValues, folder: str) -> dict[str, Callable]:
    """Returns the loops to compare, by name."""
    model = build_model(ModelConfig(values.model_variant))
    loops = {}
    for count in map(int, values.steps_per_call):
        config = TrainConfig(train_logdir=f"{folder}/{count}", steps_per_call=count)
        trainer = Trainer(model, config)
        loops[f"train, {count} per call"] = functools.partial(train_more, trainer)
    bare = make_bare_loop(model, trainer.config, trainer.compiles)
    return {"bare step": bare, "bare step again": bare, **loops}


def main(values: flags.FlagValues) -> None:
    """Runs the benchmark."""
    keras.utils.set_random_seed(0)
    task = values.train_batch_size, read_size(values, "train_crop_size")
    batch = ClockedBatches(
        noise(*task).astype(np.float32), noise_labels(*task)[..., None]
    )
    with tempfile.TemporaryDirectory() as folder:
        workloads = {
            name: functools.partial(seconds_per_step, loop, batch, values.steps)
            for name, loop in make_loops(values, folder).items()
        }
        series = measuring.measure_in_process(workloads, values.turns)
    rows = measuring.summarize(series)
    text = measuring.table(rows, "step")
    measuring.report(values, "The training loop", {"rows": rows}, text)


if __name__ == "__main__":
    run_program(__name__)
