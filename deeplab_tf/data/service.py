"""Training batches from the workers of a tf.data service, in exact order.

The service hands each batch number to one worker and delivers at most once, in any
order. The trainer restores the order by number, and computes batches itself that a
worker took but did not deliver. Batches depend only on their number, so weights do not
depend on who delivers them.
"""

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from deeplab_tf import __version__
from deeplab_tf.config.data import parse_service_address
from deeplab_tf.data.reader import skip_errors, translate_data_errors
from deeplab_tf.errors import UserError, one_line

# A batch that does not arrive within this time ends the training.
TIMEOUT_SECONDS = 60.0
_CONNECT_SECONDS = 10.0
# The dispatcher forgets a worker that is silent for so long.
_WORKER_TIMEOUT_MS = 10_000
# Batches that a worker prepares at a time. More would arrive in less order, which
# needs memory in the trainer; machines with more cores run several workers.
_PARALLEL_CALLS = 4
# Batches by which a worker can be ahead of another, including those in transit.
_AHEAD = 2 * _PARALLEL_CALLS
# A file in the memory of a worker's process. It is the only thing that batches, whose
# graph comes from the trainer, can read there without a file system.
_IDENTITY = "ram://deeplab_tf_data_worker"


DispatchServer: TypeAlias = tf.data.experimental.service.DispatchServer
WorkerServer: TypeAlias = tf.data.experimental.service.WorkerServer


class _Delivery(NamedTuple):
    """A batch from a worker; if it could not be made, `is_made` is False."""

    number: tf.Tensor
    is_made: tf.Tensor
    worker: tf.Tensor
    version: tf.Tensor
    batch: tuple[tf.Tensor, ...]


def describe_version() -> str:
    """Returns the versions that must be equal in the trainer and its workers."""
    return f"deeplab_tf {__version__}, TensorFlow {tf.__version__}"


def start_dispatcher(port: int, work_dir: str | None = None) -> DispatchServer:
    """Starts the dispatcher of a service, which serves until it is deleted.

    `work_dir` keeps its state, for a restart at the same port.
    """
    config = tf.data.experimental.service.DispatcherConfig(
        port,
        work_dir=work_dir,
        fault_tolerant_mode=work_dir is not None,
        worker_timeout_ms=_WORKER_TIMEOUT_MS,
    )
    with _report_failed_start(f"a dispatcher at port {port}"):
        return tf.data.experimental.service.DispatchServer(config)


def start_worker(dispatcher: str, address: str) -> WorkerServer:
    """Starts a worker of a service, which serves until it is deleted.

    `dispatcher` is `grpc://host:port`, and `address` the `host:port` at which trainers
    reach the worker.
    """
    require_service(dispatcher, "--dispatcher_address")
    with tf.io.gfile.GFile(_IDENTITY, "w") as file:
        file.write(f"{address}\n{describe_version()}")
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher.removeprefix("grpc://"),
        worker_address=address,
        port=int(address.rpartition(":")[2]),
        dispatcher_timeout_ms=int(1000 * TIMEOUT_SECONDS),
    )
    with _report_failed_start(f"worker {address} of {dispatcher}"):
        return tf.data.experimental.service.WorkerServer(config)


@contextlib.contextmanager
def _report_failed_start(server: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, RuntimeError) as error:
        raise UserError(f"cannot start {server}: {one_line(error)}") from error


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
        yield from _Stream(address, batch_fn, own)

    return tf.data.Dataset.from_generator(
        generate,
        output_signature=tf.nest.map_structure(tf.TensorSpec.from_tensor, signature),
    )


