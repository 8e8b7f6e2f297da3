"""The convolutions of a model of this package, as expected in an exported graph."""

import dataclasses

import keras
from keras import layers, tree

from deeplab_tf.checkpoints.graphs.convolutions import (
    CONCATENATE,
    CONVOLUTION,
    DEPTHWISE,
    PASS,
    POOL,
    SUBSAMPLE,
    Convolution,
    Operation,
    trace_convolutions,
)
from deeplab_tf.config import ModelConfig
from deeplab_tf.models.calls import Call, trace_calls
from deeplab_tf.models.complexity import build_uninitialized
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.resampling import WindowMean
from deeplab_tf.models.variables import batch_normalizations


@dataclasses.dataclass(frozen=True)
class ModelGraph:
    """The convolutions of a model, named after their layers.

    `epsilons` maps the names of those that batch normalisation follows to its epsilon.
    """

    convolutions: list[Convolution]
    epsilons: dict[str, float]


def trace_model(config: ModelConfig) -> ModelGraph:
    """Returns the convolutions of the model of a config."""

    def trace():
        model = build_model(config)
        epsilons = {
            layer.name.removesuffix(".BatchNorm"): layer.epsilon
            for layer in batch_normalizations(model)
        }
        flattener = _Flattener()
        flattener.add(model, [id(x) for x in model.inputs])
        return ModelGraph(trace_convolutions(flattener.operations), epsilons)

    return build_uninitialized(trace)


class _Flattener:
    """Lists the operations of a model and its nested models in order."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        # Tensors are named by their ids, so they must not be deleted.
        self._tensors: list = []

    def add(self, model: keras.Model, inputs: list) -> list:
        """Adds the operations of a model and returns the names of its outputs."""
        own = tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype), model.input
        )
        calls, outputs = trace_calls(model, own)
        self._tensors += [own, calls, outputs]
        self._pass_on(inputs, [id(x) for x in tree.flatten(own)])
        for call in calls:
            sources = [id(x) for x in call.inputs]
            if isinstance(call.layer, keras.Model):
                results = self.add(call.layer, sources)
                self._pass_on(results, [id(x) for x in call.outputs])
            else:
                self.operations.append(_describe(call, sources))
        return [id(x) for x in outputs]

    def _pass_on(self, inputs: list, outputs: list) -> None:
        """Adds operations that pass each input on as an output."""
        for pair in zip(inputs, outputs, strict=True):
            self.operations.append(Operation(PASS, pair[:1], pair[1:]))


def _describe(call: Call, inputs: list) -> Operation:
    """Returns a call of a layer as an operation; most layers pass on their input."""
    layer, outputs = call.layer, tuple(id(x) for x in call.outputs)
    if isinstance(layer, layers.DepthwiseConv2D | layers.Conv2D):
        is_depthwise = isinstance(layer, layers.DepthwiseConv2D)
        return Operation(
            DEPTHWISE if is_depthwise else CONVOLUTION,
            tuple(inputs),
            outputs,
            layer.name,
            layer.kernel,
            id(layer),
            tuple(layer.strides),
            tuple(layer.dilation_rate),
        )
    if isinstance(layer, WindowMean):
        return Operation(POOL, tuple(inputs), outputs, strides=layer.strides)
    if isinstance(layer, layers.MaxPooling2D):
        strides = tuple(layer.strides)
        return Operation(SUBSAMPLE, tuple(inputs), outputs, strides=strides)
    if isinstance(layer, layers.Concatenate):
        return Operation(CONCATENATE, tuple(inputs), outputs)
    # `ResizeLike` has a second input, of which only the size matters.
    data = inputs if isinstance(layer, layers.Add | layers.Multiply) else inputs[:1]
    return Operation(PASS, tuple(data), outputs)
