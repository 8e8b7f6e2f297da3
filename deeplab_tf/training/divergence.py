"""Explains a training step whose loss or gradients are not finite."""

import math
from collections.abc import Mapping, Sequence

import tensorflow as tf

from deeplab_tf.config import TrainConfig

# Losses to report: enough to see a trend.
REPORTED_LOSSES = 10
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


def first_not_finite(variables: Mapping[str, tf.Variable]) -> str | None:
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
