"""Stops a training run whose weights, images, loss or gradients are not finite."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from deeplab_tf.config import TrainConfig
from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.training.replicas import sum_over_replicas

# Metrics of each step, in the order of the vector that the graph returns.
STEP_METRICS = (
    *("data_loss", "regularization_loss", "learning_rate", "nonfinite_gradients"),
    *("broken_image", "images"),
)
# Number of recent losses from which an error describes the trend.
_REPORTED_LOSSES = 10
# Largest pixel of a 16-bit image; scaled to 0..255, no image comes near it.
_LARGEST_PIXEL = 65535.0
# Larger values alone can make training diverge.
_LARGEST_USUAL = {
    "label_weights": 10.0,
    "last_layer_gradient_multiplier": 10.0,
    "weight_decay": 1e-3,
    "focal_gamma": 5.0,
    "momentum": 0.99,
}


class DivergenceCheck:
    """Raises an error that names the cause if a step is not finite.

    `restored` is the prefix of the restored checkpoint, if any. A model in float16
    skips such steps.
    """

    def __init__(self, config: TrainConfig, is_float16: bool):
        self.restored: str | None = None
        self._config = config
        self._is_float16 = is_float16
        self._first_step = 0
        self._losses = collections.deque[float](maxlen=_REPORTED_LOSSES)

    @property
    def _source(self) -> str:
        if self.restored:
            return self.restored
        checkpoint = self._config.tf_initial_checkpoint
        return f"tf_initial_checkpoint={checkpoint}" if checkpoint else "the model"

    def reset(self, first_step: int) -> None:
        """Forgets earlier losses; `first_step` is the first step of this run."""
        self._first_step = first_step
        self._losses.clear()

    def require_finite_values(self, variables: Mapping[str, tf.Variable]) -> None:
        """Raises `UserError` unless weights, averages and accumulators are finite."""
        name = find_nonfinite(variables)
        if name is not None:
            raise UserError(
                f"{self._source} contains values that are not finite (first: {name}); "
                "start from a different checkpoint"
            )

    def require_finite_steps(
        self,
        rows: np.ndarray,
        step: int,
        samples: int,
        describe_samples: Callable[[int, int], str] | None,
    ) -> None:
        """Raises a `UserError` that names the image or setting that made a step fail.

        Args:
            rows: `[steps, STEP_METRICS]`, finite except perhaps for the last one.
            step: Optimiser steps done.
            samples: Samples consumed.
            describe_samples: Describes samples, given the first one and their count.
        """
        metrics = dict(zip(STEP_METRICS, rows[-1].tolist(), strict=True))
        place = int(metrics["broken_image"])
        # TensorFlow's `is_finite` would take a quarter of a millisecond.
        is_finite = np.isfinite(rows[-1]).all() and not metrics["nonfinite_gradients"]
        if is_finite and place < 0:
            self._losses.extend(rows[:, 0].tolist())
            return
        self._losses.extend(rows[:-1, 0].tolist())
        step -= not self._is_float16
        if place >= 0:
            number = samples - int(metrics["images"]) + place
            name = f" ({describe_samples(number, 1)})" if describe_samples else ""
            raise UserError(
                f"image {place} of the batch at step {step}{name} has pixels that are "
                "not finite or absurdly large; pixels must be 0..255; fix the code "
                "that produces the images"
            )
        source = self._source if step == self._first_step else None
        raise UserError(
            explain_divergence(
                self._config, step, metrics, self._losses, source, self._is_float16
            )
        )


def is_finite_step(row: tf.Tensor) -> tf.Tensor:
    """Returns whether losses, gradients and images of a step are finite."""
    metrics = dict(zip(STEP_METRICS, tf.unstack(row), strict=True))
    is_finite = tf.reduce_all(tf.math.is_finite(row))
    is_finite &= metrics["nonfinite_gradients"] == 0
    return is_finite & (metrics["broken_image"] < 0)


def find_nonfinite(variables: Mapping[str, tf.Variable]) -> str | None:
    """Returns the name of the first variable with NaN or infinity; None without."""
    floating = {n: v for n, v in variables.items() if v.dtype.is_floating}
    if not floating:
        return None
    # Stack the results, to wait for the GPU only once.
    finite = tf.stack([tf.reduce_all(tf.math.is_finite(v)) for v in floating.values()])
    names = zip(floating, finite.numpy(), strict=True)
    return next((name for name, is_finite in names if not is_finite), None)


def find_broken_images(images: tf.Tensor) -> tf.Tensor:
    """Returns a mask of the images with non-finite or absurdly large pixels.

    Images are `[batch, height, width, channels]`; the result is boolean, `[batch]`.
    """
    pixels = tf.cast(images, tf.float32)
    # TensorFlow's graphs turn `~(pixels <= limit)` into `pixels > limit`, which is
    # false for NaN.
    is_broken = ~tf.math.is_finite(pixels) | (tf.abs(pixels) > _LARGEST_PIXEL)
    return tf.reduce_any(is_broken, range(1, len(images.shape)))


def find_first_broken_image(images: tf.Tensor) -> tf.Tensor:
    """Returns the index of the first broken image in the batch of all replicas, or -1.

    Takes the images of this replica and returns the same float32 scalar on all
    replicas. Call this in a replica context.
    """
    context = tf.distribute.get_replica_context()
    own = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
    is_broken = tf.cast(find_broken_images(images), tf.float32)
    rows = tf.cast(tf.size(is_broken), tf.float32)
    first = tf.cast(tf.argmax(is_broken), tf.float32)
    # Each replica fills its own column, so the sum has all columns.
    column = tf.stack([rows, first, tf.reduce_max(is_broken)])
    rows, first, has_any = tf.unstack(sum_over_replicas(column[:, None] * own))
    positions = tf.cumsum(rows, exclusive=True) + first
    found = tf.gather(positions, tf.argmax(has_any))
    return tf.where(tf.reduce_any(has_any > 0), found, -1.0)


def explain_divergence(
    config: TrainConfig,
    step: int,
    metrics: Mapping[str, float],
    losses: Sequence[float],
    source: str | None,
    is_float16: bool,
) -> str:
    """Returns one line that names the settings which made a step fail.

    Args:
        config: The training options.
        step: Number of the step, from 0.
        metrics: `data_loss` and `learning_rate` of the step.
        losses: Losses of the steps before it, the latest last.
        source: Source of the weights if no step has changed them yet; else None.
        is_float16: Whether the model computes in float16.
    """
    loss = metrics["data_loss"]
    problem = f"the loss is {loss} at step {step}"
    if math.isfinite(loss):
        problem = f"the gradients are not finite at step {step} (loss {loss:.3g})"
    causes = _list_unusual_settings(config)
    if is_float16:
        causes.append("float16 may overflow: precision=bfloat16 does not")
    if source is None:
        rate = metrics["learning_rate"]
        causes.insert(0, _describe_learning_rate(config, step, rate))
    else:
        causes.append(
            f"no step has changed the weights yet, so check their source: {source}"
        )
    return f"{problem}{_describe_trend(losses)}; {'; '.join(causes)}"


def _describe_trend(losses: Sequence[float]) -> str:
    """Describes how the last losses changed, for an error message."""
    if not losses:
        return ""
    first, last, steps = losses[0], losses[-1], len(losses) - 1
    if not steps:
        return f", after a loss of {last:.3g}"
    verb = "growing" if last > first else "going"
    within = pluralize(steps, "step(s)")
    return f", after {verb} from {first:.3g} to {last:.3g} in {within}"


def _describe_learning_rate(config: TrainConfig, step: int, rate: float) -> str:
    """Names the setting that determines the learning rate of a step."""
    name = "base_learning_rate"
    if config.optimizer == "adam":
        name = "adam_learning_rate"
    elif step < config.slow_start_step:
        name = "slow_start_learning_rate"
    setting = f"{name}={getattr(config, name):g}"
    return f"training diverged: lower {setting} (learning rate {rate:.3g} at this step)"


def _list_unusual_settings(config: TrainConfig) -> list[str]:
    """Returns a phrase for each setting that is larger than usual."""
    found = []
    for name, usual in _LARGEST_USUAL.items():
        value = getattr(config, name)
        largest = max(value, default=0.0) if isinstance(value, tuple) else value
        if largest > usual:
            found.append(f"lower {name}: {largest:g} exceeds the usual {usual:g}")
    return found
