"""Quantised models whose ranges are those of one batch."""

import keras
import numpy as np

from deeplab_tf.models.quantization import quantize_model


def quantize_copy(model, images):
    """Returns a quantised copy of a model, with the ranges of some images."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.freeze_batch_norm()
    quantized = quantize_model(copy)
    quantized(np.float32(images), training=True)
    return quantized
