"""Estimates the memory of activations in inference."""

from collections.abc import Sequence
from math import prod

import keras
from keras import tree

from deeplab_tf.models.calls import trace_calls


def activation_bytes(model: keras.Model, size: Sequence[int]) -> int:
    """Returns the peak memory of the activations of one image, in bytes.

    `size` is the height and width of the image. A tensor counts until its last use;
    workspaces of kernels are not counted.
    """
    shape = (1, *size, model.input.shape[-1])
    image = keras.Input(batch_shape=shape, dtype=model.input.dtype)
    return _find_peak_bytes(model, [image])


def _find_peak_bytes(model: keras.Model, inputs: list) -> int:
    """Returns the peak memory of the tensors of a model and its nested models."""
    calls, outputs = trace_calls(model, tree.pack_sequence_as(model.input, inputs))
    last_use = {id(x): i for i, call in enumerate(calls) for x in call.inputs}
    last_use |= {id(x): len(calls) for x in outputs}
    alive, peak = {id(x): _count_bytes(x) for x in inputs}, 0
    for i, call in enumerate(calls):
        inside = 0
        if isinstance(call.layer, keras.Model):
            # Its inputs and outputs are counted in `alive`.
            outside = sum(map(_count_bytes, [*call.inputs, *call.outputs]))
            inside = max(0, _find_peak_bytes(call.layer, call.inputs) - outside)
        alive |= {id(x): _count_bytes(x) for x in call.outputs}
        peak = max(peak, sum(alive.values()) + inside)
        alive = {key: size for key, size in alive.items() if last_use.get(key, 0) > i}
    return peak


def _count_bytes(x) -> int:
    return prod(x.shape) * (2 if "16" in x.dtype else 4)
