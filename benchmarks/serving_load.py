"""How an export bears many requests: latencies, and whether memory stays flat.

    python -m benchmarks.serving_load --export_path=exported --requests=1000 --clients=4

Threads in the place of clients ask the SavedModel, loaded in this process, for the
label maps of JPEGs through its signature `encoded`, each for one picture at a time. The
pictures are noise of many sizes in random order; noise is the slowest to decode.
Printed are the latencies, which other programs on the machine disturb, and the memory
of the process at the beginning (behind the first quarter of the requests, which set
things up) and at the end.
"""

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import benchmarks.quiet_tensorflow  # noqa: F401

# isort: split
import numpy as np
import tensorflow as tf
from absl import flags

from deeplab_tf.errors import UserError
from deeplab_tf.memory import resident_bytes
from deeplab_tf.programs import run_program
from deeplab_tf.serving.signatures import ENCODED_INPUT, ENCODED_OUTPUT, ERROR

_DIFFERENT_PICTURES = 64


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "export_path",
        None,
        "Folder of the SavedModel.",
        required=True,
        flag_values=values,
    )
    for name, default, least, text in (
        ("requests", 1000, 4, "Requests in all; memory settles within some hundred."),
        ("clients", 4, 1, "Requests at once."),
        ("smallest", 65, 1, "Shortest side of a picture."),
        ("largest", 513, 1, "Longest side of a picture."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)
    return values


class Load(NamedTuple):
    """What was measured.

    Attributes:
        seconds: Of each request.
        errors: Told of each request, empty where all was well.
        resident: Bytes of memory of the process, behind each request.
    """

    seconds: np.ndarray
    errors: list[bytes]
    resident: np.ndarray

    @property
    def growth(self) -> tuple[float, float]:
        """Median bytes of the second and of the last quarter of the requests."""
        quarters = np.array_split(self.resident, 4)
        return float(np.median(quarters[1])), float(np.median(quarters[3]))


def noise_pictures(smallest: int, largest: int, count: int) -> list[bytes]:
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


def measured(encoded: Callable, pictures: Sequence[bytes], clients: int) -> Load:
    """Returns how a signature answers requests of a picture each.

    Args:
        encoded: The signature.
        pictures: Encoded, one for each request.
        clients: Requests at once.
    """

    def ask(picture):
        start = time.perf_counter()
        answer = encoded(**{ENCODED_INPUT: tf.constant([picture])})
        (error,), (label_map,) = answer[ERROR].numpy(), answer[ENCODED_OUTPUT].numpy()
        seconds = time.perf_counter() - start
        if bool(error) == bool(label_map):
            raise ValueError(f"{len(label_map)} bytes of labels with error {error!r}")
        return seconds, error, resident_bytes()

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        seconds, errors, resident = zip(*pool.map(ask, pictures), strict=True)
    return Load(np.array(seconds), list(errors), np.array(resident))


def show(load: Load, clients: int, seconds: float) -> None:
    """Prints latencies and memory."""
    quantiles = (0.5, 0.9, 0.99, 1.0)
    milliseconds = 1000 * np.quantile(load.seconds, quantiles)
    told = zip(("median", "90 %", "99 %", "longest"), milliseconds, strict=True)
    rate = len(load.seconds) / seconds
    print(
        f"{len(load.seconds)} requests, {clients} at a time: {rate:.1f} a second, "
        f"{sum(map(bool, load.errors))} errors"
    )
    print("latency in ms:", ", ".join(f"{name} {value:.0f}" for name, value in told))
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
    different = noise_pictures(values.smallest, values.largest, _DIFFERENT_PICTURES)
    order = np.random.RandomState(1).randint(0, len(different), values.requests)
    start = time.perf_counter()
    load = measured(encoded, [different[i] for i in order], values.clients)
    show(load, values.clients, time.perf_counter() - start)


if __name__ == "__main__":
    run_program(__name__)
