"""Load-tests an exported SavedModel: latency and memory growth over many requests.

    python -m benchmarks.serving_load --export_path=exported --requests=1000 --clients=4

Client threads send JPEGs, one per request, to the model's signature `encoded`,
which is loaded in this process. The images are noise of random sizes; noise is the
slowest to decode. The report shows latency quantiles and the memory of the process
after the warm-up (second quarter of the requests) and at the end (last quarter).
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
        requests=(1000, "Total requests; memory settles after a few hundred.", 4),
        clients=(4, "Concurrent requests.", 1),
        smallest=(65, "Shortest side of an image.", 1),
        largest=(513, "Longest side of an image.", 1),
    )


class Load(NamedTuple):
    """Latency, error (or `b""`) and resident bytes of each request."""

    seconds: np.ndarray
    errors: list[bytes]
    resident: np.ndarray

    @property
    def growth(self) -> tuple[float, float]:
        """Median resident bytes in the second and in the last quarter of requests."""
        quarters = np.array_split(self.resident, 4)
        return float(np.median(quarters[1])), float(np.median(quarters[3]))


def noise_jpegs(smallest: int, largest: int, count: int) -> list[bytes]:
    """Returns JPEGs of noise with sides of `smallest` to `largest` pixels."""
    random = np.random.RandomState(0)
    sizes = random.randint(smallest, largest + 1, (count, 2))
    pixels = (random.randint(0, 256, (*size, 3)).astype(np.uint8) for size in sizes)
    return [tf.io.encode_jpeg(one).numpy() for one in pixels]


def measure_load(encoded: Callable, images: Sequence[bytes], clients: int) -> Load:
    """Sends encoded images, one per request, to the signature `encoded`."""

    def request(image):
        start = time.perf_counter()
        answer = encoded(**{ENCODED_INPUT: tf.constant([image])})
        (error,), (label_map,) = answer[ERROR].numpy(), answer[ENCODED_OUTPUT].numpy()
        seconds = time.perf_counter() - start
        if bool(error) == bool(label_map):
            raise ValueError(f"{len(label_map)} bytes of labels with error {error!r}")
        return seconds, error, resident_bytes()

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        seconds, errors, resident = zip(*pool.map(request, images), strict=True)
    return Load(np.array(seconds), list(errors), np.array(resident))


def show(load: Load, clients: int, seconds: float) -> None:
    """Prints latency and memory."""
    quantiles = (0.5, 0.9, 0.99, 1.0)
    milliseconds = 1000 * np.quantile(load.seconds, quantiles)
    named = zip(("median", "90%", "99%", "longest"), milliseconds, strict=True)
    rate = len(load.seconds) / seconds
    print(
        f"{len(load.seconds)} requests, {clients} at a time: {rate:.1f} a second, "
        f"{sum(map(bool, load.errors))} errors"
    )
    print("latency in ms:", ", ".join(f"{name} {value:.0f}" for name, value in named))
    first, last = (size / (1 << 20) for size in load.growth)
    print(f"memory: {first:.0f} MiB at first, {last:.0f} MiB at last")


def main(values: flags.FlagValues) -> None:
    """Runs the benchmark."""
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
