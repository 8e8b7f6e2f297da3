"""A model of two convolutions that compiles quickly."""

import keras
from golden_case import value

from deeplab_tf import (
    ContextConfig,
    DecoderConfig,
    ModelConfig,
    load_tf1_variables,
    tf1_variables,
)
from deeplab_tf.models.normalization import BatchNormalization
from deeplab_tf.models.resampling import ResizeLike

NUM_CLASSES = 5


def toy_model(dropout=0.0, size=(33, 33), num_classes=NUM_CLASSES):
    """Returns a model for the trainer in which every weight affects the output."""
    image = keras.Input((*size, 3), name="image")
    x = keras.layers.Rescaling(2.0 / 255.0, -1.0)(image)
    x = keras.layers.Conv2D(8, 9, strides=8, padding="same", name="conv")(x)
    x = BatchNormalization(name="bn")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    x = keras.layers.Conv2D(num_classes, 1, dtype="float32", name="logits")(x)
    model = keras.Model(image, ResizeLike(dtype="float32")(x, image))
    model.model_config = ModelConfig(
        num_classes=num_classes,
        output_stride=8,
        context=ContextConfig(rates=()),
        decoder=DecoderConfig(output_strides=()),
    )
    shapes = {name: a.shape for name, a in tf1_variables(model).items()}
    load_tf1_variables(model, {name: value(name, s) for name, s in shapes.items()})
    return model
