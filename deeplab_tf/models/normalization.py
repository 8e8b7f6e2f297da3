"""Normalisation of raw pixels, and of features over a batch."""

import keras
from keras import layers, ops

# The fused op of TF1 raises smaller epsilons, such as the official 1e-5, to this.
_FUSED_EPSILON = 1.001e-5


@keras.saving.register_keras_serializable("deeplab_tf")
class PixelScaling(layers.Layer):
    """Scales pixels: `x * scale + offset`, each one number or one per channel.

    If TensorFlow is installed, Keras' `Rescaling` imports it on every backend.
    """

    def __init__(self, scale=1.0, offset=0.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.offset = offset

    def call(self, x):
        """Returns the scaled pixels."""
        scale = ops.convert_to_tensor(self.scale, x.dtype)
        return x * scale + ops.convert_to_tensor(self.offset, x.dtype)

    def compute_output_shape(self, input_shape):
        """Returns the shape of the input."""
        return input_shape

    def get_config(self):
        """Returns the constructor arguments."""
        own = {"scale": self.scale, "offset": self.offset}
        return {**super().get_config(), **own}


def normalize_batch(x, gamma, beta, epsilon: float):
    """Normalises `x` by its own moments; gradients flow through them.

    Computes in float32 regardless of the dtype of `x`.

    Args:
        x: `[batch, height, width, channels]`.
        gamma: Scale per channel.
        beta: Offset per channel.
        epsilon: Added to the variance.

    Returns:
        The normalised features in the dtype of `x`; mean and unbiased variance per
        channel.
    """
    dtype = x.dtype
    x = _cast_to_float32_or_more(x)
    mean, variance = ops.moments(x, axes=(0, 1, 2))
    batch, height, width, _ = ops.shape(x)
    count = ops.cast(batch * height * width, x.dtype)
    scale = gamma * ops.rsqrt(variance + epsilon)
    unbiased = variance * (count / ops.maximum(count - 1.0, 1.0))
    return ops.cast(x * scale + (beta - mean * scale), dtype), mean, unbiased


def _cast_to_float32_or_more(x):
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


@keras.saving.register_keras_serializable("deeplab_tf")
class BatchNormalization(layers.BatchNormalization):
    """Batch normalisation with the semantics of the official graph.

    The moving variance averages the unbiased batch variance (n / (n - 1)), like the
    fused op of TF1. There are two ways to stop updating the moving statistics. With
    `trainable = False`, the layer runs in inference mode, and gamma and beta are not
    trained, as in Keras. With `frozen`, it also normalises by the moving statistics in
    training, but gamma and beta are trained: the official `fine_tune_batch_norm=False`.

    The trainer replaces `normalize_batch` with its own implementation.
    """

    def __init__(self, frozen: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.frozen = frozen
        self.normalize_batch = normalize_batch

    def call(self, inputs, training=None):
        """Returns the normalised features; training uses the batch statistics."""
        if not training or self.frozen or not self.trainable:
            scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
            offset = self.beta - self.moving_mean * scale
            x = _cast_to_float32_or_more(inputs) * scale + offset
            return ops.cast(x, self.compute_dtype)
        x, *moments = self.normalize_batch(inputs, self.gamma, self.beta, self.epsilon)
        moving_moments = (self.moving_mean, self.moving_variance)
        for moving, value in zip(moving_moments, moments, strict=True):
            moving.assign(moving + (1.0 - self.momentum) * (value - moving))
        return ops.cast(x, self.compute_dtype)

    def get_config(self):
        """Returns the constructor arguments."""
        return {**super().get_config(), "frozen": self.frozen}


def make_batch_norm(
    momentum: float | None, epsilon: float | None, official: tuple[float, float]
):
    """Returns a function `(x, scope) -> x` that normalises with `<scope>.BatchNorm`.

    `momentum` is the decay of the moving statistics, and `epsilon` is added to the
    variance; None means that of `official`.
    """
    momentum = official[0] if momentum is None else momentum
    epsilon = max(official[1] if epsilon is None else epsilon, _FUSED_EPSILON)

    def batch_norm(x, scope: str):
        name = f"{scope}.BatchNorm"
        return BatchNormalization(momentum=momentum, epsilon=epsilon, name=name)(x)

    return batch_norm
