"""Parts of a network: nested models that each are one layer of the outer model."""

from collections.abc import Callable
from typing import TypeVar

import keras

_Outputs = TypeVar("_Outputs")


@keras.saving.register_keras_serializable("deeplab_tf")
class Part(keras.Model):
    """A functional model that is a layer of another one.

    Its `input` and `output` are the tensors of the outer model, as those of any layer,
    so that `keras.Model(model.input, model.get_layer("backbone").output)` is connected.
    For other nested models Keras returns `inputs` and `outputs`, those of the inside.
    """

    @property
    def input(self):
        """The tensors of its first call, or its own before any call."""
        try:
            return keras.Operation.input.fget(self)
        except AttributeError:
            return super().input

    @property
    def output(self):
        """The tensors of its first call, or its own before any call."""
        try:
            return keras.Operation.output.fget(self)
        except AttributeError:
            return super().output


def call_part(
    name: str, build: Callable[..., _Outputs], *inputs: keras.KerasTensor
) -> _Outputs:
    """Calls `build(*inputs)` as a nested model, one line of `summary()`."""
    heads = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in inputs]
    if len(heads) == 1:
        return Part(heads[0], build(*heads), name=name)(inputs[0])
    return Part(heads, build(*heads), name=name)(list(inputs))
