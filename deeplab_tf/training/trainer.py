"""The training loop: one compiled step, repeated, reported and saved."""

import math
import time
from collections.abc import Iterable

import keras
import tensorflow as tf
from tqdm import tqdm

from deeplab_tf.config import TrainConfig
from deeplab_tf.data.reader import batches
from deeplab_tf.errors import UserError
from deeplab_tf.models.resampling import spatial_size
from deeplab_tf.models.variables import (
    batch_normalizations,
    dropout_seeds,
    official_variables,
)
from deeplab_tf.training import losses, optimizer, resume


def _fused_batch_norm(x, gamma, beta, epsilon: float):
    """Returns what `models.normalization.normalize_batch` does, from one op.

    Keras composes it of a dozen; one makes a step on CPU about a fifth shorter.
    """
    return tf.compat.v1.nn.fused_batch_norm(
        x, gamma.value, beta.value, epsilon=epsilon, is_training=True
    )


class Trainer:
    """Trains a model with the official semantics.

    Args:
        model: A model of `build_model`. With `fine_tune_batch_norm=False` its
            batch normalisations are frozen.
        config: How to train.

    Raises:
        UserError: for label weights that do not fit the classes.
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
        for layer in batch_normalizations(model):
            layer.frozen = not config.fine_tune_batch_norm
            layer.normalize_batch = _fused_batch_norm
        variables = official_variables(model)
        self._trained = {n: v for n, v in variables.items() if v.trainable}
        self._multipliers = [
            optimizer.gradient_multiplier(name, config) for name in self._trained
        ]
        self._network = model
        if not config.upsample_logits:
            self._network = keras.Model(model.input, model.get_layer("logits").output)
        self.optimizer = optimizer.make_optimizer(config)
        self.optimizer.build(list(self._trained.values()))
        self._samples = tf.Variable(0, dtype=tf.int64, name="samples")
        self._state = None
        if config.train_logdir is not None:
            self._state = resume.TrainingState(
                config.train_logdir,
                variables,
                optimizer.slots(self.optimizer, self._trained),
                self.optimizer.iterations,
                self._samples,
                dropout_seeds(model),
            )
        # XLA makes depthwise convolutions on CPU some twenty times slower.
        self._compiled_step = tf.function(
            self._step, jit_compile=False, reduce_retracing=True
        )

    @property
    def step(self) -> int:
        """Number of optimiser steps done."""
        return int(self.optimizer.iterations.numpy())

    @property
    def samples(self) -> int:
        """Number of training samples consumed; `start` of `load_dataset`."""
        return int(self._samples.numpy())

    def restore_latest(self) -> str | None:
        """Goes on from the latest checkpoint of `train_logdir`, if there is one.

        Returns:
            The prefix of the checkpoint, or None.

        Raises:
            UserError: if it is of another model.
        """
        return self._state and self._state.restore_latest()

    def _data_loss(self, images, labels):
        config = self.config
        logits = self._network(images, training=True)
        if not config.upsample_logits:
            labels = losses.shrink_labels(labels, spatial_size(logits))
        share = losses.mined_share(
            self.optimizer.iterations,
            config.top_k_percent_pixels,
            config.hard_example_mining_step,
        )
        return losses.segmentation_loss(
            labels, logits, config.ignore_label, config.label_weights, share
        )

    def _step(self, images, labels):
        trained = list(self._trained.values())
        with tf.GradientTape() as tape:
            data_loss = self._data_loss(images, labels)
            decay = losses.regularization_loss(self._trained, self.config.weight_decay)
            total = data_loss + decay
        gradients = tape.gradient(total, [v.value for v in trained])
        gradients = [g * m for g, m in zip(gradients, self._multipliers, strict=True)]
        learning_rate = tf.identity(self.optimizer.learning_rate)
        self.optimizer.apply(gradients, trained)
        self._samples.assign_add(tf.shape(images, out_type=tf.int64)[0])
        return {
            "data_loss": data_loss,
            "regularization_loss": decay,
            "learning_rate": learning_rate,
        }

    def train_step(self, images, labels) -> dict[str, float]:
        """Does one optimiser step.

        Args:
            images: RGB 0..255, `[batch, height, width, 3]`.
            labels: Class ids, `[batch, height, width]` or `[..., 1]`.

        Returns:
            `data_loss`, `regularization_loss` and `learning_rate`, all of the
            weights before the update.
        """
        results = self._compiled_step(
            tf.convert_to_tensor(images, tf.float32), tf.convert_to_tensor(labels)
        )
        return {name: float(value) for name, value in results.items()}

    def train(self, dataset: Iterable) -> dict[str, float]:
        """Trains up to `training_number_of_steps`, saving along the way.

        Args:
            dataset: Batches of images and labels, as `load_dataset` gives them.

        Returns:
            The results of the last step.

        Raises:
            UserError: if the loss stops being a number, or the data end early.
        """
        config, results = self.config, {}
        saved_at = time.monotonic()
        data = iter(batches(dataset))
        with tqdm(
            total=config.training_number_of_steps,
            initial=self.step,
            desc="training",
            unit="step",
        ) as progress:
            while (step := self.step) < config.training_number_of_steps:
                images, labels = _next(data, step)
                results = self.train_step(images, labels)
                _require_finite(results, step)
                progress.update()
                self._report(progress, results, len(images))
                if self._due(step + 1, saved_at):
                    self._state.save()
                    saved_at = time.monotonic()
        return results

    def _report(self, progress, results, batch_size) -> None:
        if progress.n % self.config.log_steps == 0:
            rate = progress.format_dict["rate"] or 0.0
            progress.set_postfix(
                loss=f"{results['data_loss']:.3f}",
                lr=f"{results['learning_rate']:.2g}",
                img_per_s=f"{rate * batch_size:.1f}",
            )

    def _due(self, step: int, saved_at: float) -> bool:
        """Whether a checkpoint is to be written after this many steps."""
        config = self.config
        if self._state is None:
            return False
        every = config.save_interval_steps
        return (
            step == config.training_number_of_steps
            or bool(every and step % every == 0)
            or time.monotonic() - saved_at > config.save_interval_secs
        )


def _next(data, step: int):
    try:
        return next(data)
    except StopIteration:
        raise UserError(f"the dataset ended after {step} steps") from None


def _require_finite(results: dict[str, float], step: int) -> None:
    if not math.isfinite(results["data_loss"]):
        raise UserError(
            f"the loss is {results['data_loss']} at step {step}; a lower "
            "base_learning_rate, a larger batch or fine_tune_batch_norm=false may "
            "help, and so may a look at the labels"
        )
