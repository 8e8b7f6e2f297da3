"""Parts of a network: nested models, each of which is a layer of the outer model."""

from collections.abc import Callable
from typing import TypeVar

import keras

_Outputs = TypeVar("_Outputs")


@keras.saving.register_keras_serializable("deeplab_tf")
class Part(keras.Model):
    """A functional model that is used as a layer of another model.

    Its `input` and `output` are tensors of the outer model, as for any other layer, so
    `keras.Model(model.input, model.get_layer("backbone").output)` works. For other
    nested models, Keras returns the inner `inputs` and `outputs`.
    """

    @property
    def input(self):
        """The tensors of its first call; before that, those of its own graph."""
        try:
            return keras.Operation.input.fget(self)
        except AttributeError:
            return super().input

    @property
    def output(self):
        """The tensors of its first call; before that, those of its own graph."""
        try:
            return keras.Operation.output.fget(self)
        except AttributeError:
            return super().output


def call_part(
    name: str, build: Callable[..., _Outputs], *inputs: keras.KerasTensor
) -> _Outputs:
    """Calls `build(*inputs)` in a nested model, which is one line of `summary()`."""
    heads = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in inputs]
    if len(heads) == 1:
        return Part(heads[0], build(*heads), name=name)(inputs[0])
    return Part(heads, build(*heads), name=name)(list(inputs))
