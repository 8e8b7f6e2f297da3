"""Layers that use the native operations of inference engines.

`models/` resizes and averages by matrix products, which are exact on every backend and
at every size. Inference engines have a fast operation for each of these, which
delegates and graph compilers recognise.
"""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from deeplab_tf.errors import UserError
from deeplab_tf.inference import resize_to
from deeplab_tf.models.folding import fold_batch_norm
from deeplab_tf.models.layers import q_sigmoid
from deeplab_tf.models.network import NormalizeImage
from deeplab_tf.models.precision import model_precision
from deeplab_tf.models.resampling import (
    ResizeLike,
    WindowMean,
    scale_dimension,
    spatial_size,
)


@keras.saving.register_keras_serializable("deeplab_tf")
class NativeResizeLike(ResizeLike):
    """`ResizeLike` as TensorFlow's own resize."""

    def call(self, x, like):
        """Returns `x` at the scaled size of `like`, both `[b, h, w, channels]`."""
        size = [scale_dimension(s, self.scale) for s in spatial_size(like)]
        return resize_to(x, size, self.resizing)


@keras.saving.register_keras_serializable("deeplab_tf")
class NativeWindowMean(WindowMean):
    """`WindowMean` as average pooling, if the size of the features is known."""

    def call(self, x):
        """Returns the means of `x`, `[b, h, w, channels]`."""
        is_global = self.crop_size is None and self.grid_size == (1, 1)
        size = x.shape[1:3].as_list()
        if is_global or None in size:
            return super().call(x)
        return tf.nn.avg_pool2d(x, self.window_size(size), self.strides, "VALID")


@keras.saving.register_keras_serializable("deeplab_tf")
class IntegerNormalizeImage(NormalizeImage):
    """`NormalizeImage` of 8-bit pixels, in operations that TFLite computes in 8 bits.

    The rounding is exact for pixels 0..255.
    """

    def call(self, x):
        """Returns the scaled pixels of `x`, `[b, h, w, channels]`."""
        largest = 255.0
        for scale in (1.0, self.scale):
            x, largest = x * tf.constant(scale), largest * np.max(scale)
            x = tf.quantization.fake_quant_with_min_max_args(x, 0.0, largest)
        return x + tf.constant(self.offset)


@keras.saving.register_keras_serializable("deeplab_tf")
class IntegerActivation(layers.Activation):
    """An activation in operations that TFLite computes in 8 bits."""

    def call(self, x):
        """Returns the activation of `x`."""
        if self.activation is not q_sigmoid:
            return super().call(x)
        # Rounded before the product as well.
        x = tf.nn.relu6(x + 3.0)
        return tf.quantization.fake_quant_with_min_max_args(x, 0.0, 6.0) * 0.16667


# Also for the 8-bit TFLite files of quantised models.
INTEGER_LAYERS = {
    NormalizeImage: IntegerNormalizeImage,
    layers.Activation: IntegerActivation,
}
NATIVE_LAYERS = {ResizeLike: NativeResizeLike, WindowMean: NativeWindowMean}


def use_native_layers(
    model: keras.Model, layer_types: Mapping[type, type] = NATIVE_LAYERS
) -> keras.Model:
    """Returns a copy of a model with native operations, for inference.

    Its outputs are the same up to rounding. Batch normalisation is folded. Replacements
    in `layer_types` must have the same configuration and variables.

    Raises:
        UserError: if the model is not float32.
    """
    precision = model_precision(model)
    if precision != "float32":
        raise UserError(f"only float32 models can be converted; received {precision}")
    return fold_batch_norm(
        model, lambda layer: layer_types.get(type(layer), type(layer))
    )
