"""Runs steps on one or many replicas: distributes rows, collects results and sums."""

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from deeplab_tf.errors import UserError
from deeplab_tf.training import distribution

# Complete batches, or a function of `(worker, num_workers)` that returns its rows.
Batches: TypeAlias = Iterable | Callable[[int, int], tf.data.Dataset]
_Values = TypeVar("_Values")


class Replicas:
    """The devices that train one model together.

    `count` is the number of replicas over all workers; `worker` is the position of this
    process among the workers.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.worker = distribution.current_worker(strategy)
        self.count = strategy.num_replicas_in_sync
        self._compiled_total = tf.function(self._sum_values, autograph=False)

    @property
    def is_accelerated(self) -> bool:
        """Whether the replicas are GPUs or TPUs."""
        return distribution.is_tpu(self.strategy) or distribution.has_gpu()

    def compile(self, function: Callable, jit: bool) -> Callable:
        """Returns a function for `run`, compiled by XLA if `jit` is set."""
        # On TPUs, XLA compiles everything anyway.
        if not jit or distribution.is_tpu(self.strategy):
            return function
        return tf.function(function, jit_compile=True)

    def run(self, function: Callable, *args: object) -> Any:
        """Calls a function on every replica and returns the results per replica."""
        return self.strategy.run(function, args=args)

    def first(self, values: _Values) -> _Values:
        """Returns the result of the first local replica from the results of `run`."""
        return tf.nest.map_structure(
            lambda value: self.strategy.experimental_local_results(value)[0], values
        )

    def iterate(self, dataset: Batches) -> Iterator:
        """Returns an iterator over batches, with each replica's own rows.

        Takes complete batches, or a function of `(worker, num_workers)` that returns
        the rows of a worker.
        """
        workers = self.worker.count
        if callable(dataset):
            rows = dataset(self.worker.index, workers)
        else:
            rows = _to_dataset(dataset)
            if workers > 1:
                take = functools.partial(_take_rows, self.worker.index, workers)
                rows = rows.map(take)
        if self.count == 1:
            return iter(rows)
        if self._local_count > 1:
            rows = rows.flat_map(functools.partial(_split_rows, self._local_count))
        return iter(self.strategy.distribute_datasets_from_function(lambda _: rows))

    def sum_over_workers(self, array: ArrayLike) -> np.ndarray:
        """Returns the sum of an array over all workers."""
        own = np.asarray(array)
        if self.worker.count == 1:
            return own

        def contribute(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
            # Each worker contributes once; its other replicas add zeros.
            is_first = context.replica_id_in_sync_group % self._local_count == 0
            return tf.constant(own if is_first else 0 * own)

        values = self.strategy.experimental_distribute_values_from_function(contribute)
        return self._compiled_total(values).numpy()

    def any_worker(self, *flags: bool) -> list[bool]:
        """ORs each flag across workers."""
        counts = self.sum_over_workers(np.array(flags, np.int64))
        return [bool(count) for count in counts]

    def require_same_start(
        self,
        step: int,
        samples: int,
        variables: Iterable[keras.Variable],
        folder: str | None,
    ) -> None:
        """Checks that all workers start at the same step with the same weights.

        Raises:
            UserError: on all workers, if they differ; names the `train_logdir`.
        """
        if self.worker.count == 1:
            return
        arrays = [v.numpy() for v in variables]
        weights = functools.reduce(lambda crc, a: zlib.crc32(a, crc), arrays, 0)
        states = np.zeros((self.worker.count, 3), np.int64)
        states[self.worker.index] = (step, samples, weights)
        states = self.sum_over_workers(states)
        if (states != states[0]).any():
            raise UserError(
                "the workers do not start from the same state (their steps: "
                f"{states[:, 0].tolist()}); give all of them the same train_logdir "
                f"({folder}) and initial checkpoint"
            )

    def copy_from_chief(self, variables: Sequence[keras.Variable]) -> None:
        """Copies the chief's values of the variables to all workers."""
        values = np.concatenate([v.numpy().ravel() for v in variables])
        values = self.sum_over_workers(values if self.worker.is_chief else 0 * values)
        ends = np.cumsum([v.numpy().size for v in variables])
        for variable, value in zip(variables, np.split(values, ends[:-1]), strict=True):
            variable.assign(value.reshape(variable.shape))

    def offset_seeds(self, seeds: Mapping[str, keras.Variable]) -> None:
        """Gives replicas different dropout seeds; the first keeps the saved one."""
        if self.count == 1:
            return

        def offset() -> None:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for state in seeds.values():
                step = tf.stack([tf.cast(replica, state.dtype) * 1_000_003, 0])
                state.assign(state.value + tf.cast(step, state.dtype))

        tf.function(lambda: self.run(offset))()

    @property
    def _local_count(self) -> int:
        return self.count // self.worker.count

    def _sum_values(self, values: tf.distribute.DistributedValues) -> tf.Tensor:
        # Copied, because the argument itself is not on a device.
        return self.first(
            self.run(lambda value: sum_over_replicas(tf.identity(value)), values)
        )


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Sums a value over all replicas; call this in a replica context."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _to_dataset(batches: Iterable) -> tf.data.Dataset:
    """Converts batches to a dataset; reads them all if they are not one yet."""
    if isinstance(batches, tf.data.Dataset):
        return batches
    batches = list(batches)
    images, labels = batches[0]
    signature = (
        tf.TensorSpec((None, *np.shape(images)[1:]), tf.float32),
        tf.TensorSpec((None, *np.shape(labels)[1:]), tf.as_dtype(labels.dtype)),
    )
    return tf.data.Dataset.from_generator(lambda: batches, output_signature=signature)


def _take_rows(index: int, count: int, *batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns one worker's rows of a batch."""
    # The shape is unknown if batches come from a generator.
    size = batch[0].shape[0] or tf.shape(batch[0])[0]
    begin, end = (size * (index + i) // count for i in (0, 1))
    return tuple(part[begin:end] for part in batch)


def _split_rows(count: int, *batch: tf.Tensor) -> tf.data.Dataset:
    """Returns the rows of each local replica as consecutive elements."""
    parts = tuple(tf.stack(tf.split(part, count)) for part in batch)
    return tf.data.Dataset.from_tensor_slices(parts)
