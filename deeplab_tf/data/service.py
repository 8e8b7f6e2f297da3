"""Training batches from the workers of a tf.data service, in exact order.

The service assigns each batch number to one worker and delivers each batch at most
once, in any order. The trainer restores the order by number, and computes a batch
itself if its worker does not deliver it. A batch depends only on its number, so the
trained weights do not depend on the workers.
"""

import contextlib
import functools
import itertools
import os
import queue
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from deeplab_tf import __version__
from deeplab_tf.config.data import parse_service_address
from deeplab_tf.data.reader import skip_errors, translate_data_errors
from deeplab_tf.errors import UserError, one_line

# A batch that does not arrive within this time ends the training.
TIMEOUT_SECONDS = 60.0
_CONNECT_SECONDS = 10.0
# The dispatcher drops a worker that sends no heartbeat for this long.
_WORKER_TIMEOUT_MS = 10_000
# Batches that a worker prepares in parallel. With more, the trainer would need memory
# to restore their order; machines with more cores run several workers.
_PARALLEL_CALLS = 4
# Batches by which one worker can be ahead of another, including those in transit.
_AHEAD = 2 * _PARALLEL_CALLS
# A file in the memory of a worker's process. The graph of the batches comes from the
# trainer, and has no other way to find out in which process it runs.
_IDENTITY = "ram://deeplab_tf_data_worker"


DispatchServer: TypeAlias = tf.data.experimental.service.DispatchServer
WorkerServer: TypeAlias = tf.data.experimental.service.WorkerServer


class Delivery(NamedTuple):
    """A batch from a worker.

    Attributes:
        number: Number of the batch.
        is_made: Whether the worker was able to make it.
        worker: Address of the worker.
        version: See `describe_version`.
        process: Differs between the processes that served at an address.
        batch: The batch; undefined unless `is_made`.
    """

    number: Any
    is_made: Any
    worker: Any
    version: Any
    process: Any
    batch: tuple


def describe_version() -> str:
    """Returns the versions that must be equal in the trainer and its workers."""
    return f"deeplab_tf {__version__}, TensorFlow {tf.__version__}"


def start_dispatcher(port: int, work_dir: str | None = None) -> DispatchServer:
    """Starts the dispatcher of a service, which runs until it is deleted.

    If `work_dir` is given, it stores the state for a restart at the same port.
    """
    config = tf.data.experimental.service.DispatcherConfig(
        port,
        work_dir=work_dir,
        fault_tolerant_mode=work_dir is not None,
        worker_timeout_ms=_WORKER_TIMEOUT_MS,
    )
    with _report_failed_start("a dispatcher", port):
        return tf.data.experimental.service.DispatchServer(config)


def start_worker(dispatcher: str, address: str) -> WorkerServer:
    """Starts a worker of a service, which runs until it is deleted.

    `dispatcher` is `grpc://host:port`, and `address` the `host:port` at which trainers
    reach the worker.
    """
    require_service(dispatcher, "--dispatcher_address")
    # Files in memory are not truncated when they are opened.
    if tf.io.gfile.exists(_IDENTITY):
        tf.io.gfile.remove(_IDENTITY)
    with tf.io.gfile.GFile(_IDENTITY, "w") as file:
        file.write(f"{address}\n{describe_version()}\n{uuid.uuid4()}")
    port = int(address.rpartition(":")[2])
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher.removeprefix("grpc://"),
        worker_address=address,
        port=port,
        dispatcher_timeout_ms=int(1000 * TIMEOUT_SECONDS),
    )
    with _report_failed_start(f"a worker of {dispatcher}", port):
        return tf.data.experimental.service.WorkerServer(config)


@contextlib.contextmanager
def _report_failed_start(server: str, port: int) -> Iterator[None]:
    """Raises `UserError` if a port is in use, or its server fails to start."""
    try:
        # gRPC would share the port with another server, and each would get some calls.
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
        yield
    except (tf.errors.OpError, RuntimeError, OSError) as error:
        raise UserError(
            f"cannot start {server} at port {port}: {one_line(error)}"
        ) from error


def make_absolute(folder: str) -> str:
    """Returns the absolute path of a local folder; other paths are unchanged."""
    return os.path.abspath(folder) if folder and "://" not in folder else folder


def require_service(address: str, option: str = "--data_service") -> None:
    """Raises `UserError` unless a server listens at `grpc://host:port`."""
    host, port = parse_service_address(address, option)
    try:
        socket.create_connection((host.strip("[]"), port), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"cannot connect to {option}={address} ({error.strerror or error}); start "
            f"it with deeplab-data-worker --dispatcher --port={port}"
        ) from error


def make_batches(
    batch_fn: Callable[[tf.Tensor], tuple], address: str
) -> tf.data.Dataset:
    """Returns the batches 0, 1, 2... of `batch_fn`, made by the workers of a service.

    Args:
        batch_fn: Makes a batch from its number, an int64 scalar. It runs on the workers
            and, for batches that are lost, in this process.
        address: Address of the service, `grpc://host:port`.
    """
    require_service(address)
    own = tf.function(batch_fn, input_signature=[tf.TensorSpec((), tf.int64)])
    signature = own.get_concrete_function().structured_outputs

    def generate() -> Iterator[tuple]:
        with contextlib.closing(_receive(address, batch_fn)) as deliveries:
            yield from BatchOrder(address, own).restore(deliveries)

    return tf.data.Dataset.from_generator(
        generate,
        output_signature=tf.nest.map_structure(tf.TensorSpec.from_tensor, signature),
    )