class _Stream:
    """Iterates over the batches in order."""

    def __init__(self, address: str, batch_fn: Callable, own: Callable):
        self._address, self._own = address, own
        self._waiting: dict[int, tuple] = {}
        self._workers: set[bytes] = set()
        self._arrivals: queue.Queue = queue.Queue(1)
        self._stopped = threading.Event()
        # An iterator over a service blocks without limit, so it has its own thread.
        reader = threading.Thread(target=self._read, args=(batch_fn,), daemon=True)
        reader.start()

    def __iter__(self) -> Iterator[tuple]:
        number = 0
        try:
            while True:
                yield self._take(number)
                number += 1
        finally:
            self._stopped.set()

    def _read(self, batch_fn: Callable) -> None:
        """Puts the deliveries of the service, or its error, into the queue."""
        try:
            for delivery in _distribute(self._address, batch_fn):
                self._put(delivery)
                if self._stopped.is_set():
                    return
            self._put(EOFError("the dispatcher ended the stream"))
        except Exception as error:  # raised again by the thread that waits
            self._put(error)

    def _put(self, item: tuple | Exception) -> None:
        while not self._stopped.is_set():
            try:
                return self._arrivals.put(item, timeout=1)
            except queue.Full:
                pass

    def _take(self, number: int) -> tuple:
        """Returns a batch; makes it here if it does not arrive in time."""
        while number not in self._waiting:
            # Every live worker has delivered later batches, so this one is lost.
            if len(self._waiting) >= _AHEAD * (len(self._workers) + 1):
                return self._compute(number)
            delivery = self._receive()
            if delivery.number >= number:
                self._waiting[int(delivery.number)] = self._check(delivery)
        return self._waiting.pop(number)

    def _receive(self) -> _Delivery:
        """Returns the next delivery; raises `UserError` if there is none."""
        address = self._address
        try:
            item = self._arrivals.get(timeout=TIMEOUT_SECONDS)
        except queue.Empty:
            raise UserError(
                f"--data_service={address} delivered no batch in {TIMEOUT_SECONDS:.0f} "
                "s; check the dispatcher, and start workers with deeplab-data-worker "
                f"--dispatcher_address={address}"
            ) from None
        if isinstance(item, Exception):
            reason = one_line(str(item).partition("\n")[0])
            raise UserError(f"--data_service={address} failed: {reason}") from item
        return item

    def _check(self, delivery: _Delivery) -> tuple:
        """Returns the batch of a delivery; the first one of a worker is made twice."""
        worker = delivery.worker
        name = f"worker {worker.decode()} of --data_service={self._address}"
        version, own = delivery.version.decode(), describe_version()
        if version != own:
            raise UserError(
                f"{name} runs {version or 'another program'}, the trainer {own}; start "
                "deeplab-data-worker with the versions of the trainer"
            )
        if worker in self._workers and delivery.is_made:
            return delivery.batch
        # If a record is broken, this raises the error that names it.
        batch = self._compute(delivery.number)
        if not delivery.is_made or not _are_equal(batch, delivery.batch):
            problem = "makes another batch than" if delivery.is_made else "cannot make"
            raise UserError(
                f"{name} {problem} the trainer's batch {delivery.number}; it must read "
                "the trainer's records, at the same path"
            )
        self._workers.add(worker)
        return batch

    def _compute(self, number: int) -> tuple:
        with translate_data_errors():
            parts = self._own(tf.constant(number, tf.int64))
            return tuple(part.numpy() for part in parts)


def _are_equal(one: tuple, other: tuple) -> bool:
    return all(map(np.array_equal, one, other))


def _distribute(address: str, batch_fn: Callable) -> Iterator[_Delivery]:
    """Yields batches as the workers of a service make them."""

    @tf.autograph.experimental.do_not_convert
    def deliver(number: tf.Tensor) -> _Delivery:
        batch = tf.data.Dataset.from_tensors(number)
        batch = skip_errors(batch.map(lambda i: (i, batch_fn(i))), 1)
        found, parts = batch.get_single_element()
        identity = tf.data.Dataset.from_tensors(_IDENTITY).map(tf.io.read_file)
        unknown = tf.data.Dataset.from_tensors("(unknown)\n")
        identity = identity.ignore_errors().concatenate(unknown).take(1)
        lines = tf.strings.split(identity.get_single_element(), "\n")
        return _Delivery(number, found == number, lines[0], lines[1], parts)

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
