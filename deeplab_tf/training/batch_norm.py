"""Batch normalisation policies: per replica, over all replicas, or frozen."""

import dataclasses

import keras
import tensorflow as tf

from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.models.variables import batch_normalizations
from deeplab_tf.training.replicas import sum_over_replicas

# Official advice: batch statistics of fewer images are too noisy.
_ENOUGH = 12


def fused_batch_norm(x, gamma, beta, epsilon: float):
    """Fused version of `models.normalization.normalize_batch`.

    On CPU, a step takes about a fifth less time than with the dozen ops of Keras.
    Features may be in half precision; the computation is in float32.
    """
    return tf.compat.v1.nn.fused_batch_norm(
        x, gamma.value, beta.value, epsilon=epsilon, is_training=True
    )


def _synchronize(x, gamma, beta, epsilon: float):
    """Normalises `x` by the moments over all replicas.

    The mean is reduced before squaring, because `E[x^2] - E[x]^2` loses all digits if
    the mean is large.
    """
    dtype, x = x.dtype, tf.cast(x, tf.float32)
    own = tf.cast(tf.size(x) // tf.shape(x)[-1], x.dtype)

    def average(value):
        """Returns the average over all pixels, and their number."""
        # Replicas may have different numbers of images.
        mean = tf.reduce_mean(value, (0, 1, 2))
        sums = sum_over_replicas(tf.concat([mean * own, [own]], 0))
        return sums[:-1] / sums[-1], sums[-1]

    mean, count = average(x)
    centred = x - mean
    variance, _ = average(tf.square(centred))
    unbiased = variance * (count / tf.maximum(count - 1.0, 1.0))
    scale = gamma.value * tf.math.rsqrt(variance + epsilon)
    return tf.cast(centred * scale + beta.value, dtype), mean, unbiased


def set_batch_norm(model: keras.Model, policy: str, replicas: int) -> None:
    """Sets the policy of every batch normalisation: "train", "sync" or "freeze"."""
    synchronized = policy == "sync" and replicas > 1
    for layer in batch_normalizations(model):
        layer.frozen = policy == "freeze"
        layer.normalize_batch = _synchronize if synchronized else fused_batch_norm


@dataclasses.dataclass(frozen=True)
class BatchNormPolicy:
    """A policy ("train", "sync" or "freeze") and the reason for it."""

    name: str
    reason: str


def resolve_batch_norm(
    policy: str, images: int, replicas: int, untrained: tuple[str, ...]
) -> BatchNormPolicy:
    """Resolves the policy "auto"; returns other policies unchanged.

    Freezing untrained statistics breaks the layers after them, so "auto" freezes
    statistics only if a checkpoint has all of them.

    Args:
        policy: "auto", "train", "sync" or "freeze".
        images: Images per replica and forward pass.
        replicas: Number of replicas.
        untrained: Names of moving statistics that no checkpoint has.

    Raises:
        UserError: if batch normalisation would be trained on single images.
    """
    resolved = _choose_policy(policy, images, replicas, untrained)
    batch = images * replicas if resolved.name == "sync" else images
    if resolved.name != "freeze" and batch < 2:
        hint = "larger batch"
        if replicas > 1 and resolved.name != "sync":
            hint += ", --batch_norm=sync"
        if untrained:
            hint += ", a --tf_initial_checkpoint of the complete model"
        raise UserError(
            f"batch normalisation cannot be trained ({resolved.name}) on one image "
            f"at a time; use a {hint} or --batch_norm=freeze"
        )
    return resolved


def _choose_policy(
    policy: str, images: int, replicas: int, untrained
) -> BatchNormPolicy:
    """Returns the policy and its reason, without checking it."""
    if policy != "auto":
        return BatchNormPolicy(policy, "as requested")
    if images >= _ENOUGH:
        return BatchNormPolicy("train", f"{images} images per replica are enough")
    total = images * replicas
    if replicas > 1 and total >= _ENOUGH:
        per_replica = pluralize(images, "image(s) per replica")
        return BatchNormPolicy("sync", f"{per_replica}, {total} together")
    few = f"a batch of {total} is small"
    if not untrained:
        return BatchNormPolicy(
            "freeze", f"{few}, and the checkpoint has all statistics"
        )
    reason = (
        f"{few}, but {len(untrained)} statistics were never trained ({untrained[0]}, "
        "...)"
    )
    return BatchNormPolicy("sync" if replicas > 1 else "train", reason)
