"""Layers as the operations that other engines know.

Resizing and means over windows are products with matrices in `models/`, exact on every
backend and at every size. Engines for phones and servers have one fast operation for
each instead, which delegates and graph compilers recognise.
"""

from collections.abc import Mapping

import keras
import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.inference import resize_to
from deeplab_tf.models.folding import fold_batch_norm
from deeplab_tf.models.precision import model_precision
from deeplab_tf.models.resampling import (
    ResizeLike,
    WindowMean,
    scale_dimension,
    spatial_size,
)


@keras.saving.register_keras_serializable("deeplab_tf")
class NativeResizeLike(ResizeLike):
    """`ResizeLike` by TensorFlow's own operation with aligned corners."""

    def call(self, x, like):
        """Returns `x` at the scaled size of `like`, both `[b, h, w, channels]`."""
        return resize_to(
            x, [scale_dimension(s, self.scale) for s in spatial_size(like)]
        )


@keras.saving.register_keras_serializable("deeplab_tf")
class NativeWindowMean(WindowMean):
    """`WindowMean` by average pooling, where the size of the features is known."""

    def call(self, x):
        """Returns the means of `x`, `[b, h, w, channels]`."""
        is_global = self.crop_size is None and self.grid_size == (1, 1)
        size = x.shape[1:3].as_list()
        if is_global or None in size:
            return super().call(x)
        return tf.nn.avg_pool2d(x, self.window(size), self.strides, "VALID")


NATIVE = {ResizeLike: NativeResizeLike, WindowMean: NativeWindowMean}


def native(model: keras.Model, kinds: Mapping[type, type] = NATIVE) -> keras.Model:
    """Returns a model for inference with native operations.

    It takes and gives what the model does, up to rounding. Batch normalisations are
    folded; the weights are copies.

    Args:
        model: A model of `build_model`, which is left as it is.
        kinds: What stands for each kind of layer, with the same configuration and the
            same variables.

    Raises:
        UserError: if the model computes in another precision than float32.
    """
    precision = model_precision(model)
    if precision != "float32":
        raise UserError(
            f"only models that compute in float32 are converted; received {precision}"
        )
    return fold_batch_norm(model, lambda layer: kinds.get(type(layer), type(layer)))
