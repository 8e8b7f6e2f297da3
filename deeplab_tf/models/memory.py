"""Memory that the activations of an inference need."""

from collections.abc import Sequence
from math import prod

import keras
from keras import tree

from deeplab_tf.models.calls import trace_calls


def activation_bytes(model: keras.Model, size: Sequence[int]) -> int:
    """Returns the most bytes of activations that are needed at one moment.

    While a layer is called, its inputs and outputs are alive, and whatever later layers
    take. Workspaces of the kernels are not counted.

    Args:
        model: A functional model of images of any size.
        size: Height and width of an image.
    """
    shape = (1, *size, model.input.shape[-1])
    image = keras.Input(batch_shape=shape, dtype=model.input.dtype)
    return _most_bytes(model, [image])


def _most_bytes(model: keras.Model, inputs: list) -> int:
    calls, outputs = trace_calls(model, tree.pack_sequence_as(model.input, inputs))
    last_use = {id(x): i for i, call in enumerate(calls) for x in call.inputs}
    last_use |= {id(x): len(calls) for x in outputs}
    alive, most = {id(x): _bytes(x) for x in inputs}, 0
    for i, call in enumerate(calls):
        inside = 0
        if isinstance(call.layer, keras.Model):
            # Without its inputs and outputs, which are counted here.
            inside = _most_bytes(call.layer, call.inputs) - _sum(call.inputs)
            inside = max(0, inside - _sum(call.outputs))
        alive |= {id(x): _bytes(x) for x in call.outputs}
        most = max(most, sum(alive.values()) + inside)
        alive = {key: size for key, size in alive.items() if last_use.get(key, 0) > i}
    return most


def _sum(tensors: list) -> int:
    return sum(map(_bytes, tensors))


def _bytes(x) -> int:
    return prod(x.shape) * (2 if "16" in x.dtype else 4)
