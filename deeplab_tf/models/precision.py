"""Sets and reads the precision in which models compute."""

import keras

from deeplab_tf.models.variables import leaf_layers


def use_precision(precision: str) -> None:
    """Sets the precision of models built later: float32, bfloat16 or float16.

    Variables and logits stay float32.
    """
    mixed = "" if precision == "float32" else "mixed_"
    keras.config.set_dtype_policy(mixed + precision)


def model_precision(model: keras.Model) -> str:
    """Returns the precision in which the convolutions of a model compute."""
    narrow = {layer.compute_dtype for layer in leaf_layers(model)} - {"float32"}
    return min(narrow & {"bfloat16", "float16"}, default="float32")
