"""The training loop: compiled steps, repeated, watched and saved."""

import collections
import contextlib
import functools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from deeplab_tf.checkpoints.keys import AVERAGE_KEY, MODEL_KEY
from deeplab_tf.config import TrainConfig
from deeplab_tf.data.info import DatasetInfo, generic_info
from deeplab_tf.data.reader import readable_errors
from deeplab_tf.errors import UserError
from deeplab_tf.files.locks import training_lock
from deeplab_tf.models.pointwise import with_products
from deeplab_tf.models.recomputation import recomputed
from deeplab_tf.models.variables import dropout_seeds, official_variables
from deeplab_tf.training import distribution, optimizer, resume
from deeplab_tf.training.batch_norm import set_batch_norm
from deeplab_tf.training.divergence import (
    REPORTED_LOSSES,
    explain_divergence,
    first_not_finite,
)
from deeplab_tf.training.interruption import Interrupted, Interruption
from deeplab_tf.training.loss_scaling import LossScale
from deeplab_tf.training.reporter import Reporter, Validation
from deeplab_tf.training.step import (
    TrainStep,
    computes_in_half,
    training_outputs,
)

# Of all workers, or a function of a worker's index and their number that gives its own.
Batches: TypeAlias = Iterable | Callable[[int, int], tf.data.Dataset]
_Values = TypeVar("_Values")
# Metrics of a step, in the order of the vector that the graph returns.
_TOLD = (
    *("data_loss", "regularization_loss", "learning_rate", "broken_gradients"),
    *("broken_image", "images"),
)


