"""Pointwise convolutions as products of matrices, which suit a CPU better.

TensorFlow's convolutions on a CPU bring the kernel into an order of their own in every
step, forward and backward, and products take it as it is. Where features have few
positions, that is a good part of the time (`benchmarks/op_profile.py`).
"""

import math

import keras
from keras import layers, ops

# With more, in all images of a batch together, the convolutions make up for it.
_MOST_POSITIONS = 1 << 14


class PointwiseMatmul(layers.Layer):
    """Does what a pointwise convolution does, by a product where that is faster.

    Args:
        convolution: The convolution; its variables are shared.
    """

    def __init__(self, convolution: layers.Conv2D, **kwargs):
        super().__init__(dtype=convolution.dtype_policy, **kwargs)
        self.convolution = convolution

    def call(self, x):
        """Returns the convolved `[batch, height, width, channels]`."""
        positions = x.shape[:-1]
        if None in positions or math.prod(positions) > _MOST_POSITIONS:
            return self.convolution(x)
        channels, filters = self.convolution.kernel.shape[2:]
        # Not `kernel[0, 0]`, whose gradient is written twice.
        kernel = ops.reshape(self.convolution.kernel, (channels, filters))
        y = ops.matmul(ops.reshape(x, (-1, channels)), kernel)
        if self.convolution.use_bias:
            y = y + self.convolution.bias
        y = ops.reshape(y, (*positions, filters))
        return self.convolution.activation(y)

    def compute_output_spec(self, x):
        """Returns the symbolic result."""
        return self.convolution.compute_output_spec(x)


def _is_pointwise(layer: keras.Layer) -> bool:
    return (
        type(layer) is layers.Conv2D
        and layer.kernel_size == layer.strides == (1, 1)
        and layer.groups == 1
        and layer.data_format == "channels_last"
    )


def convert_pointwise_to_matmul(model: keras.Model) -> keras.Model:
    """Returns a model whose pointwise convolutions are products where that is faster.

    It shares every variable and gives the same outputs, but for rounding.

    Args:
        model: A functional model.
    """

    def renewed(layer):
        if isinstance(layer, keras.Model):
            return convert_pointwise_to_matmul(layer)
        if _is_pointwise(layer):
            return PointwiseMatmul(layer, name=layer.name)
        return layer

    return keras.models.clone_model(model, clone_function=renewed)
