"""Pointwise convolutions as matrix products, which are faster on CPU.

On CPU, TensorFlow's convolutions repack the kernel in every forward and backward pass.
With small feature maps, this takes much of the time (`benchmarks/op_profile.py`).
"""

import math

import keras
from keras import layers, ops

# With more positions (batch * height * width), convolutions are faster.
_MOST_POSITIONS = 1 << 14


class PointwiseMatmul(layers.Layer):
    """Computes a pointwise convolution as a matrix product if that is faster.

    It shares the variables of the convolution.
    """

    def __init__(self, convolution: layers.Conv2D, **kwargs):
        super().__init__(dtype=convolution.dtype_policy, **kwargs)
        self.convolution = convolution

    def call(self, x):
        """Returns the convolved features."""
        positions = x.shape[:-1]
        if None in positions or math.prod(positions) > _MOST_POSITIONS:
            return self.convolution(x)
        channels, filters = self.convolution.kernel.shape[2:]
        # The gradient of `kernel[0, 0]` would be written twice.
        kernel = ops.reshape(self.convolution.kernel, (channels, filters))
        y = ops.matmul(ops.reshape(x, (-1, channels)), kernel)
        if self.convolution.use_bias:
            y = y + self.convolution.bias
        y = ops.reshape(y, (*positions, filters))
        return self.convolution.activation(y)

    def compute_output_spec(self, x):
        """Returns the symbolic output."""
        return self.convolution.compute_output_spec(x)


def _is_pointwise(layer: keras.Layer) -> bool:
    return (
        type(layer) is layers.Conv2D
        and layer.kernel_size == layer.strides == (1, 1)
        and layer.groups == 1
        and layer.data_format == "channels_last"
    )


def convert_pointwise_to_matmul(model: keras.Model) -> keras.Model:
    """Returns a model that computes small pointwise convolutions as matrix products.

    It shares all variables, and its outputs differ only by rounding.
    """

    def convert(layer):
        if isinstance(layer, keras.Model):
            return convert_pointwise_to_matmul(layer)
        if _is_pointwise(layer):
            return PointwiseMatmul(layer, name=layer.name)
        return layer

    return keras.models.clone_model(model, clone_function=convert)
