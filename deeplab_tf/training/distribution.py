"""Chooses distribution strategies, and divides batches among workers."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping

import keras
import tensorflow as tf

import deeplab_tf
from deeplab_tf import strict_json
from deeplab_tf.data.pipeline import find_rows
from deeplab_tf.errors import UserError
from deeplab_tf.training import rendezvous

_TF_CONFIG = "TF_CONFIG"
_EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Worker:
    """Position of this process among the workers; worker 0 is the chief."""

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes files."""
        return self.index == 0


def current_worker(strategy: tf.distribute.Strategy) -> Worker:
    """Returns the position of this process in a strategy."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return Worker()
    cluster = resolver.cluster_spec().as_dict()
    return _find_worker(cluster, resolver.task_type, resolver.task_id)[1]


def _find_worker(cluster: Mapping, type: str, index: int) -> tuple[list[str], Worker]:
    """Returns the addresses of all workers, the chief's first, and a task's position.

    The arguments are those of `TF_CONFIG`.
    """
    tasks = [
        (k, i) for k in ("chief", "worker") for i in range(len(cluster.get(k, ())))
    ]
    addresses = [cluster[kind][i] for kind, i in tasks]
    if not tasks:
        return addresses, Worker()
    return addresses, Worker(tasks.index((type, int(index))), len(tasks))


@contextlib.contextmanager
def report_lost_workers(worker: Worker) -> Iterator[None]:
    """Raises a `UserError` if an operation fails because another worker is gone."""
    try:
        yield
    except (
        *(tf.errors.UnavailableError, tf.errors.AbortedError),
        *(tf.errors.CancelledError, tf.errors.InternalError),
    ) as error:
        # Other errors may also come from this worker itself.
        is_unavailable = isinstance(error, tf.errors.UnavailableError)
        if worker.count == 1 or not (is_unavailable or "ollective" in error.message):
            raise
        lines = [line for line in error.message.splitlines() if "ollective" in line]
        raise UserError(
            f"worker {worker.index + 1} of {worker.count} lost contact with another "
            "worker and stops; restart all workers to resume from the last checkpoint "
            f"({(lines or [error.message])[0][:200]})"
        ) from error


def make_strategy(
    name: str = "auto",
    num_clones: int | None = None,
    clone_on_cpu: bool = False,
    tpu: str | None = None,
    settings: Callable[[], Mapping[str, str]] = dict,
) -> tf.distribute.Strategy:
    """Returns a distribution strategy; call it before TensorFlow uses any device.

    Args:
        name: "auto", "one_device", "mirrored", "multi_worker_mirrored" or "tpu".
            "auto" means several workers if the environment
            variable TF_CONFIG names them, else all visible GPUs, else the CPU.
        num_clones: Number of devices of this machine; None uses all GPUs. On a CPU, it
            is the number of logical devices to create.
        clone_on_cpu: Whether to hide all GPUs.
        tpu: Name or address of the TPU, for "tpu".
        settings: Function that returns the settings that all workers must share.

    Raises:
        UserError: if the strategy is not available on this machine, or another worker
            does not connect within a minute or has different settings.
    """
    if num_clones is not None and num_clones < 1:
        raise UserError(f"num_clones must be at least 1; received {num_clones}")
    gpus = _list_visible_gpus(clone_on_cpu)
    if name == "auto":
        name = _choose_strategy(gpus, num_clones, tpu)
    if name == "tpu":
        return _make_tpu_strategy(tpu)
    if gpus and (num_clones or 0) > len(gpus):
        raise UserError(
            f"num_clones={num_clones}, but TensorFlow sees {len(gpus)} GPUs; use "
            "clone_on_cpu to train on the CPU"
        )
    if name == "multi_worker_mirrored":
        _require_tf_config()
        tf.config.set_visible_devices(gpus[:num_clones], "GPU")
        return _make_multi_worker_strategy(settings())
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(_list_devices(gpus, num_clones))
    if (num_clones or 1) > 1:
        raise UserError(
            f"distribution_strategy=one_device uses one device; num_clones="
            f"{num_clones} needs distribution_strategy=mirrored"
        )
    return tf.distribute.get_strategy()


def make_local_strategy(
    num_clones: int | None = None, clone_on_cpu: bool = False
) -> tf.distribute.Strategy:
    """Returns a strategy for the devices of this machine, ignoring TF_CONFIG.

    See `make_strategy` for the arguments and errors.
    """
    name = _choose_local_strategy(_list_visible_gpus(clone_on_cpu), num_clones)
    return make_strategy(name, num_clones, clone_on_cpu)


def _list_devices(gpus: list, count: int | None) -> list[str]:
    """Returns the devices to mirror: GPUs, else logical CPUs."""
    if gpus:
        return [f"GPU:{i}" for i in range(count or len(gpus))]
    (cpu,), count = tf.config.list_physical_devices("CPU"), count or 1
    tf.config.set_logical_device_configuration(
        cpu, count * [tf.config.LogicalDeviceConfiguration()]
    )
    return [f"CPU:{i}" for i in range(count)]


def _list_visible_gpus(clone_on_cpu: bool) -> list:
    if clone_on_cpu:
        tf.config.set_visible_devices([], "GPU")
    return tf.config.get_visible_devices("GPU")


def _choose_strategy(gpus, num_clones: int | None, tpu: str | None) -> str:
    """Returns the name of the strategy that "auto" selects."""
    if tpu:
        return "tpu"
    if os.environ.get(_TF_CONFIG):
        return "multi_worker_mirrored"
    return _choose_local_strategy(gpus, num_clones)


def _choose_local_strategy(gpus, num_clones: int | None) -> str:
    """Returns the name of the strategy for the devices of this machine."""
    return "mirrored" if (num_clones or len(gpus)) > 1 else "one_device"


def _require_tf_config() -> None:
    """Raises `UserError` for a TF_CONFIG that TensorFlow would misread or hang on."""
    text = os.environ.get(_TF_CONFIG, "")
    problem = _find_tf_config_problem(text)
    if problem:
        raise UserError(
            f"multi_worker_mirrored cannot use the environment variable {_TF_CONFIG}: "
            f"{problem}; set it to, for example, {_EXAMPLE}"
        )


def _find_tf_config_problem(text: str) -> str:
    """Returns the first problem with the value of TF_CONFIG, or ""."""
    if not text:
        return "it is not set"
    try:
        config = strict_json.parse(text, "its text")
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        addresses = {k: list(cluster[k]) for k in cluster}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"received {text!r} ({type(error).__name__}: {error})"
    unknown = set(addresses) - {"chief", "worker"}
    if unknown:
        return (
            f"the cluster may only contain chief and worker; received {sorted(unknown)}"
        )
    if not 0 <= index < len(addresses.get(kind, ())):
        return f"the cluster has no {kind} {index}; received {text!r}"
    wrong = [a for group in addresses.values() for a in group if not _is_address(a)]
    return f"{wrong[0]!r} is not host:port" if wrong else ""


def _is_address(text) -> bool:
    host, _, port = str(text).rpartition(":")
    return bool(host) and port.isdigit()


def _make_multi_worker_strategy(
    settings: Mapping[str, str],
) -> tf.distribute.Strategy:
    """Connects to the other workers once all of them are running."""
    config = strict_json.parse(os.environ[_TF_CONFIG], "its text")
    addresses, worker = _find_worker(config["cluster"], **config["task"])
    versions = {m.__name__: m.__version__ for m in (deeplab_tf, tf, keras)}
    count = {f"{_TF_CONFIG} with a cluster size of": str(worker.count)}
    member = rendezvous.Member(
        worker.index, addresses, count | versions | dict(settings)
    )
    if worker.count > 1:
        rendezvous.meet(member)
    lost = (
        f"{member.describe(worker.index)} lost contact with another worker at the "
        "start; restart all workers"
    )
    try:
        with rendezvous.exit_after(rendezvous.LIMIT, lost):
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(
            f"cannot join the workers of {_TF_CONFIG}={os.environ[_TF_CONFIG]}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _make_tpu_strategy(tpu: str | None) -> tf.distribute.Strategy:
    """Connects to a TPU and returns its strategy; UserError if there is none."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu or "local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"there is no TPU {tpu or 'on this machine'}: {reason}; --tpu takes its "
            "name or grpc:// address"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def split_batch_size(
    batch_size: int, replicas: int, passes: int, workers: int = 1
) -> int:
    """Returns the smallest number of images per replica and forward pass.

    `passes` is the number of forward passes per optimiser step (`accumulate_steps`).
    The shares of workers may differ by one image; see `find_rows`. Raises `UserError`
    if the share of a worker cannot be split evenly.
    """
    shares = replicas * passes
    own = shares // workers
    rows = [len(find_rows(batch_size, i, workers)) for i in range(workers)]
    if min(rows) < own or any(count % own for count in rows):
        step = shares if own > 1 else 1
        nearest = max(batch_size // step * step, shares)
        suffix = f" with accumulate_steps={passes}" if passes > 1 else ""
        raise UserError(
            f"a batch of {batch_size} images cannot be divided evenly among {replicas} "
            f"replicas{suffix}; {nearest} can"
        )
    return min(rows) // own


def has_gpu() -> bool:
    """Returns whether TensorFlow places computations on a GPU."""
    return bool(tf.config.get_visible_devices("GPU"))


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether a strategy trains on a TPU."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def resolve_jit(jit: str, strategy: tf.distribute.Strategy) -> bool:
    """Returns whether XLA compiles the step; "auto" does on a TPU or a single GPU.

    On CPU, XLA makes depthwise convolutions about 20 times slower.

    Raises:
        UserError: if "on" is used with several replicas, which exchange values within a
            step.
    """
    if is_tpu(strategy):
        return True
    replicas = strategy.num_replicas_in_sync
    if jit == "on" and replicas > 1:
        raise UserError(
            f"jit=on needs a single replica; {replicas} replicas exchange values "
            "within the step: use jit=off"
        )
    return jit == "on" or (jit == "auto" and replicas == 1 and has_gpu())