class Trainer:
    """Trains a model with the official semantics.

    The strategy is that under which the model was built. Batches are those of all
    replicas together, whatever their number.

    Args:
        model: A model of `build_model`, or of `build_classifier`, whose labels are of
            a single pixel. Its batch normalisations follow `config.normalization`.
        config: How to train.

    Raises:
        UserError: for label weights that do not fit the classes, or a compiler that
            the strategy cannot have.
    """

    def __init__(self, model: keras.Model, config: TrainConfig):
        num_classes = model.model_config.num_classes
        if len(config.label_weights) not in (0, num_classes):
            raise UserError(
                f"label_weights needs one weight for each of {num_classes} classes; "
                f"received {len(config.label_weights)}"
            )
        self.model = model
        self.config = config
        self.strategy = model.distribute_strategy
        self.worker = distribution.worker_of(self.strategy)
        self._replicas = self.strategy.num_replicas_in_sync
        self._jit = _compiles(config.jit, self.strategy)
        set_batch_norm(model, config.normalization, self._replicas)
        variables = official_variables(model)
        trained = {n: v for n, v in variables.items() if v.trainable}
        with self.strategy.scope():
            self.optimizer = optimizer.make_optimizer(config)
            optimizer.build(self.optimizer, trained)
            self._averages = {
                name: keras.Variable(v.numpy(), trainable=False, name="average")
                for name, v in (variables.items() if config.ema_decay else ())
            }
        self._samples = tf.Variable(0, dtype=tf.int64, name="samples")
        self._loss_scale = LossScale() if computes_in_half(model) else None
        network = training_outputs(model)
        if not (self._jit or self._is_accelerated()):
            network = with_products(network)
        if config.recompute:
            network = recomputed(network)
        self._step = TrainStep(model, config, network, self.optimizer, self._averages)
        self._whole_step = self._compiled(self._step.whole)
        self._gradients_in_half = self._compiled(self._step.gradients_in_half)
        self._update_in_half = self._compiled(self._step.update_in_half)
        self._seeds = dropout_seeds(model)
        self._spread_seeds()
        self._losses = collections.deque[float](maxlen=REPORTED_LOSSES)
        self._first_step = 0
        self._restored: str | None = None
        self._state = None
        if config.train_logdir is not None:
            self._state = self._training_state(config.train_logdir, trained)
        self._compiled_steps = tf.function(self._steps, reduce_retracing=True)
        self._compiled_total = tf.function(self._total, autograph=False)

    def _training_state(
        self, folder: str, trained: dict[str, keras.Variable]
    ) -> resume.TrainingState:
        scaling = self._loss_scale.variables if self._loss_scale else {}
        groups = {
            MODEL_KEY: official_variables(self.model),
            "optimizer": optimizer.slots(self.optimizer, trained),
            "seeds": self._seeds,
            AVERAGE_KEY: self._averages,
            "loss_scale": scaling,
        }
        return resume.TrainingState(
            folder,
            groups,
            self.optimizer.iterations,
            self._samples,
            self.worker.is_chief,
        )

    @property
    def step(self) -> int:
        """Number of optimiser steps done."""
        return int(self.optimizer.iterations.numpy())

    @property
    def samples(self) -> int:
        """Number of training samples consumed; `start` of `load_dataset`."""
        return int(self._samples.numpy())

    @property
    def compiles(self) -> bool:
        """Whether XLA compiles the step."""
        return self._jit

    def restore_latest(self) -> str | None:
        """Goes on from the latest checkpoint of `train_logdir` that is whole.

        Returns:
            The prefix of the checkpoint, None if there is none.

        Raises:
            UserError: if it is of another model, none is whole, or the weights to
                start from are not finite.
        """
        prefix = self._state.restore_latest() if self._state else None
        self._restored = prefix
        self._require_finite_weights()
        if prefix:
            self._spread_seeds()
        else:
            self._start_averages()
        return prefix

    def _start_averages(self) -> None:
        """Lets the averages begin at the weights as they are."""
        variables = official_variables(self.model)
        for name, average in self._averages.items():
            average.assign(variables[name])

    def _spread_seeds(self) -> None:
        """Gives every replica its own dropout; the first keeps what is saved."""
        if self._replicas == 1:
            return

        def spread() -> None:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for state in self._seeds.values():
                offset = tf.stack([tf.cast(replica, state.dtype) * 1_000_003, 0])
                state.assign(state.value + tf.cast(offset, state.dtype))

        tf.function(lambda: self.strategy.run(spread))()

    @tf.autograph.experimental.do_not_convert
    def _one_step(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Does a step of all replicas; returns the facts, and whether it was done."""
        if self._loss_scale is None:
            results = self.strategy.run(self._whole_step, args=(images, labels))
            results = self._first_replica(results)
            is_finite = results["broken_gradients"] == 0
            return self._with_broken_image(results, is_finite, images)
        scale = self._loss_scale.value()
        gradients, *told = self.strategy.run(
            self._gradients_in_half, args=(images, labels, scale)
        )
        results, is_finite = self._first_replica(told)
        self._loss_scale.update(
            is_finite,
            lambda: self.strategy.run(self._update_in_half, args=(gradients,)),
        )
        # Nothing is left to halve: no smaller scale will do.
        is_hopeless = ~is_finite & (scale <= 1.0)
        results |= {"broken_gradients": tf.cast(is_hopeless, tf.float32)}
        return self._with_broken_image(results, is_finite, images)

    def _with_broken_image(
        self, results: dict[str, tf.Tensor], is_finite: tf.Tensor, images: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Adds the place of an image that broke the step; -1 where none did."""
        for name in ("data_loss", "regularization_loss"):
            is_finite &= tf.math.is_finite(results[name])

        def find() -> tf.Tensor:
            places = self.strategy.run(self._step.first_broken_image, args=(images,))
            return self._first_replica(places)

        # Pixels are examined only after a step has failed, which all replicas agree on.
        place = tf.cond(is_finite, lambda: tf.constant(-1.0), find)
        return results | {"broken_image": place}

    def _compiled(self, function: Callable) -> Callable:
        """Returns a replica's function, by XLA if that is asked for."""
        # On a TPU all that a replica runs is compiled anyway.
        is_compiled = self._jit and not distribution.is_tpu(self.strategy)
        return tf.function(function, jit_compile=True) if is_compiled else function

    def _first_replica(self, values: _Values) -> _Values:
        return tf.nest.map_structure(
            lambda value: self.strategy.experimental_local_results(value)[0], values
        )

    def _steps(
        self, iterator: Iterator, count: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Does up to `count` steps; returns `[steps, told]` and class counts.

        It ends behind a loss or a gradient that is not finite.
        """
        told = tf.TensorArray(tf.float32, 0, True, element_shape=[len(_TOLD)])
        classes = tf.zeros([3, self.model.model_config.num_classes])
        done, is_finite = tf.constant(0), tf.constant(True)
        while done < count and is_finite:
            images, labels = next(iterator)
            results = self._one_step(images, labels)
            rows = tf.shape(self._first_replica(images), out_type=tf.int64)[0]
            results["images"] = tf.cast(rows * self._replicas, tf.float32)
            row = tf.stack([results[name] for name in _TOLD])
            # A batch whose size is known would be counted even if it does not come.
            with tf.control_dependencies([row]):
                self._samples.assign_add(rows * self._replicas)
            told = told.write(done, row)
            classes += results["classes"]
            is_finite = _is_whole(row)
            done += 1
        return told.stack(), classes

    def train_step(self, images: ArrayLike, labels: ArrayLike) -> dict[str, float]:
        """Does one optimiser step.

        Args:
            images: RGB 0..255 of all replicas, `[batch, height, width, 3]`.
            labels: Class ids, `[batch, height, width]` or `[..., 1]`.

        Returns:
            `data_loss`, `regularization_loss` and `learning_rate`, all of the
            weights before the update.
        """
        dataset = tf.data.Dataset.from_tensors(
            (tf.convert_to_tensor(images, tf.float32), tf.convert_to_tensor(labels))
        )
        told, _ = self.train_steps(self.iterate(dataset), 1)
        return _public(told[0])

    def train_steps(self, data: Iterator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Does some optimiser steps in one host call.

        Args:
            data: What `iterate` gives.
            count: Number of steps.

        Returns:
            `[steps, 6]`: data loss, regularisation loss, learning rate, number of
            gradients that are not finite, place in the batch of an image that is not
            (else -1) and number of images; the last step may be broken. And
            `[3, num_classes]`: pixels on the grid of the logits that were predicted
            as, are and were rightly predicted as each class.
        """
        told, classes = self._compiled_steps(data, tf.constant(count))
        return told.numpy(), classes.numpy()

    def iterate(self, dataset: Batches) -> Iterator:
        """Returns an iterator for `train_steps`: each replica's rows of every batch.

        Args:
            dataset: Whole batches, or a function of a worker's index and the number
                of workers that gives this worker's rows of them.
        """
        workers = self.worker.count
        local = self._replicas // workers
        if callable(dataset):
            rows = dataset(self.worker.index, workers)
        else:
            rows = _as_dataset(dataset)
            if workers > 1:
                rows = rows.map(functools.partial(_rows_of, self.worker.index, workers))
        if self._replicas == 1:
            return iter(rows)
        if local > 1:
            rows = rows.flat_map(functools.partial(_replica_batches, local))
        return iter(self.strategy.distribute_datasets_from_function(lambda _: rows))

    def sum_over_workers(self, array: ArrayLike) -> np.ndarray:
        """Returns the sum of an array over all workers."""
        own = np.asarray(array)
        if self.worker.count == 1:
            return own
        local = self._replicas // self.worker.count

        def bring(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
            # One replica of a worker brings its array, the others nothing.
            is_first = context.replica_id_in_sync_group % local == 0
            return tf.constant(own if is_first else 0 * own)

        values = self.strategy.experimental_distribute_values_from_function(bring)
        return self._compiled_total(values).numpy()

    def _total(self, values: tf.distribute.DistributedValues) -> tf.Tensor:
        def total(value: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # A copy, for the argument itself is on no device.
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        return self._first_replica(self.strategy.run(total, args=(values,)))

    def train(
        self,
        dataset: Batches,
        validation: Validation | None = None,
        info: DatasetInfo | None = None,
        name_samples: Callable[[int, int], str] | None = None,
    ) -> dict[str, float]:
        """Trains up to `training_number_of_steps`, saving along the way.

        The `train_logdir` is locked meanwhile. SIGTERM, SIGHUP and Ctrl-C save after
        the running host call and end the program with status 143, 129 or 130.

        Args:
            dataset: Batches of images and labels, as `load_dataset` gives them, or a
                function of `(worker, num_workers)` that gives a worker its rows.
            validation: What the model is scored on at every `eval_interval_steps`.
            info: Names and colours of the classes, for what is shown.
            name_samples: Names some samples, by the number of the first and their
                count, for errors.

        Returns:
            The results of the last step.

        Raises:
            UserError: if another process trains in `train_logdir`, or removes it; if
                the weights, a loss or a gradient are not finite, the data end early or
                a checkpoint cannot be written.
        """
        results = {}
        with (
            self._folder_lock(),
            Interruption() as interruption,
            self._reporter(validation, info) as reporter,
            distribution.lost_workers(self.worker),
        ):
            self._begin(reporter)
            saved_at, data = time.monotonic(), None
            while True:
                # Behind the checkpoint: it takes long, and may fail.
                self._evaluate_if_due(reporter, validation)
                if self._is_done(reporter):
                    break
                step = self.step
                data = data or self.iterate(dataset)
                count = self._call_length(step)
                with readable_errors(), self._ended_data():
                    told, classes = self.train_steps(data, count)
                results = _public(told[-1])
                self._require_finite(told, name_samples)
                # Fewer than asked for where float16 left some out.
                done = self.step - step
                reporter.trained(step, told[len(told) - done :], classes, self.samples)
                stop, save = self._agreed(
                    interruption.signal is not None,
                    done > 0 and self._is_save_due(saved_at),
                )
                if save or stop:
                    checkpoint = self._save(reporter)
                    saved_at = time.monotonic()
                if stop:
                    what = f"saved {checkpoint}" if checkpoint else "nothing was saved"
                    reporter.say(f"interrupted after step {self.step}; {what}")
                    raise Interrupted(interruption.number, checkpoint)
            reporter.finish()
        return results

    def _folder_lock(self) -> contextlib.AbstractContextManager:
        folder = self.config.train_logdir
        if folder is None or not self.worker.is_chief:
            return contextlib.nullcontext()
        return training_lock(folder)

    @contextlib.contextmanager
    def _ended_data(self) -> Iterator[None]:
        """Tells that there are no more data, which may be within a host call."""
        try:
            yield
        except tf.errors.OutOfRangeError:
            raise UserError(f"the dataset ended after {self.step} steps") from None

    def _reporter(
        self, validation: Validation | None, info: DatasetInfo | None
    ) -> Reporter:
        info = info or generic_info(self.model.model_config.num_classes)
        return Reporter(self.config, info, self.worker.is_chief, validation)

    def _is_done(self, reporter: Reporter) -> bool:
        limit = self.config.early_stop_evals
        is_stuck = bool(limit) and reporter.evaluations_since_best >= limit
        return is_stuck or self.step >= self.config.training_number_of_steps

    def _call_length(self, step: int) -> int:
        """Returns how many steps the host starts at once, up to what is due next."""
        config = self.config
        steps = config.steps_per_call or (10 if self._is_accelerated() else 1)
        for every in (config.save_interval_steps, config.eval_interval_steps):
            if every:
                steps = min(steps, every - step % every)
        return min(steps, config.training_number_of_steps - step)

    def _is_accelerated(self) -> bool:
        return distribution.is_tpu(self.strategy) or distribution.uses_gpu()

    def _begin(self, reporter: Reporter) -> None:
        self._require_finite_weights()
        self._first_step = self.step
        self._losses.clear()
        if self.step == 0:
            self._start_averages()
        reporter.restart(self.step, self.samples)
        if self.worker.count > 1:
            self._require_agreement()

    def _require_agreement(self) -> None:
        """Refuses workers that begin with different weights, or elsewhere.

        Raises:
            UserError: on all of them.
        """
        arrays = [v.numpy() for v in official_variables(self.model).values()]
        weights = functools.reduce(lambda crc, a: zlib.crc32(a, crc), arrays, 0)
        states = np.zeros((self.worker.count, 3), np.int64)
        states[self.worker.index] = (self.step, self.samples, weights)
        states = self.sum_over_workers(states)
        if (states != states[0]).any():
            raise UserError(
                "the workers begin differently, at the steps "
                f"{states[:, 0].tolist()}; all of them have to see the same "
                f"train_logdir ({self.config.train_logdir}) and initial checkpoint"
            )

    def _is_evaluation_due(self) -> bool:
        every, step = self.config.eval_interval_steps, self.step
        is_last = step == self.config.training_number_of_steps
        return bool(every) and step > 0 and (step % every == 0 or is_last)

    def _evaluate_if_due(
        self, reporter: Reporter, validation: Validation | None
    ) -> None:
        """Scores the model; after a restart also what was to be scored before."""
        step = self.step
        if validation is None or not self._is_evaluation_due():
            return
        if reporter.has_evaluated(step):
            return
        if self.worker.count > 1 and self.config.normalization == "train":
            self._share_statistics()
        with self.averaged_weights():
            is_best = reporter.evaluate(
                step, self.model, self.worker, self.sum_over_workers
            )
        if is_best and self._state is not None:
            self._state.save_best()
            reporter.keep_best()
        reporter.flush()

    def _share_statistics(self) -> None:
        """Gives all workers the moving statistics of the first, which are saved."""
        variables = official_variables(self.model)
        moving = [v for v in variables.values() if not v.trainable]
        moving += [self._averages[n] for n, v in variables.items() if not v.trainable]
        values = np.concatenate([v.numpy().ravel() for v in moving])
        values = self.sum_over_workers(values if self.worker.is_chief else 0 * values)
        ends = np.cumsum([v.numpy().size for v in moving])
        for variable, value in zip(moving, np.split(values, ends[:-1]), strict=True):
            variable.assign(value.reshape(variable.shape))

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Lets the model have the moving average of its weights, if one is kept."""
        variables = official_variables(self.model)
        own = {name: variables[name].numpy() for name in self._averages}
        try:
            for name, average in self._averages.items():
                variables[name].assign(average)
            yield
        finally:
            for name, value in own.items():
                variables[name].assign(value)

    def _agreed(self, *wishes: bool) -> list[bool]:
        """Returns which wishes at least one worker has: all do the same."""
        counts = self.sum_over_workers(np.array(wishes, np.int64))
        return [bool(count) for count in counts]

    def _is_save_due(self, saved_at: float) -> bool:
        """Whether a checkpoint is to be written after this step."""
        config, step = self.config, self.step
        every = config.save_interval_steps
        return (
            step == config.training_number_of_steps
            or self._is_evaluation_due()
            or bool(every and step % every == 0)
            or time.monotonic() - saved_at > config.save_interval_secs
        )

    def _save(self, reporter: Reporter) -> str | None:
        """Saves a checkpoint; returns its prefix, None without a `train_logdir`."""
        reporter.flush()
        return self._state.save() if self._state is not None else None

    def _require_finite(
        self, told: np.ndarray, name_samples: Callable[[int, int], str] | None
    ) -> None:
        """Refuses a broken last step; names the image or the setting that caused it."""
        metrics = dict(zip(_TOLD, told[-1].tolist(), strict=True))
        place = int(metrics["broken_image"])
        # NumPy's: TensorFlow's would take the host a quarter of a millisecond.
        is_finite = np.isfinite(told[-1]).all() and not metrics["broken_gradients"]
        if is_finite and place < 0:
            self._losses.extend(told[:, 0].tolist())
            return
        self._losses.extend(told[:-1, 0].tolist())
        # float16 leaves the step out.
        step = self.step - (self._loss_scale is None)
        if place >= 0:
            number = self.samples - int(metrics["images"]) + place
            name = f" ({name_samples(number, 1)})" if name_samples else ""
            raise UserError(
                f"image {place} of the batch at step {step}{name} has pixels that are "
                "not finite or absurdly large; correct what makes the images, whose "
                "pixels are 0..255"
            )
        start = self._start if step == self._first_step else None
        is_half = self._loss_scale is not None
        raise UserError(
            explain_divergence(self.config, step, metrics, self._losses, start, is_half)
        )

    @property
    def _start(self) -> str:
        """What the weights come from, in words."""
        if self._restored:
            return self._restored
        checkpoint = self.config.tf_initial_checkpoint
        return f"tf_initial_checkpoint={checkpoint}" if checkpoint else "the model"

    def _require_finite_weights(self) -> None:
        """Refuses to train from weights, averages or accumulators with NaN."""
        variables = official_variables(self.model)
        trained = [name for name, v in variables.items() if v.trainable]
        variables |= optimizer.slots(self.optimizer, trained)
        variables |= {f"{AVERAGE_KEY}/{n}": v for n, v in self._averages.items()}
        name = first_not_finite({n: v.value for n, v in variables.items()})
        if name is not None:
            raise UserError(
                f"{self._start} holds values that are not finite (first: {name}); "
                "start from another checkpoint"
            )


def _public(row: np.ndarray) -> dict[str, float]:
    """Returns what a step tells its caller."""
    return dict(zip(_TOLD[:3], map(float, row), strict=False))


def _is_whole(row: tf.Tensor) -> tf.Tensor:
    """Whether losses and gradients of a step are finite."""
    return tf.reduce_all(tf.math.is_finite(row)) & (row[3] == 0) & (row[4] < 0)


def _compiles(jit: str, strategy: tf.distribute.Strategy) -> bool:
    """Whether XLA compiles the step: on one GPU and on TPUs, unless told otherwise.

    On CPU it makes depthwise convolutions some twenty times slower.
    """
    if distribution.is_tpu(strategy):
        return True
    is_alone = strategy.num_replicas_in_sync == 1
    if jit == "on" and not is_alone:
        raise UserError(
            "jit=on compiles the step of one replica; "
            f"{strategy.num_replicas_in_sync} exchange values within it"
        )
    return jit == "on" or (jit == "auto" and is_alone and distribution.uses_gpu())


def _as_dataset(batches: Iterable) -> tf.data.Dataset:
    if isinstance(batches, tf.data.Dataset):
        return batches
    batches = list(batches)
    images, labels = batches[0]
    shapes = (np.shape(images)[1:], np.shape(labels)[1:])
    dtypes = (tf.float32, tf.as_dtype(labels.dtype))
    signature = tuple(
        tf.TensorSpec((None, *shape), dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    )
    return tf.data.Dataset.from_generator(lambda: batches, output_signature=signature)


def _rows_of(index: int, count: int, *batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns one worker's rows of a batch."""
    return tuple(tf.split(part, count)[index] for part in batch)


def _replica_batches(count: int, *batch: tf.Tensor) -> tf.data.Dataset:
    """Returns the rows of each local replica, one after the other."""
    parts = tuple(tf.stack(tf.split(part, count)) for part in batch)
    return tf.data.Dataset.from_tensor_slices(parts)
