"""Load-tests MLServer with exports: latency, memory, errors and restarts.

    python -m benchmarks.serving_load --export_paths=served/deeplab/1,model.xml \
      --requests=3000 --clients=8 --restarts=5

Starts the server of `examples/serving` with each export and, if it is installed, nginx
in front of it. Clients send images of mixed sizes over HTTP and gRPC, alone and
several in one request, encoded and as pixels; every twelfth request is invalid. The
images are noise, which is the slowest to decode.

Valid requests must be answered with the labels of the export in this process, and
invalid ones must be refused. The memory is that of the server in the first and in the
last quarter of the requests, after a warm-up. With `--restarts`, the requests are then
sent once more, and meanwhile the server is killed and started again; clients repeat
requests without an answer.

Needs `pip install mlserver "tritonclient[grpc]"` in the environment.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import concurrent.futures
import functools
import importlib.util
import io
import itertools
import json
import os
import pathlib
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

from benchmarks import measuring
from benchmarks.kserve import (
    RETRY_INTERVAL,
    TIMEOUT,
    Client,
    NoResponseError,
    RefusedError,
    Server,
    make_request,
)
from deeplab_tf.errors import UserError
from deeplab_tf.programs import run_program
from deeplab_tf.serving.formats import load_artefact

_DIFFERENT_IMAGES = 48
# Encoded images in one request; nginx accepts bodies of 16 MB, with base64.
_MAX_BYTES = 11 << 20
_QUANTILES = {"median ms": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        export_paths=(["served/deeplab/1"], "SavedModels or files to serve."),
        warmup=(3000, "Requests before those that are measured."),
        requests=(3000, "Requests that are measured.", 4),
        clients=(8, "Concurrent requests.", 1),
        restarts=(0, "Times to kill the server and to start it again."),
        smallest=(65, "Shortest side of an image.", 1),
        largest=(513, "Longest side of an image.", 1),
        threads=(2, "Option of the server: batches processed in parallel.", 1),
        max_batch_size=(1, "Option of the server: images in a batch.", 1),
        json=(None, "Also write the results to this JSON file."),
    )


class Sample(NamedTuple):
    """An image as JPEG and pixels, and the labels that the export gives."""

    jpeg: bytes
    pixels: np.ndarray
    labels: np.ndarray


def make_samples(path: str, smallest: int, largest: int, count: int) -> list[Sample]:
    """Returns JPEGs of noise with sides of `smallest` to `largest` pixels."""
    artefact, draw = load_artefact(path), np.random.RandomState(0)
    samples = []
    for size in draw.randint(smallest, largest + 1, (count, 2)):
        noise = draw.randint(0, 256, (*size, 3)).astype(np.uint8)
        jpeg = tf.io.encode_jpeg(noise).numpy()
        pixels = tf.io.decode_jpeg(jpeg).numpy()
        samples.append(Sample(jpeg, pixels, artefact.labels(pixels[None])[0]))
    return samples


def _check(sample: Sample, labels: np.ndarray) -> bool:
    return np.array_equal(sample.labels, labels)


def _decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


# Each sends a request, and returns whether the answer is right.
def _send_files(client: Client, samples: Sequence[Sample]) -> bool:
    found = client.label_over_http([one.jpeg for one in samples])
    pairs = zip(samples, found, strict=True)
    return all(not e and _check(one, _decode(png)) for one, (png, e) in pairs)


def _send_file_over_grpc(client: Client, samples: Sequence[Sample]) -> bool:
    values = np.array([samples[0].jpeg], object)
    [png] = client.infer("image_bytes", "BYTES", values, "label_map_bytes")
    return _check(samples[0], _decode(png))


def _send_pixels(client: Client, samples: Sequence[Sample]) -> bool:
    pixels = samples[0].pixels[None]
    found = client.infer("ImageTensor", "UINT8", pixels, "SemanticPredictions")
    return _check(samples[0], found[0])


def _send_with_broken_file(client: Client, samples: Sequence[Sample]) -> bool:
    jpeg = samples[0].jpeg
    found = client.label_over_http([jpeg[: len(jpeg) // 2], jpeg, b"GIF89a"])
    (_, first), (png, second), (_, third) = found
    return bool(first and third and not second) and _check(samples[0], _decode(png))


def _send_half(client: Client, samples: Sequence[Sample]) -> bool:
    client.abort_request(samples[0].jpeg)
    return True


def _is_refused(send: Callable, *arguments: Any) -> bool:
    try:
        send(*arguments)
    except RefusedError:
        return True
    return False


def _refuse_body(body: bytes, client: Client, _: Sequence[Sample]) -> bool:
    return _is_refused(client.post, body)


def _refuse_wrong_type(client: Client, _: Sequence[Sample]) -> bool:
    floats = np.zeros([1, 9, 9, 3], np.float32)
    return _is_refused(client.infer, "ImageTensor", "FP32", floats, "")


_VALID = (_send_files, _send_files, _send_file_over_grpc, _send_pixels)
_INVALID = (
    _send_with_broken_file,
    _refuse_wrong_type,
    _send_half,
    *(
        functools.partial(_refuse_body, json.dumps(one).encode())
        for one in (
            {},
            make_request(["aGk="], shape=[2]),
            make_request(["no base64!"]),
            make_request([1] * 12, name="ImageTensor", datatype="UINT8"),
            make_request([1] * 12, name="ImageTensor", datatype="UINT8", shape=[-1]),
        )
    ),
    functools.partial(_refuse_body, b"[" * 100_000),
)
# Larger than nginx accepts.
_HUGE = functools.partial(_refuse_body, bytes(20 << 20))


class Result(NamedTuple):
    """The outcome of a request.

    Attributes:
        kind: "valid" or "invalid".
        is_right: Whether a valid request got the right answer, and an invalid one was
            refused.
        seconds: Time of the last try.
        tries: Number of tries.
        resident: Memory of the server afterwards, in bytes.
        reason: Why the server refused a valid request.
    """

    kind: str
    is_right: bool
    seconds: float
    tries: int
    resident: int
    reason: str


def plan_requests(
    count: int, samples: Sequence[Sample], has_proxy: bool
) -> list[tuple]:
    """Returns kind, function and samples of each request."""
    draw, largest = random.Random(1), max(len(one.jpeg) for one in samples)
    invalid = itertools.cycle(_INVALID + (_HUGE,) * has_proxy)
    plan: list[tuple] = []
    for index in range(count):
        count_in_one = min(draw.choice((1, 1, 1, 2, 3)), max(1, _MAX_BYTES // largest))
        chosen = draw.choices(samples, k=count_in_one)
        if index % 12 == 7:
            plan.append(("invalid", next(invalid), chosen))
        else:
            plan.append(("valid", draw.choice(_VALID), chosen))
    return plan


def send(server: Server, clients: threading.local, request: tuple) -> Result:
    """Sends a request until it is answered.

    Raises:
        UserError: if there is no answer in time.
    """
    kind, function, samples = request
    if not hasattr(clients, "client"):
        clients.client = Client(server)
    deadline = time.monotonic() + TIMEOUT
    for tries in itertools.count(1):
        start, reason = time.monotonic(), ""
        try:
            is_right = function(clients.client, samples)
        except NoResponseError as error:
            if time.monotonic() > deadline:
                raise UserError(f"no answer in {TIMEOUT} s: {error}") from error
            time.sleep(RETRY_INTERVAL)
            continue
        except RefusedError as error:
            is_right, reason = False, str(error)
        seconds = time.monotonic() - start
        return Result(kind, is_right, seconds, tries, server.resident(), reason)
    raise AssertionError("unreachable")


def measure_load(
    server: Server, requests: Sequence[tuple], clients: int, restarts: int
) -> list[Result]:
    """Sends requests from several threads; restarts the server in between."""
    local = threading.local()
    results: list[Result] = []

    def send_and_keep(request: tuple) -> None:
        results.append(send(server, local, request))

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        try:
            futures = [pool.submit(send_and_keep, request) for request in requests]
            for part in range(1, restarts + 2):
                while len(results) < len(requests) * part // (restarts + 1):
                    first = concurrent.futures.FIRST_EXCEPTION
                    done, _ = concurrent.futures.wait(futures, RETRY_INTERVAL, first)
                    for one in done:
                        one.result()
                if part <= restarts:
                    server.kill()
                    server.start()
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def check_answers(results: Sequence[Result]) -> None:
    """Raises UserError if an answer was wrong or an invalid request was accepted."""
    wrong = [one for one in results if not one.is_right]
    if wrong:
        reason = wrong[0].reason or "wrong labels, or not refused"
        raise UserError(f"{len(wrong)} of {len(results)} requests failed: {reason}")


def summarize(results: Sequence[Result], seconds: float) -> dict[str, float]:
    """Returns requests per second, latencies in ms and memory in MiB."""
    latencies = [1000 * one.seconds for one in results if one.kind == "valid"]
    quarters = np.array_split([one.resident / (1 << 20) for one in results], 4)
    return {
        "requests/s": len(results) / seconds,
        **{
            name: float(np.quantile(latencies, share))
            for name, share in _QUANTILES.items()
        },
        "first quarter": float(np.median(quarters[0])),
        "last quarter": float(np.median(quarters[3])),
        "highest": max(one.resident for one in results) / (1 << 20),
    }


def measure_export(values: flags.FlagValues, path: str) -> dict[str, float]:
    """Runs both parts for an export and returns the figures."""
    sides = values.smallest, values.largest
    samples = make_samples(path, *sides, _DIFFERENT_IMAGES)
    options = {name: values[name].value for name in ("threads", "max_batch_size")}
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(pathlib.Path(folder), path, **options) as server,
    ):
        warmup, requests = (
            plan_requests(count, samples, server.has_proxy)
            for count in (values.warmup, values.requests)
        )
        check_answers(measure_load(server, warmup, values.clients, 0))
        start = time.perf_counter()
        results = measure_load(server, requests, values.clients, 0)
        found = summarize(results, time.perf_counter() - start)
        check_answers(results)
        if values.restarts:
            again = measure_load(server, requests, values.clients, values.restarts)
            check_answers(again)
            found["repeated"] = sum(one.tries - 1 for one in again)
            found["restart in s"] = max(server.starting_seconds[1:])
    return found


def main(values: flags.FlagValues) -> None:
    """Runs the benchmark."""
    if values.smallest > values.largest:
        raise UserError(
            f"--smallest={values.smallest} exceeds --largest={values.largest}"
        )
    for module in ("mlserver", "tritonclient"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f'{module} is missing; run pip install mlserver "tritonclient[grpc]"'
            )
    rows = {
        _name_export(path): measure_export(values, path) for path in values.export_paths
    }
    columns = ["export", *next(iter(rows.values()))]
    cells = [[name, *map(_format, row.values())] for name, row in rows.items()]
    text = measuring.markdown_table(columns, cells)
    title = f"{values.requests} requests, {values.clients} at a time"
    result = {"packages": ["mlserver", "openvino"], "rows": rows}
    measuring.report(values, title, result, text)


def _name_export(path: str) -> str:
    return "SavedModel" if os.path.isdir(path) else os.path.basename(path)


def _format(value: float) -> str:
    return f"{value:.1f}" if value < 100 and value % 1 else f"{value:.0f}"


if __name__ == "__main__":
    run_program(__name__)
