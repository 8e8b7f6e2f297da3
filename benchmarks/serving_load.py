"""How an export bears many requests: latencies, and whether memory stays flat.

    python -m benchmarks.serving_load --export_path=exported --requests=1000 --clients=4

Threads act as clients: they ask the SavedModel, loaded in this process, for the label
maps of JPEGs through its signature `encoded`, one image at a time. The images are noise
of many sizes in random order; noise is the slowest to decode. Printed are the
latencies, which other programs on the machine disturb, and the memory of the process at
the beginning (after the first quarter of the requests, which set things up) and at the
end.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from deeplab_tf.errors import UserError
from deeplab_tf.memory import resident_bytes
from deeplab_tf.programs import run_program
from deeplab_tf.serving.signatures import ENCODED_INPUT, ENCODED_OUTPUT, ERROR

_DIFFERENT_IMAGES = 64


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        export_path=(..., "Folder of the SavedModel."),
        requests=(1000, "Requests in all; memory settles within some hundred.", 4),
        clients=(4, "Requests at once.", 1),
        smallest=(65, "Shortest side of an image.", 1),
        largest=(513, "Longest side of an image.", 1),
    )


class Load(NamedTuple):
    """What was measured.

    Attributes:
        seconds: Of each request.
        errors: Error of each request, empty where all was well.
        resident: Bytes of memory of the process, after each request.
    """

    seconds: np.ndarray
    errors: list[bytes]
    resident: np.ndarray

    @property
    def growth(self) -> tuple[float, float]:
        """Median bytes of the second and of the last quarter of the requests."""
        quarters = np.array_split(self.resident, 4)
        return float(np.median(quarters[1])), float(np.median(quarters[3]))


def noise_jpegs(smallest: int, largest: int, count: int) -> list[bytes]:
    """Returns JPEGs of noise of different sizes.

    Args:
        smallest: Shortest side, in pixels.
        largest: Longest side, in pixels.
        count: How many.
    """
    random = np.random.RandomState(0)
    sizes = random.randint(smallest, largest + 1, (count, 2))
    pixels = (random.randint(0, 256, (*size, 3)).astype(np.uint8) for size in sizes)
    return [tf.io.encode_jpeg(one).numpy() for one in pixels]


def measure_load(encoded: Callable, images: Sequence[bytes], clients: int) -> Load:
    """Measures how a signature answers requests of an image each.

    Args:
        encoded: The signature.
        images: Encoded, one for each request.
        clients: Requests at once.
    """

    def ask(image):
        start = time.perf_counter()
        answer = encoded(**{ENCODED_INPUT: tf.constant([image])})
        (error,), (label_map,) = answer[ERROR].numpy(), answer[ENCODED_OUTPUT].numpy()
        seconds = time.perf_counter() - start
        if bool(error) == bool(label_map):
            raise ValueError(f"{len(label_map)} bytes of labels with error {error!r}")
        return seconds, error, resident_bytes()

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        seconds, errors, resident = zip(*pool.map(ask, images), strict=True)
    return Load(np.array(seconds), list(errors), np.array(resident))


def show(load: Load, clients: int, seconds: float) -> None:
    """Prints latencies and memory."""
    quantiles = (0.5, 0.9, 0.99, 1.0)
    milliseconds = 1000 * np.quantile(load.seconds, quantiles)
    named = zip(("median", "90 %", "99 %", "longest"), milliseconds, strict=True)
    rate = len(load.seconds) / seconds
    print(
        f"{len(load.seconds)} requests, {clients} at a time: {rate:.1f} a second, "
        f"{sum(map(bool, load.errors))} errors"
    )
    print("latency in ms:", ", ".join(f"{name} {value:.0f}" for name, value in named))
    first, last = (size / (1 << 20) for size in load.growth)
    print(f"memory: {first:.0f} MiB at first, {last:.0f} MiB at last")


def main(values: flags.FlagValues) -> None:
    """Asks, and prints."""
    if values.smallest > values.largest:
        raise UserError(
            f"--smallest={values.smallest} exceeds --largest={values.largest}"
        )
    loaded = tf.saved_model.load(values.export_path)
    encoded = loaded.signatures.get("encoded")
    if encoded is None:
        raise UserError(f"{values.export_path} has no signature encoded")
    different = noise_jpegs(values.smallest, values.largest, _DIFFERENT_IMAGES)
    order = np.random.RandomState(1).randint(0, len(different), values.requests)
    start = time.perf_counter()
    load = measure_load(encoded, [different[i] for i in order], values.clients)
    show(load, values.clients, time.perf_counter() - start)


if __name__ == "__main__":
    run_program(__name__)
