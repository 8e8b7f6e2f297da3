"""In which order a model calls its layers, on inputs of known size."""

from typing import NamedTuple

import keras
from keras import tree


class Call(NamedTuple):
    """What a layer, or a model within a model, takes and gives at one place."""

    layer: keras.Layer
    inputs: list
    outputs: list


def trace_calls(model: keras.Model, inputs) -> tuple[list[Call], list]:
    """Returns a model's calls on symbolic inputs, in order, and its outputs."""
    calls = []

    def recorded(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        taken = [x for x in tree.flatten((args, kwargs)) if _is_symbolic(x)]
        calls.append(Call(layer, taken, tree.flatten(outputs)))
        return outputs

    clone = keras.models.clone_model(
        model,
        input_tensors=inputs,
        clone_function=lambda layer: layer,
        call_function=recorded,
    )
    return calls, clone.outputs


def _is_symbolic(x) -> bool:
    return isinstance(x, keras.KerasTensor)
