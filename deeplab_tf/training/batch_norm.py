"""How batch normalisation is trained: by batch, over replicas, or not at all."""

import dataclasses

import keras
import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.models.variables import batch_normalizations
from deeplab_tf.training.replicas import sum_over_replicas

# The official advice: below this many images, statistics of the batch are too poor.
_ENOUGH = 12


def fused_batch_norm(x, gamma, beta, epsilon: float):
    """Returns what `models.normalization.normalize_batch` does, from one op.

    Keras composes it of a dozen; one makes a step on CPU about a fifth shorter. It
    takes features of half precision as they are and computes in float32.
    """
    return tf.compat.v1.nn.fused_batch_norm(
        x, gamma.value, beta.value, epsilon=epsilon, is_training=True
    )


def _synchronize(x, gamma, beta, epsilon: float):
    """Returns `x` normalised by the moments of all replicas together.

    The mean is exchanged before the squares are taken: the difference of the mean
    square and the squared mean loses all digits where the mean is large.
    """
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    dtype, x = x.dtype, tf.cast(x, tf.float32)

    def average(value):
        return sum_over_replicas(value) / replicas

    mean = average(tf.reduce_mean(x, (0, 1, 2)))
    centred = x - mean
    variance = average(tf.reduce_mean(tf.square(centred), (0, 1, 2)))
    count = tf.cast(tf.size(x) // tf.shape(x)[-1] * replicas, x.dtype)
    unbiased = variance * (count / tf.maximum(count - 1.0, 1.0))
    scale = gamma.value * tf.math.rsqrt(variance + epsilon)
    return tf.cast(centred * scale + beta.value, dtype), mean, unbiased


def set_batch_norm(model: keras.Model, policy: str, replicas: int) -> None:
    """Sets the policy of every batch normalisation of a model.

    Args:
        model: A model of `build_model`.
        policy: "train", "sync" or "freeze".
        replicas: Number of replicas that train together.
    """
    synchronized = policy == "sync" and replicas > 1
    for layer in batch_normalizations(model):
        layer.frozen = policy == "freeze"
        layer.normalize_batch = _synchronize if synchronized else fused_batch_norm


@dataclasses.dataclass(frozen=True)
class BatchNormPolicy:
    """The policy that `auto` resolved to.

    Attributes:
        policy: "train", "sync" or "freeze".
        reason: Why, in words.
    """

    policy: str
    reason: str


def resolve_batch_norm(
    policy: str, images: int, replicas: int, fresh: tuple[str, ...]
) -> BatchNormPolicy:
    """Returns the policy that "auto" means; other policies stay as they are.

    Freezing untrained statistics breaks the layers after them, so that "auto" freezes
    only if a checkpoint has all of them.

    Args:
        policy: "auto", "train", "sync" or "freeze".
        images: Images that a replica sees at once.
        replicas: Number of replicas.
        fresh: Names of moving statistics that no checkpoint has trained.

    Raises:
        UserError: if a single image would have to train batch normalisation.
    """
    resolved = _resolve(policy, images, replicas, fresh)
    seen = images * replicas if resolved.policy == "sync" else images
    if resolved.policy != "freeze" and seen < 2:
        hint = "larger batch"
        if replicas > 1 and resolved.policy != "sync":
            hint += ", --batch_norm=sync"
        if fresh:
            hint += ", a --tf_initial_checkpoint of the whole model to freeze"
        raise UserError(
            f"batch normalisation cannot be trained ({resolved.policy}) on one image "
            f"at a time; use a {hint} or --batch_norm=freeze"
        )
    return resolved


def _resolve(policy: str, images: int, replicas: int, fresh) -> BatchNormPolicy:
    if policy != "auto":
        return BatchNormPolicy(policy, "as asked for")
    if images >= _ENOUGH:
        return BatchNormPolicy("train", f"{images} images per replica are enough")
    total = images * replicas
    if replicas > 1 and total >= _ENOUGH:
        return BatchNormPolicy("sync", f"{images} images per replica, {total} together")
    few = f"{total} images are few"
    if not fresh:
        return BatchNormPolicy(
            "freeze", f"{few}, and the checkpoint has all statistics"
        )
    why = f"{few}, but {len(fresh)} statistics were never trained ({fresh[0]}, ...)"
    return BatchNormPolicy("sync" if replicas > 1 else "train", why)
