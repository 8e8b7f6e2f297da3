"""Folds batch normalisation into the preceding convolution, for inference.

With moving statistics, batch normalisation only scales and shifts channels. The
convolution can do that itself, which saves a pass over the features (1712.05877, Sec.
3.2).
"""

import collections
from collections.abc import Callable, Iterator

import keras
import numpy as np
from keras import layers, tree

from deeplab_tf.models.calls import Call, trace_calls
from deeplab_tf.models.fake_quantization import QuantizedConvolution
from deeplab_tf.models.normalization import BatchNormalization
from deeplab_tf.models.recomputation import RecomputedModel


def trace_nested_calls(model: keras.Model) -> Iterator[tuple[list[Call], list]]:
    """Yields calls and outputs of a model and of each nested model."""
    inputs = tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype), model.input
    )
    yield trace_calls(model, inputs)
    for layer in map(unwrap_recomputed, model.layers):
        if isinstance(layer, keras.Model):
            yield from trace_nested_calls(layer)


def unwrap_recomputed(layer):
    """Returns the model of a `RecomputedModel`; other layers unchanged."""
    return layer.model if isinstance(layer, RecomputedModel) else layer


def _is_linear_convolution(layer) -> bool:
    kinds = layers.Conv2D | layers.DepthwiseConv2D
    return isinstance(layer, kinds) and layer.activation is keras.activations.linear


def find_links(model: keras.Model) -> tuple[dict, dict]:
    """Returns the consumers of each layer and the producers of its inputs, as sets.

    None stands for the inputs and outputs of a model or of a nested model.
    """
    consumers, producers = collections.defaultdict(set), collections.defaultdict(set)
    for calls, outputs in trace_nested_calls(model):
        producer = {id(x): call.layer for call in calls for x in call.outputs}
        links = [(x, call.layer) for call in calls for x in call.inputs]
        links += [(x, None) for x in outputs]
        for x, consumer in links:
            consumers[producer.get(id(x))].add(consumer)
            producers[consumer].add(producer.get(id(x)))
    return consumers, producers


def pair_batch_norms(consumers: dict, producers: dict) -> dict:
    """Returns `{convolution: normalisation}` of the pairs that can be folded.

    The normalisation must be the only consumer of the convolution, and have no other
    input. The arguments are the result of `find_links`.
    """
    return {
        producer: consumer
        for producer, (consumer, *others) in consumers.items()
        if _is_linear_convolution(producer)
        and isinstance(consumer, BatchNormalization)
        and not others
        and producers[consumer] == {producer}
    }


def _fold_weights(convolution, normalization) -> list[np.ndarray]:
    kernel, *bias = convolution.get_weights()
    # In float64, so that weights are rounded only once.
    gamma, beta, mean, variance = np.float64(normalization.get_weights())
    scale = gamma / np.sqrt(variance + normalization.epsilon)
    bias = beta + ((bias[0] if bias else 0.0) - mean) * scale
    if isinstance(convolution, layers.DepthwiseConv2D):
        # The kernel is `[height, width, channels, multiplier]`.
        scale = scale.reshape(kernel.shape[2:])
    return [(kernel * scale).astype(kernel.dtype), bias.astype(kernel.dtype)]


class _LayerCopier:
    """Copies each layer once, even if it is called in several places."""

    def __init__(self, pairs: dict, copy_class: Callable[[layers.Layer], type]):
        self._pairs, self._folded = pairs, set(pairs.values())
        self._copy_class = copy_class
        self._copies = {}

    def copy(self, layer):
        """Returns the copy of a layer or nested model, or None if it is folded."""
        layer = unwrap_recomputed(layer)
        if layer in self._folded:
            return None
        if layer not in self._copies:
            self._copies[layer] = self._make_copy(layer)
        return self._copies[layer]

    def _make_copy(self, layer):
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(
                layer, clone_function=self.copy, call_function=_call_unless_folded
            )
        options = {"use_bias": True} if layer in self._pairs else {}
        if isinstance(layer, QuantizedConvolution):
            options = {"use_bias": True} if layer.normalization else {}
            layer = layer.convolution
        return self._copy_class(layer).from_config({**layer.get_config(), **options})

    def copy_weights(self) -> None:
        """Sets the weights of all copies, with batch normalisation folded in."""
        for layer, copy in self._copies.items():
            if not isinstance(layer, keras.Model):
                copy.set_weights(self._find_weights(layer))

    def _find_weights(self, layer) -> list[np.ndarray]:
        """Returns the weights for a layer's copy, folded and rounded where needed."""
        if layer in self._pairs:
            return _fold_weights(layer, self._pairs[layer])
        if not isinstance(layer, QuantizedConvolution):
            return layer.get_weights()
        convolution, *normalization = layer.parts
        kernel, *bias = (
            _fold_weights(convolution, *normalization)
            if normalization
            else convolution.get_weights()
        )
        return [layer.round_kernel(kernel), *bias]


def _call_unless_folded(layer, x, *args, **kwargs):
    """Calls a layer; returns `x` if the layer is None."""
    return x if layer is None else layer(x, *args, **kwargs)


def fold_batch_norm(
    model: keras.Model, copy_class: Callable[[layers.Layer], type] = type
) -> keras.Model:
    """Returns a copy of a model for inference, with folded batch normalisations.

    Keeps inputs, outputs, layer names and `model_config`. A normalisation that does not
    directly follow a convolution is kept. Logits differ only by rounding: in float32 by
    less than 1e-5 of their standard deviation, or 2e-5 for an Xception. The rounded
    weights of a quantised model become ordinary ones.

    `copy_class` returns the class for the copy of a layer, which must have the same
    configuration and variables.
    """
    copier = _LayerCopier(pair_batch_norms(*find_links(model)), copy_class)
    clone = copier.copy(model)
    copier.copy_weights()
    clone.model_config = model.model_config
    return clone
