"""Batch normalisation folded into the convolution before it, for inference.

With moving statistics it scales and shifts each channel, which a convolution can do as
well: one pass over the features less for each of them (1712.05877, Sec. 3.2).
"""

import collections
from collections.abc import Callable, Iterator

import keras
import numpy as np
from keras import layers, tree

from deeplab_tf.models.calls import Call, trace_calls
from deeplab_tf.models.normalization import BatchNormalization
from deeplab_tf.models.recomputation import RecomputedModel


def _parts(model: keras.Model) -> list[keras.Model]:
    """Returns a model and all models within it."""
    nested = [_plain(layer) for layer in model.layers]
    nested = [layer for layer in nested if isinstance(layer, keras.Model)]
    return [model, *(part for layer in nested for part in _parts(layer))]


def trace_nested_calls(model: keras.Model) -> Iterator[tuple[list[Call], list]]:
    """Yields calls and outputs of a model and of each model within it."""
    for part in _parts(model):
        inputs = tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype), part.input
        )
        yield trace_calls(part, inputs)


def _plain(layer):
    return layer.model if isinstance(layer, RecomputedModel) else layer


def _is_linear_convolution(layer) -> bool:
    kinds = layers.Conv2D | layers.DepthwiseConv2D
    return isinstance(layer, kinds) and layer.activation is keras.activations.linear


def _pairs(model: keras.Model) -> dict:
    """Returns each convolution and the normalisation that alone takes what it gives.

    A normalisation of anything else besides, or of one of two places where a layer is
    called, has no pair.
    """
    takers, givers = collections.defaultdict(set), collections.defaultdict(set)
    for calls, outputs in trace_nested_calls(model):
        giver = {id(x): call.layer for call in calls for x in call.outputs}
        links = [(x, call.layer) for call in calls for x in call.inputs]
        links += [(x, None) for x in outputs]
        for x, taker in links:
            takers[giver.get(id(x))].add(taker)
            givers[taker].add(giver.get(id(x)))
    return {
        giver: taker
        for giver, (taker, *others) in takers.items()
        if _is_linear_convolution(giver)
        and isinstance(taker, BatchNormalization)
        and not others
        and givers[taker] == {giver}
    }


def _folded_weights(convolution, normalization) -> list[np.ndarray]:
    """Returns the kernel and the bias that do what both layers do."""
    kernel, *bias = convolution.get_weights()
    # In float64, so that rounding happens once, at the end.
    gamma, beta, mean, variance = np.float64(normalization.get_weights())
    scale = gamma / np.sqrt(variance + normalization.epsilon)
    bias = beta + ((bias[0] if bias else 0.0) - mean) * scale
    if isinstance(convolution, layers.DepthwiseConv2D):
        # `[height, width, channels, multiplier]`, all channels in this order.
        scale = scale.reshape(kernel.shape[2:])
    return [(kernel * scale).astype(kernel.dtype), bias.astype(kernel.dtype)]


class _Copies:
    """Copies of layers; one that is called in several places has one copy.

    Args:
        pairs: Convolutions, which get a bias, and normalisations, which get no copy.
        kind_of: Which class the copy of a layer has.
    """

    def __init__(self, pairs: dict, kind_of: Callable[[layers.Layer], type]):
        self._pairs, self._gone = pairs, set(pairs.values())
        self._kind_of = kind_of
        self._made = {}

    def of(self, layer):
        """Returns the copy of a layer or a nested model; None if it is gone."""
        layer = _plain(layer)
        if layer in self._gone:
            return None
        if layer not in self._made:
            self._made[layer] = self._copied(layer)
        return self._made[layer]

    def _copied(self, layer):
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(
                layer, clone_function=self.of, call_function=_called
            )
        options = {"use_bias": True} if layer in self._pairs else {}
        return self._kind_of(layer).from_config({**layer.get_config(), **options})

    def take_weights(self) -> None:
        """Gives every copy its weights."""
        for layer, copy in self._made.items():
            if layer in self._pairs:
                copy.set_weights(_folded_weights(layer, self._pairs[layer]))
            elif not isinstance(layer, keras.Model):
                copy.set_weights(layer.get_weights())


def _called(layer, x, *args, **kwargs):
    return x if layer is None else layer(x, *args, **kwargs)


def fold_batch_norm(
    model: keras.Model, kind_of: Callable[[layers.Layer], type] = type
) -> keras.Model:
    """Returns a model for inference, batch normalisations folded into convolutions.

    Inputs, outputs, names of layers and `model_config` are the model's; the weights
    are its own. A normalisation that follows no convolution directly stays. Logits
    differ by rounding: in float32 by less than 1e-5 of their standard deviation, of
    an Xception by up to 2e-5.

    Args:
        model: A model of `build_model`, which is left as it is.
        kind_of: Which class stands for a layer's, with the same configuration and the
            same variables.
    """
    copies = _Copies(_pairs(model), kind_of)
    clone = copies.of(model)
    copies.take_weights()
    clone.model_config = model.model_config
    return clone
