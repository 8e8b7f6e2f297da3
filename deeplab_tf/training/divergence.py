"""Stops a training whose weights, images, loss or gradients are not finite."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from deeplab_tf.config import TrainConfig
from deeplab_tf.errors import UserError
from deeplab_tf.training.replicas import sum_over_replicas

# Metrics of each step, in the order of the vector that the graph returns.
STEP_METRICS = (
    *("data_loss", "regularization_loss", "learning_rate", "nonfinite_gradients"),
    *("broken_image", "images"),
)
# Losses to report: enough to see a trend.
_REPORTED_LOSSES = 10
# Largest pixel that a 16-bit image can hold. Pixels are 0..255 by convention, and
# nothing that was an image comes near this bound once it is scaled to them.
_LARGEST_PIXEL = 65535.0
# The largest values in use. A setting beyond them can make a training diverge alone.
_LARGEST_USUAL = {
    "label_weights": 10.0,
    "last_layer_gradient_multiplier": 10.0,
    "weight_decay": 1e-3,
    "focal_gamma": 5.0,
    "momentum": 0.99,
}


class DivergenceCheck:
    """Raises an error that names the cause of a step that is not finite.

    Args:
        config: How the model is trained.
        is_float16: Whether the model computes in float16, which skips such steps.

    Attributes:
        restored: Prefix of the checkpoint that was resumed, if there is one.
    """

    def __init__(self, config: TrainConfig, is_float16: bool):
        self.restored: str | None = None
        self._config = config
        self._is_float16 = is_float16
        self._first_step = 0
        self._losses = collections.deque[float](maxlen=_REPORTED_LOSSES)

    @property
    def _start(self) -> str:
        """Where the weights come from, in words."""
        if self.restored:
            return self.restored
        checkpoint = self._config.tf_initial_checkpoint
        return f"tf_initial_checkpoint={checkpoint}" if checkpoint else "the model"

    def begin(self, step: int) -> None:
        """Notes the step at which a training begins."""
        self._first_step = step
        self._losses.clear()

    def require_finite_values(self, variables: Mapping[str, tf.Variable]) -> None:
        """Refuses to train from weights, averages or accumulators with NaN.

        Raises:
            UserError: naming the first of them.
        """
        name = find_nonfinite(variables)
        if name is not None:
            raise UserError(
                f"{self._start} holds values that are not finite (first: {name}); "
                "start from another checkpoint"
            )

    def require_finite_steps(
        self,
        rows: np.ndarray,
        step: int,
        samples: int,
        name_samples: Callable[[int, int], str] | None,
    ) -> None:
        """Stops after a step that is not finite.

        Args:
            rows: `[steps, STEP_METRICS]`, of which only the last may not be finite.
            step: Optimiser steps done.
            samples: Samples consumed.
            name_samples: Names some samples by the number of the first and their count.

        Raises:
            UserError: naming the image or the setting that caused it.
        """
        metrics = dict(zip(STEP_METRICS, rows[-1].tolist(), strict=True))
        place = int(metrics["broken_image"])
        # NumPy's: TensorFlow's would take the host a quarter of a millisecond.
        is_finite = np.isfinite(rows[-1]).all() and not metrics["nonfinite_gradients"]
        if is_finite and place < 0:
            self._losses.extend(rows[:, 0].tolist())
            return
        self._losses.extend(rows[:-1, 0].tolist())
        step -= not self._is_float16
        if place >= 0:
            number = samples - int(metrics["images"]) + place
            name = f" ({name_samples(number, 1)})" if name_samples else ""
            raise UserError(
                f"image {place} of the batch at step {step}{name} has pixels that are "
                "not finite or absurdly large; correct what makes the images, whose "
                "pixels are 0..255"
            )
        start = self._start if step == self._first_step else None
        raise UserError(
            explain_divergence(
                self._config, step, metrics, self._losses, start, self._is_float16
            )
        )


def is_finite_step(row: tf.Tensor) -> tf.Tensor:
    """Returns whether losses, gradients and images of a step are finite.

    Args:
        row: `[STEP_METRICS]`.
    """
    metrics = dict(zip(STEP_METRICS, tf.unstack(row), strict=True))
    is_finite = tf.reduce_all(tf.math.is_finite(row))
    is_finite &= metrics["nonfinite_gradients"] == 0
    return is_finite & (metrics["broken_image"] < 0)


def find_nonfinite(variables: Mapping[str, tf.Variable]) -> str | None:
    """Returns the name of the first variable that holds NaN or infinity, if any."""
    floating = {n: v for n, v in variables.items() if v.dtype.is_floating}
    if not floating:
        return None
    # Stacked, so that a GPU is waited for once and not for every variable.
    finite = tf.stack([tf.reduce_all(tf.math.is_finite(v)) for v in floating.values()])
    names = zip(floating, finite.numpy(), strict=True)
    return next((name for name, is_finite in names if not is_finite), None)


def find_broken_images(images: tf.Tensor) -> tf.Tensor:
    """Returns which images have a pixel that is not finite or absurdly large.

    Args:
        images: `[batch, height, width, channels]`, 0..255 by convention.

    Returns:
        Booleans `[batch]`.
    """
    pixels = tf.cast(images, tf.float32)
    # Not `~(pixels <= limit)`, which TensorFlow's graphs turn into `pixels > limit`: no
    # NaN is above it.
    is_broken = ~tf.math.is_finite(pixels) | (tf.abs(pixels) > _LARGEST_PIXEL)
    return tf.reduce_any(is_broken, range(1, len(images.shape)))


def find_first_broken_image(images: tf.Tensor) -> tf.Tensor:
    """Returns the place of the first image of `find_broken_images`.

    To be called in a replica context.

    Args:
        images: Those of this replica.

    Returns:
        The place in the batch of all replicas, a float32 scalar that is the same on
        every replica; -1 if no image is broken.
    """
    context = tf.distribute.get_replica_context()
    own_row = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
    broken = tf.cast(find_broken_images(images), tf.float32)
    # Each replica fills its own row, so that the sum holds those of all.
    broken = sum_over_replicas(own_row[:, None] * broken[None])
    first = tf.cast(tf.argmax(tf.reshape(broken, [-1])), tf.float32)
    return tf.where(tf.reduce_any(broken > 0), first, -1.0)


def explain_divergence(
    config: TrainConfig,
    step: int,
    metrics: Mapping[str, float],
    losses: Sequence[float],
    start: str | None,
    is_float16: bool,
) -> str:
    """Returns one line that names the settings which made a step fail.

    Args:
        config: How the model is trained.
        step: Number of the step, from 0.
        metrics: `data_loss` and `learning_rate` of the step.
        losses: Losses of the steps before it, the latest last.
        start: What the weights come from if no step changed them since; else None.
        is_float16: Whether the model computes in float16.
    """
    loss = metrics["data_loss"]
    what = f"the loss is {loss} at step {step}"
    if math.isfinite(loss):
        what = f"the gradients are not finite at step {step} (loss {loss:.3g})"
    causes = _unusual_settings(config)
    if is_float16:
        causes.append("float16 may overflow: precision=bfloat16 does not")
    if start is None:
        causes.insert(0, _learning_rate(config, step, metrics["learning_rate"]))
    else:
        causes.append(
            f"no step has changed the weights, so check where they come from: {start}"
        )
    return f"{what}{_trend(losses)}; {'; '.join(causes)}"


def _trend(losses: Sequence[float]) -> str:
    """Returns how the loss developed, in words."""
    if not losses:
        return ""
    first, last, steps = losses[0], losses[-1], len(losses) - 1
    if not steps:
        return f", after a loss of {last:.3g}"
    verb = "growing" if last > first else "going"
    return f", after {verb} from {first:.3g} to {last:.3g} in {steps} steps"


def _learning_rate(config: TrainConfig, step: int, rate: float) -> str:
    """Names the setting that determines the learning rate of a step."""
    name = "base_learning_rate"
    if config.optimizer == "adam":
        name = "adam_learning_rate"
    elif step < config.slow_start_step:
        name = "slow_start_learning_rate"
    setting = f"{name}={getattr(config, name):g}"
    return f"training diverged: lower {setting} (learning rate {rate:.3g} at this step)"


def _unusual_settings(config: TrainConfig) -> list[str]:
    """Returns a phrase for each setting that is larger than any in use."""
    found = []
    for name, usual in _LARGEST_USUAL.items():
        value = getattr(config, name)
        largest = max(value, default=0.0) if isinstance(value, tuple) else value
        if largest > usual:
            found.append(f"lower {name}: {largest:g} exceeds the usual {usual:g}")
    return found
