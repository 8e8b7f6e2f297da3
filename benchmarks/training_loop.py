"""What the training loop costs: `Trainer.train` beside a bare compiled step.

    python -m benchmarks.training_loop --train_crop_size=129,129 --train_batch_size=4

The bare step is forward, loss with L2, gradients, multipliers and the optimiser, called
from a plain `for`. `Trainer.train` does the same and more: it looks for numbers that
are not finite, counts classes, reports, writes summaries and shows progress. Both train
one model on one batch that lies in memory. They are measured in turns, and so is the
bare step once more: how far it is from itself is the noise. What a turn needs before
its first step and behind its last, such as the checkpoint at the end, is left out.
Printed are the time of a step and that of all processors together, which other programs
on the machine disturb less.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable

import benchmarks.quiet_tensorflow  # noqa: F401

# isort: split
import keras
import numpy as np
import tensorflow as tf
from absl import flags

from deeplab_tf.config import ModelConfig, TrainConfig
from deeplab_tf.flags import size_value
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables
from deeplab_tf.programs import run_program
from deeplab_tf.training import losses, optimizer
from deeplab_tf.training.trainer import Trainer


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "model_variant", "mobilenet_v2", "Backbone.", flag_values=values
    )
    flags.DEFINE_multi_string("train_crop_size", "129,129", "Crop.", flag_values=values)
    flags.DEFINE_integer("train_batch_size", 4, "Images per batch.", flag_values=values)
    flags.DEFINE_multi_integer(
        "steps_per_call", [1, 10], "Steps that the host starts.", flag_values=values
    )
    flags.DEFINE_integer("steps", 20, "Steps of a turn.", flag_values=values)
    flags.DEFINE_integer("turns", 15, "Turns of each.", flag_values=values)
    return values


class Clocked:
    """A dataset of one batch, over and over, that notes when it is asked for it.

    Attributes:
        dataset: Images and labels.
        times: When the batch was asked for: seconds by the clock and of all processors.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.times = []
        dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
        self.dataset = dataset.map(self._noted)

    def _noted(self, images, labels):
        with tf.control_dependencies([tf.numpy_function(self._note, [], [])]):
            return tf.identity(images), tf.identity(labels)

    def _note(self) -> None:
        self.times.append((time.perf_counter(), time.process_time()))


def random_batch(values: flags.FlagValues) -> Clocked:
    """Returns a batch of noise."""
    random = np.random.default_rng(0)
    shape = (values.train_batch_size, *size_value(values, "train_crop_size"))
    images = random.uniform(0, 255, (*shape, 3)).astype(np.float32)
    return Clocked(images, random.integers(0, 21, (*shape, 1), np.uint8))


def bare_loop(model: keras.Model, config: TrainConfig, jit: bool) -> Callable:
    """Returns a function that does a number of bare steps on a dataset."""
    trained = {n: v for n, v in official_variables(model).items() if v.trainable}
    variables = [v.value for v in trained.values()]
    factors = [optimizer.gradient_multiplier(name, config) for name in trained]
    moved_by = optimizer.make_optimizer(config)
    optimizer.build(moved_by, trained)

    @tf.function(jit_compile=jit)
    def step(images, labels):
        with tf.GradientTape() as tape:
            loss = losses.segmentation_loss(labels, model(images, training=True))
            loss += losses.regularization_loss(trained, config.weight_decay)
        gradients = tape.gradient(loss, variables)
        gradients = [f * g for f, g in zip(factors, gradients, strict=True)]
        moved_by.apply(gradients, list(trained.values()))
        return loss

    def loop(dataset: tf.data.Dataset, steps: int) -> None:
        for images, labels in dataset.take(steps):
            step(images, labels)

    return loop


def trainer_loop(trainer: Trainer) -> Callable:
    """Returns a function that trains for some steps more on a dataset."""

    def loop(dataset: tf.data.Dataset, steps: int) -> None:
        steps += trainer.step
        trainer.config = dataclasses.replace(
            trainer.config, training_number_of_steps=steps
        )
        trainer.train(dataset)

    return loop


def measured(loop: Callable, batch: Clocked, steps: int) -> np.ndarray:
    """Returns the seconds of a step, by the clock and of all processors."""
    batch.times.clear()
    loop(batch.dataset, steps + 2)
    # The first two batches are asked for at once, for one is always ready.
    times = batch.times[1:]
    return np.subtract(times[-1], times[0]) / (len(times) - 1)


def loops(values: flags.FlagValues, folder: str) -> dict[str, Callable]:
    """Returns what is measured, by name."""
    model = build_model(ModelConfig(values.model_variant))
    trainers = {}
    for count in values.steps_per_call:
        config = TrainConfig(train_logdir=f"{folder}/{count}", steps_per_call=count)
        trainers[f"train, {count} per call"] = Trainer(model, config)
    trainer = next(iter(trainers.values()))
    bare = bare_loop(model, trainer.config, trainer.compiles)
    trained = {name: trainer_loop(t) for name, t in trainers.items()}
    return {"bare step": bare, "bare step again": bare, **trained}


def compare(values: flags.FlagValues) -> None:
    """Prints the medians beside each other."""
    batch = random_batch(values)
    with tempfile.TemporaryDirectory() as folder:
        several = loops(values, folder)
        for loop in several.values():
            measured(loop, batch, values.steps)  # compiles, and warms up
        seconds = {name: [] for name in several}
        for turn in range(values.turns):
            # Forwards and backwards, so that none is always the first.
            for name in list(several)[:: -1 if turn % 2 else 1]:
                seconds[name].append(measured(several[name], batch, values.steps))
    print("a step, and how many times the bare one of its turn: median and quartiles")
    bare = np.array(seconds["bare step"])
    for name, series in seconds.items():
        times = 1000 * np.median(series, 0)
        ratios = np.quantile(series / bare, (0.5, 0.25, 0.75), 0).T
        print(f"{name:18s}", *map(_described, times, ratios, ("", " of processors")))


def _described(milliseconds: float, ratios: np.ndarray, of: str) -> str:
    median, low, high = ratios
    return f"{milliseconds:7.1f} ms{of}, {median:.3f} ({low:.3f}..{high:.3f})"


def main(values: flags.FlagValues) -> None:
    """Measures and prints."""
    keras.utils.set_random_seed(0)
    compare(values)


if __name__ == "__main__":
    run_program(__name__)
