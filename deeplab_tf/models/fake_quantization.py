"""Layers that compute in float32 but round as 8-bit arithmetic does (1712.05877).

Weights are symmetric with one scale per output channel, features asymmetric with one
scale per tensor, as in TFLite, ONNX Runtime and OpenVINO.
"""

import math

import keras
from keras import layers, ops, quantizers

# Decay of the range of features, as in the official rewriter.
_DECAY = 0.999


class QuantizedConvolution(layers.Layer):
    """A convolution with rounded weights, folded with its batch normalisation.

    It shares the variables of both layers. Training also folds the moving statistics.
    """

    def __init__(self, convolution: layers.Layer, normalization=None, **kwargs):
        super().__init__(**kwargs)
        self.convolution = convolution
        self.normalization = normalization

    @property
    def parts(self) -> list[layers.Layer]:
        """The convolution and, if there is one, its normalisation."""
        return [x for x in (self.convolution, self.normalization) if x is not None]

    @property
    def _is_depthwise(self) -> bool:
        return isinstance(self.convolution, layers.DepthwiseConv2D)

    def call(self, x):
        """Returns the features, normalised if there is a normalisation."""
        convolution, kernel, offset = self.convolution, self.convolution.kernel, None
        if self.normalization is not None:
            kernel, offset = self._fold()
        values = [(convolution.kernel, self.round_kernel(kernel))]
        if convolution.use_bias:
            bias = ops.convert_to_tensor(convolution.bias)
            values.append((convolution.bias, bias))
        with keras.StatelessScope(values, initialize_variables=False):
            x = convolution(x)
        return x if offset is None else x + offset

    def _fold(self):
        """Returns the folded kernel, and the offset of each channel."""
        folded, kernel = self.normalization, self.convolution.kernel
        scale = folded.gamma * ops.rsqrt(folded.moving_variance + folded.epsilon)
        offset = folded.beta - folded.moving_mean * scale
        if self._is_depthwise:
            # The kernel is `[height, width, channels, multiplier]`.
            scale = ops.reshape(scale, kernel.shape[2:])
        return kernel * scale, offset

    def round_kernel(self, kernel):
        """Returns a kernel with 255 levels per output channel."""
        kernel = ops.convert_to_tensor(kernel)
        shape = kernel.shape
        if self._is_depthwise:
            kernel = ops.reshape(kernel, (*shape[:2], 1, -1))
        limit = ops.max(ops.abs(kernel), axis=(0, 1, 2))
        rounded = quantizers.fake_quant_with_min_max_vars(
            kernel, -limit, limit, narrow_range=True, axis=-1
        )
        return ops.reshape(rounded, shape)

    def compute_output_spec(self, x):
        """Returns the symbolic output."""
        return self.convolution.compute_output_spec(x)


class FakeQuantization(layers.Layer):
    """Rounds features to 256 levels of a range.

    In training, the range is the moving average of the smallest and the largest value
    of each batch, without a bias towards its initial value.

    Args:
        limits: A fixed range; None learns it.
        **kwargs: Passed to the layer.
    """

    def __init__(self, limits: tuple[float, float] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.limits = limits and tuple(limits)

    def build(self, input_shape):
        """Creates the learned range, and the number of batches that it averages."""
        if self.limits is not None:
            return
        self.min, self.max, self.batches = (
            self.add_weight((), "zeros", trainable=False, name=name)
            for name in ("min", "max", "batches")
        )

    def call(self, x, training=None):
        """Returns the rounded features, in training with the updated range."""
        if self.limits is not None:
            return quantizers.fake_quant_with_min_max_vars(x, *self.limits)
        if training:
            self._update_range(x)
        return quantizers.fake_quant_with_min_max_vars(x, self.min, self.max)

    def _update_range(self, x) -> None:
        """Updates the moving averages of the smallest and the largest value."""
        self.batches.assign_add(1.0)
        # `1 - decay ** batches` would lose most of its digits.
        share = (_DECAY - 1.0) / ops.expm1(math.log(_DECAY) * self.batches)
        # Padding adds 0, which must therefore be in the range.
        low, high = ops.minimum(ops.min(x), 0.0), ops.maximum(ops.max(x), 0.0)
        self.min.assign_add(share * (low - self.min))
        self.max.assign_add(share * (high - self.max))

    def compute_output_shape(self, input_shape):
        """Returns the shape of the input."""
        return input_shape

    def get_config(self):
        """Returns the constructor arguments."""
        return {**super().get_config(), "limits": self.limits}
