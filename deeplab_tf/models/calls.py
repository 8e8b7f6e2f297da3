"""Traces the order in which a model calls its layers."""

from typing import NamedTuple

import keras
from keras import tree


class Call(NamedTuple):
    """One call of a layer or nested model, with its symbolic inputs and outputs."""

    layer: keras.Layer
    inputs: list
    outputs: list


def trace_calls(model: keras.Model, inputs) -> tuple[list[Call], list]:
    """Returns the calls of a model on symbolic inputs, in order, and its outputs."""
    calls = []

    def record(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        arguments = tree.flatten((args, kwargs))
        symbolic = [x for x in arguments if isinstance(x, keras.KerasTensor)]
        calls.append(Call(layer, symbolic, tree.flatten(outputs)))
        return outputs

    clone = keras.models.clone_model(
        model,
        input_tensors=inputs,
        clone_function=lambda layer: layer,
        call_function=record,
    )
    return calls, clone.outputs