class BatchOrder:
    """Restores the order of the batches of a service.

    Args:
        address: Address of the service, for messages.
        batch_fn: Makes a batch from its number.
    """

    def __init__(self, address: str, batch_fn: Callable[[tf.Tensor], tuple]):
        self._address, self._batch_fn = address, batch_fn
        self._waiting: dict[int, Delivery] = {}
        # The last batch that each worker delivered; its numbers only increase.
        self._latest: dict[bytes, int] = {}
        self._verified: set[bytes] = set()

    def restore(self, deliveries: Iterator[Delivery]) -> Iterator[tuple]:
        """Yields the batches 0, 1, 2..., even if some are never delivered."""
        for number in itertools.count():
            yield self._take(number, deliveries)

    def _take(self, number: int, deliveries: Iterator[Delivery]) -> tuple:
        """Returns a batch; computes it in this process if it was lost."""
        while number not in self._waiting:
            if len(self._waiting) >= _AHEAD * (len(self._latest) + 1):
                # Its worker would have delivered it by now, so it is lost. Workers
                # that delivered no later batch no longer count.
                later = {w: n for w, n in self._latest.items() if n > number}
                self._latest = later
                return self._compute(number)
            delivery = next(deliveries)
            self._latest[delivery.process] = int(delivery.number)
            if delivery.number >= number:
                self._waiting[int(delivery.number)] = delivery
        return self._verify(self._waiting.pop(number))

    def _verify(self, delivery: Delivery) -> tuple:
        """Returns the batch of a delivery; compares a worker's first one with our own.

        An invalid record raises its error at the same step as without the service.
        """
        name = f"worker {delivery.worker.decode()} of --data_service={self._address}"
        version, own = delivery.version.decode(), describe_version()
        if version != own:
            raise UserError(
                f"{name} runs {version or 'another program'}, but the trainer runs "
                f"{own}; start deeplab-data-worker with the versions of the trainer"
            )
        if delivery.process in self._verified and delivery.is_made:
            return delivery.batch
        # If a record is broken, this raises the error that names it.
        batch = self._compute(delivery.number)
        if not delivery.is_made or not _are_equal(batch, delivery.batch):
            problem = "made a different" if delivery.is_made else "could not make"
            raise UserError(
                f"{name} {problem} batch {delivery.number}; it must read the same "
                "records as the trainer, at the same path"
            )
        self._verified.add(delivery.process)
        return batch

    def _compute(self, number: int) -> tuple:
        with translate_data_errors():
            parts = self._batch_fn(tf.constant(number, tf.int64))
            return tuple(part.numpy() for part in parts)


def _are_equal(one: tuple, other: tuple) -> bool:
    return all(map(np.array_equal, one, other))


class _Reader(threading.Thread):
    """Reads a service in a thread, because its iterator has no timeout."""

    def __init__(self, address: str, batch_fn: Callable):
        super().__init__(daemon=True)
        self.arrivals: queue.Queue[Delivery | Exception] = queue.Queue(1)
        self.stopped = threading.Event()
        self._deliveries = functools.partial(_distribute, address, batch_fn)

    def run(self) -> None:
        """Puts deliveries into the queue, and finally the error that stopped them."""
        try:
            for delivery in self._deliveries():
                self._put(delivery)
                if self.stopped.is_set():
                    return
            self._put(EOFError("the dispatcher ended the stream"))
        except Exception as error:  # re-raised by the consumer
            self._put(error)

    def _put(self, item: Delivery | Exception) -> None:
        while not self.stopped.is_set():
            with contextlib.suppress(queue.Full):
                return self.arrivals.put(item, timeout=1)


def _receive(address: str, batch_fn: Callable) -> Iterator[Delivery]:
    """Yields the deliveries of a service; raises `UserError` after a timeout."""
    reader = _Reader(address, batch_fn)
    reader.start()
    try:
        while True:
            item = reader.arrivals.get(timeout=TIMEOUT_SECONDS)
            if isinstance(item, Exception):
                # Strip the names of TensorFlow's operations.
                line = str(item).partition("\n")[0]
                reason = one_line(re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", line))
                raise UserError(
                    f"--data_service={address} failed: {reason}; run the same command "
                    "to resume"
                ) from item
            yield item
    except queue.Empty:
        raise UserError(
            f"--data_service={address} delivered no batch in {TIMEOUT_SECONDS:.0f} s; "
            "check the dispatcher, and start workers with deeplab-data-worker "
            f"--dispatcher_address={address}"
        ) from None
    finally:
        reader.stopped.set()


def _distribute(address: str, batch_fn: Callable) -> Iterator[Delivery]:
    """Yields batches as the workers of a service make them."""

    @tf.autograph.experimental.do_not_convert
    def deliver(number: tf.Tensor) -> Delivery:
        batch = tf.data.Dataset.from_tensors(number)
        batch = skip_errors(batch.map(lambda i: (i, batch_fn(i))), 1)
        found, parts = batch.get_single_element()
        identity = tf.data.Dataset.from_tensors(_IDENTITY).map(tf.io.read_file)
        unknown = tf.data.Dataset.from_tensors("(unknown)\n\n")
        identity = identity.ignore_errors().concatenate(unknown).take(1)
        lines = tf.strings.split(identity.get_single_element(), "\n")
        worker, version, process = lines[0], lines[1], lines[2]
        return Delivery(number, found == number, worker, version, process, parts)

    numbers = tf.data.Dataset.range(tf.int64.max)
    deliveries = numbers.map(deliver, num_parallel_calls=_PARALLEL_CALLS)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.max_intra_op_parallelism = 1
    service = tf.data.experimental.service.distribute(
        tf.data.experimental.service.ShardingPolicy.DYNAMIC,
        address,
        compression=None,
    )
    yield from deliveries.with_options(options).apply(service).as_numpy_iterator()
