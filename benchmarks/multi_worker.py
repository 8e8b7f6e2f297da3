"""Measures training with several processes on this machine, and predicts clusters.

    python -m benchmarks.multi_worker

A model with four measured constants predicts a step: seconds per step and per image of
one process, seconds per message, and bytes per second that a core adds and sends.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import flags as absl_flags

from benchmarks import measuring
from benchmarks.contenders import make_model
from benchmarks.measuring import Contender, Process
from benchmarks.scaling import make_worker_processes
from deeplab_tf.programs import run_program

_STEPS = 3
_COUNTS = (1, 2, 4)
_CLUSTERS = (8, 16, 32, 64, 128, 256, 512)


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=5,
        model_variant=("mobilenet_v2", "Backbone."),
        train_crop_size=(321, "Crop side in pixels."),
        train_batch_size=(8, "Images per step of all processes.", 8),
        images_per_second=(400, "Assumed speed of one accelerator.", 1),
        images_per_accelerator=(8, "Images per step and accelerator.", 1),
        gbit_per_second=(25, "Assumed network speed of one accelerator.", 1),
        microseconds=(30, "Assumed time of a network message."),
        kib_per_image=(110, "Bytes read per image.", 1),
        decoded_per_second=(560, "Images that one core prepares per second.", 1),
    )


@dataclasses.dataclass(frozen=True)
class Constants:
    """Constants of a step: seconds, and bytes per second of one worker."""

    per_step: float
    per_image: float
    per_message: float
    bytes_per_second: float
    gradient_bytes: int

    def all_reduce(self, workers: int, cores: int) -> float:
        """Returns the seconds of a ring all-reduce.

        In 2 (n - 1) messages, each worker sends 2 (n - 1) / n of the gradients.
        """
        messages = 2 * (workers - 1)
        sent = messages * self.gradient_bytes / min(workers, cores)
        return messages * self.per_message + sent / self.bytes_per_second

    def step(self, workers: int, batch: int, cores: int) -> float:
        """Returns the seconds of a step of workers that share some cores."""
        turns = max(1.0, workers / cores)
        own = self.per_step + self.per_image * batch / workers
        return turns * own + self.all_reduce(workers, cores)


def fit_constants(
    steps: Mapping[int, float], all_reduces: Mapping[int, float], cores: int
) -> Constants:
    """Fits the constants.

    Args:
        steps: Seconds per step of one process by its number of images, two of them.
        all_reduces: Seconds per all-reduce of two processes by bytes, two of them.
        cores: Cores of the two processes, 1 or 2.
    """
    (few, some), (many, most) = sorted(steps.items())
    per_image = (most - some) / (many - few)
    (tiny, short), (size, long) = sorted(all_reduces.items())
    # Two messages; each of two workers sends all bytes once.
    rate = 2 / min(2, cores) * (size - tiny) / (long - short)
    constant = short - 2 / min(2, cores) * tiny / rate
    return Constants(some - per_image * few, per_image, constant / 2, rate, size)


def all_reduce(sizes: Sequence[int], times: int) -> Callable:
    """Returns a function that sums vectors over all workers `times` times."""
    import tensorflow as tf

    from deeplab_tf.training import distribution

    strategy = distribution.make_strategy("multi_worker_mirrored")
    vectors = [tf.ones([size]) for size in sizes]

    def sum_up() -> list:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(
            tf.distribute.ReduceOp.SUM, [tf.identity(x) for x in vectors]
        )

    run = tf.function(lambda: strategy.run(sum_up))
    return lambda: [run() for _ in range(times)]


def _measure(count: int, cores, turns: int, factory: str, **arguments) -> float:
    """Returns the median seconds per step of some processes."""
    own = tuple(cores[i % len(cores)] for i in range(count))
    processes = make_worker_processes(own) if count > 1 else (Process(cores=own),)
    contender = Contender("workers", factory, arguments | {"times": _STEPS}, processes)
    # Alone, because four processes and others would need too much memory.
    series = measuring.measure([contender], turns)
    return float(np.median(series["workers"][:, 0])) / _STEPS


def _measure_steps(values, model: dict, cores) -> dict[tuple[int, int], float]:
    """Returns seconds per step by number of processes and images."""
    batch, side = values.train_batch_size, values.train_crop_size
    pairs = {(n, batch) for n in _COUNTS} | {(n, batch // 4 * n) for n in _COUNTS}
    measure = functools.partial(_measure, cores=cores, turns=values.turns)
    return {
        (count, images): measure(
            count,
            factory="training_step",
            model=model,
            batch=images,
            size=[side, side],
            strategy="multi_worker_mirrored" if count > 1 else "one_device",
        )
        for count, images in sorted(pairs)
    }


def compare(values: absl_flags.FlagValues, cores: Sequence[int]) -> tuple[dict, str]:
    """Measures and predicts steps of one, two and four processes."""
    model = {"model_variant": values.model_variant, "output_stride": 16}
    steps = _measure_steps(values, model, cores)
    sizes = [int(np.prod(v.shape)) for v in make_model(model).trainable_variables]
    reduce = functools.partial(
        _measure, 2, cores, values.turns, "benchmarks.multi_worker:all_reduce"
    )
    reduces = {4 * sum(s): reduce(sizes=s) for s in ([1] * len(sizes), sizes)}
    single = {images: time for (count, images), time in steps.items() if count == 1}
    constants = fit_constants(single, reduces, len(cores))
    rows = [
        {
            "processes": count,
            "images": images,
            "milliseconds": 1e3 * measured,
            "predicted": 1e3 * constants.step(count, images, len(cores)),
            "images_per_second": images / measured,
        }
        for (count, images), measured in steps.items()
    ]
    cells = [[f"{value:.4g}" for value in row.values()] for row in rows]
    names = ["processes", "images", "ms", "ms, predicted", "images/s"]
    text = measuring.markdown_table(names, cells)
    text += "\n\nConstants: " + ", ".join(
        f"{name} {value:.4g}" for name, value in dataclasses.asdict(constants).items()
    )
    result = {"rows": rows, "constants": dataclasses.asdict(constants)}
    return result | {"cores": len(cores)}, text


def predict_clusters(values: absl_flags.FlagValues, size: int) -> tuple[list, str]:
    """Predicts clusters of accelerators that each have a network connection."""
    rate, images = 1e9 / 8 * values.gbit_per_second, values.images_per_accelerator
    per_image = 1 / values.images_per_second
    constants = Constants(0, per_image, 1e-6 * values.microseconds, rate, size)
    rows = []
    for count in _CLUSTERS:
        # As if no part of the all-reduce overlapped with the backward pass.
        seconds = constants.step(count, count * images, count)
        speed = images * count / seconds
        numbers = (
            *(count, 1e3 * constants.all_reduce(count, count), 1e3 * seconds, speed),
            *(images * per_image / seconds, speed * values.kib_per_image / 2**20),
            speed / values.decoded_per_second,
        )
        rows.append([f"{number:.3g}" for number in numbers])
    names = ["accelerators", "all-reduce, ms", "step, ms", "images/s", "efficiency"]
    names += ["GiB/s read", "cores for input"]
    return rows, measuring.markdown_table(names, rows)


def main(values: absl_flags.FlagValues) -> None:
    """Runs the benchmark."""
    cores = sorted(os.sched_getaffinity(0))
    result, text = compare(values, cores)
    size = result["constants"]["gradient_bytes"]
    result["clusters"], clusters = predict_clusters(values, size)
    text += f"\n\n{size / 1e6:.1f} MB of gradients per step\n\n{clusters}"
    measuring.report(values, f"Workers of {values.model_variant}", result, text)


if __name__ == "__main__":
    run_program(__name__)
