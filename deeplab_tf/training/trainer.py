"""The training loop: runs, checks, reports and saves compiled steps."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from deeplab_tf.arguments import Elements, check_arguments
from deeplab_tf.checkpoints.keys import AVERAGE_KEY, MODEL_KEY
from deeplab_tf.config import TrainConfig
from deeplab_tf.data.info import DatasetInfo, generic_info
from deeplab_tf.data.reader import translate_data_errors
from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.files.locks import training_lock
from deeplab_tf.models.checks import BUILT
from deeplab_tf.models.pointwise import convert_pointwise_to_matmul
from deeplab_tf.models.recomputation import recompute_backbone
from deeplab_tf.models.variables import dropout_seeds, official_variables
from deeplab_tf.training import distribution, optimizer
from deeplab_tf.training.averages import MovingAverages
from deeplab_tf.training.batch_norm import set_batch_norm
from deeplab_tf.training.divergence import (
    STEP_METRICS,
    DivergenceCheck,
    find_first_broken_image,
    is_finite_step,
)
from deeplab_tf.training.half_precision import HalfPrecisionStep, is_half_precision
from deeplab_tf.training.interruption import Interrupted, Interruption
from deeplab_tf.training.losses import check_label_weights
from deeplab_tf.training.quantization import QuantizationDelay
from deeplab_tf.training.replicas import Batches, Replicas
from deeplab_tf.training.reporter import Reporter, Scoring
from deeplab_tf.training.schedule import Schedule
from deeplab_tf.training.state import TrainingState
from deeplab_tf.training.step import TrainStep, training_outputs

_BATCHES = Elements(
    "batches of images and labels, such as those of load_dataset", functions=True
)


class Trainer:
    """Trains a model with the semantics of the official code.

    Uses the strategy under which the model was built; batches have the rows of all
    replicas.

    Args:
        model: A model from `build_model`, or from `build_classifier` with one-pixel
            labels. Its batch normalisation is set to `config.normalization`.
        config: The training options.

    Raises:
        UserError: if the label weights do not match the classes, or the strategy does
            not support `config.jit`.
    """

    last_evaluation: Mapping = {}  # metrics of the last evaluation of `train`

    @check_arguments(model=BUILT)
    def __init__(self, model: keras.Model, config: TrainConfig):
        self._num_classes = model.model_config.num_classes
        check_label_weights(config.label_weights, self._num_classes)
        self.config = config
        self.strategy = model.distribute_strategy
        self._replicas = Replicas(self.strategy)
        self.worker = self._replicas.worker
        self.compiles = distribution.resolve_jit(config.jit, self.strategy)
        set_batch_norm(model, config.normalization, self._replicas.count)
        with self.strategy.scope():
            self._quantization = QuantizationDelay(model, config, self._replicas.count)
            self._variables = official_variables(self._quantization.model)
            trained = {n: v for n, v in self._variables.items() if v.trainable}
            self.optimizer = optimizer.make_optimizer(config)
            optimizer.build_optimizer(self.optimizer, trained, config)
            self._averages = MovingAverages(model, config.ema_decay)
        self._samples = tf.Variable(0, dtype=tf.int64, name="samples")
        self._seeds = dropout_seeds(model)
        self._replicas.offset_seeds(self._seeds)
        self._step, self._half = self._make_step()
        self._check = DivergenceCheck(config, is_float16=self._half is not None)
        self._slots = optimizer.slot_variables(self.optimizer, trained)
        self._state = self._make_state(config.train_logdir)
        self._saved_at = time.monotonic()
        self._compiled_steps = tf.function(self._repeat_step, reduce_retracing=True)

    def _make_step(self) -> tuple[Callable, HalfPrecisionStep | None]:
        """Makes the step of one replica and, in float16, that of all replicas."""
        model, replicas = self.model, self._replicas
        network = self._quantization.make_network(
            self._make_network, self.optimizer.iterations
        )
        step = TrainStep(model, self.config, network, self.optimizer, self._averages)
        is_half = is_half_precision(model)
        half = HalfPrecisionStep(step, replicas, self.compiles) if is_half else None
        return replicas.compile(step, self.compiles), half

    def _make_network(self, model: keras.Model) -> keras.Model:
        """Returns the model's training outputs, optimised for this device."""
        network = training_outputs(model)
        if not (self.compiles or self._replicas.is_accelerated):
            network = convert_pointwise_to_matmul(network)
        return recompute_backbone(network) if self.config.recompute else network

    def _make_state(self, folder: str | None) -> TrainingState | None:
        """Returns the state to save and restore; None without a folder."""
        if folder is None:
            return None
        groups = {
            MODEL_KEY: self._variables,
            "optimizer": self._slots,
            "seeds": self._seeds,
            AVERAGE_KEY: self._averages.variables,
            "loss_scale": self._half.scale.variables if self._half else {},
        }
        return TrainingState(
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
    def model(self) -> keras.Model:
        """The model that the last step trained; see `quantize_delay_step`."""
        return self._quantization.model_at(self.step)

    @property
    def samples(self) -> int:
        """Number of training samples consumed; pass it to `load_dataset` as `start`."""
        return int(self._samples.numpy())

    def restore_latest(self) -> str | None:
        """Restores the latest intact checkpoint of `train_logdir`.

        Returns:
            The checkpoint prefix, or None if there is no checkpoint.

        Raises:
            UserError: if the checkpoint does not match the model, no checkpoint is
                intact, or the weights are not finite.
        """
        prefix = self._state.restore_latest() if self._state else None
        self._check.restored = prefix
        self._require_finite_values()
        if prefix:
            self._replicas.offset_seeds(self._seeds)
        else:
            self._averages.start()
        return prefix

    @check_arguments(dataset=_BATCHES)
    def train(
        self,
        dataset: Batches,
        validation: Scoring | None = None,
        info: DatasetInfo | None = None,
        describe_samples: Callable[[int, int], str] | None = None,
    ) -> dict[str, float]:
        """Trains up to `training_number_of_steps` and saves checkpoints.

        Locks `train_logdir`. On SIGTERM, SIGHUP or Ctrl-C it saves after the current
        host call and exits with status 143, 129 or 130.

        Args:
            dataset: Batches of images and labels, as returned by `load_dataset`, or a
                function of `(worker, num_workers)` that returns the rows of a worker.
            validation: How to score the model every `eval_interval_steps`.
            info: Class names and colours for reports.
            describe_samples: Describes training samples in error messages, given the
                first one and their count.

        Returns:
            The metrics of the last step; see `train_step`.

        Raises:
            UserError: if another process is training in `train_logdir` or removes it;
                if weights, losses or gradients are not finite; if the dataset ends
                early; or if a checkpoint cannot be written.
        """
        data, metrics = None, dict[str, float]()
        with (
            self._lock_folder(),
            Interruption() as interruption,
            self._make_reporter(validation, info) as reporter,
            distribution.report_lost_workers(self.worker),
        ):
            self._start(reporter)
            while True:
                # Save first: evaluation is slow and may fail.
                self._evaluate_if_due(reporter, validation)
                if self._is_done(reporter.evaluations_since_best):
                    break
                data = data or self.iterate(dataset)
                metrics, save = self._advance(data, reporter, describe_samples)
                stop, save = self._replicas.any_worker(bool(interruption.signal), save)
                checkpoint = self._save(reporter) if save or stop else None
                if stop:
                    end = f"saved {checkpoint}" if checkpoint else "nothing was saved"
                    reporter.print(f"interrupted after step {self.step}; {end}")
                    raise Interrupted(interruption.number, checkpoint)
            reporter.finish()
            self.last_evaluation = reporter.metrics
        return metrics

    @check_arguments()
    def train_step(self, images: ArrayLike, labels: ArrayLike) -> dict[str, float]:
        """Runs one optimiser step.

        Args:
            images: RGB 0..255 of all replicas, `[batch, height, width, 3]`.
            labels: Class ids, `[batch, height, width]` or `[..., 1]`.

        Returns:
            `data_loss`, `regularization_loss` and `learning_rate`, from before the
            update.
        """
        if np.ndim(images) != 4:
            raise UserError(
                "images must have the shape [batch, height, width, channels]; received "
                f"{list(np.shape(images))}"
            )
        dataset = tf.data.Dataset.from_tensors(
            (tf.convert_to_tensor(images, tf.float32), tf.convert_to_tensor(labels))
        )
        rows, _ = self.train_steps(self.iterate(dataset), 1)
        return _select_public_metrics(rows[0])

    def train_steps(self, data: Iterator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Runs up to `count` steps in one host call; stops at one that is not finite.

        `data` is an iterator from `iterate`. Returns the `STEP_METRICS` of each step,
        `[steps, 6]`, and the sum of their class counts, `[3, num_classes]` (see
        `count_classes`).
        """
        rows, classes = self._compiled_steps(data, tf.constant(count))
        return rows.numpy(), classes.numpy()

    def iterate(self, dataset: Batches) -> Iterator:
        """Returns an iterator for `train_steps`; see `Replicas.iterate`."""
        return self._replicas.iterate(dataset)

    def averaged_weights(self) -> contextlib.AbstractContextManager:
        """Temporarily swaps in the EMA weights, if there are any."""
        return self._averages.swap_in()

    def _repeat_step(
        self, iterator: Iterator, count: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs up to `count` steps; returns `[steps, STEP_METRICS]` and class counts.

        Stops after the first step whose metrics are not finite.
        """
        rows = tf.TensorArray(tf.float32, 0, True, element_shape=[len(STEP_METRICS)])
        classes = tf.zeros([3, self._num_classes])
        done, is_finite = tf.constant(0), tf.constant(True)
        while done < count and is_finite:
            images, labels = next(iterator)
            metrics = self._step_and_check(images, labels)
            row = tf.stack([metrics[name] for name in STEP_METRICS])
            # Without it, a batch of static size is counted even if the data have ended.
            with tf.control_dependencies([row]):
                self._samples.assign_add(tf.cast(metrics["images"], tf.int64))
            rows = rows.write(done, row)
            classes += metrics["classes"]
            is_finite = is_finite_step(row)
            done += 1
        return rows.stack(), classes

    @tf.autograph.experimental.do_not_convert
    def _step_and_check(
        self, images: tf.Tensor, labels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Runs a step on all replicas and locates a broken image if the step failed."""
        replicas = self._replicas
        if self._half is not None:
            metrics, is_finite = self._half(images, labels)
        else:
            metrics = replicas.first(replicas.run(self._step, images, labels))
            is_finite = metrics["nonfinite_gradients"] == 0
        for name in ("data_loss", "regularization_loss"):
            is_finite &= tf.math.is_finite(metrics[name])

        def find() -> tf.Tensor:
            return replicas.first(replicas.run(find_first_broken_image, images))

        # All replicas agree on `is_finite`, so that all of them search or none.
        broken_image = tf.cond(is_finite, lambda: tf.constant(-1.0), find)
        return metrics | {"broken_image": broken_image}

    def _advance(
        self,
        data: Iterator,
        reporter: Reporter,
        describe_samples: Callable[[int, int], str] | None,
    ) -> tuple[dict[str, float], bool]:
        """Runs one host call; returns the last metrics and whether a save is due."""
        step = self.step
        with translate_data_errors(), self._translate_end_of_data():
            rows, classes = self.train_steps(data, self._schedule.count_steps(step))
        self._check.require_finite_steps(
            rows, self.step, self.samples, describe_samples
        )
        done = self.step - step  # float16 skips steps that overflow
        reporter.log_steps(step, rows[len(rows) - done :], classes, self.samples)
        seconds = time.monotonic() - self._saved_at
        is_due = done > 0 and self._schedule.is_save_due(self.step, seconds)
        return _select_public_metrics(rows[-1]), is_due

    @property
    def _schedule(self) -> Schedule:
        steps_per_call = 10 if self._replicas.is_accelerated else 1
        return Schedule(self.config, self.config.steps_per_call or steps_per_call)

    def _lock_folder(self) -> contextlib.AbstractContextManager:
        folder = self.config.train_logdir
        if folder is None or not self.worker.is_chief:
            return contextlib.nullcontext()
        return training_lock(folder)

    @contextlib.contextmanager
    def _translate_end_of_data(self) -> Iterator[None]:
        """Raises `UserError` if the dataset ends before the training does."""
        try:
            yield
        except tf.errors.OutOfRangeError:
            steps = pluralize(self.step, "step(s)")
            raise UserError(
                f"the dataset ended after {steps}; repeat it, or lower "
                "training_number_of_steps"
            ) from None

    def _make_reporter(
        self, validation: Scoring | None, info: DatasetInfo | None
    ) -> Reporter:
        info = info or generic_info(self._num_classes)
        return Reporter(self.config, info, self.worker, validation)

    def _is_done(self, evaluations_since_best: int) -> bool:
        """Returns whether all steps are done or the score no longer improves."""
        limit = self.config.early_stop_evals
        is_stuck = bool(limit) and evaluations_since_best >= limit
        return is_stuck or self.step >= self.config.training_number_of_steps

    def _start(self, reporter: Reporter) -> None:
        """Prepares checks, averages and reports for the first step of this run."""
        self._saved_at = time.monotonic()
        self._require_finite_values()
        self._check.reset(self.step)
        if self.step == 0:
            self._averages.start()
        reporter.restart(self.step, self.samples)
        variables, folder = self._variables.values(), self.config.train_logdir
        self._replicas.require_same_start(self.step, self.samples, variables, folder)

    def _require_finite_values(self) -> None:
        averages = self._averages.variables.items()
        variables = self._variables | self._slots
        variables |= {f"{AVERAGE_KEY}/{name}": v for name, v in averages}
        self._check.require_finite_values({n: v.value for n, v in variables.items()})

    def _evaluate_if_due(self, reporter: Reporter, validation: Scoring | None) -> None:
        """Scores the model; a resumed run makes up for a missed evaluation."""
        step, replicas = self.step, self._replicas
        if validation is None or not self._schedule.is_evaluation_due(step):
            return
        if reporter.has_evaluated(step):
            return
        if self.worker.count > 1 and self.config.normalization == "train":
            # Each worker has its own moving statistics; the chief's are saved.
            moving = {n: v for n, v in self._variables.items() if not v.trainable}
            averages = self._averages.variables.items()
            moving |= {f"{AVERAGE_KEY}/{n}": v for n, v in averages if n in moving}
            replicas.copy_from_chief(list(moving.values()))
        with self.averaged_weights():
            is_best = reporter.evaluate(
                step, self.model, self.worker, replicas.sum_over_workers
            )
        if is_best and self._state is not None:
            self._state.save_best()
            reporter.write_best_metrics()
        reporter.flush()

    def _save(self, reporter: Reporter) -> str | None:
        """Saves a checkpoint; returns its prefix, or None without a `train_logdir`."""
        reporter.flush()
        prefix = self._state.save() if self._state is not None else None
        self._saved_at = time.monotonic()
        return prefix


def _select_public_metrics(row: np.ndarray) -> dict[str, float]:
    return dict(zip(STEP_METRICS[:3], map(float, row), strict=False))
