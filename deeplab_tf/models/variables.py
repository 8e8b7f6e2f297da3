"""Finds the variables of a model by official name."""

import keras
from keras import layers

from deeplab_tf.models.fake_quantization import QuantizedConvolution
from deeplab_tf.models.normalization import BatchNormalization

_LEAVES = {"kernel": "weights", "bias": "biases"}


def leaf_layers(model) -> list:
    """Returns every layer of a model once, including those of nested models."""
    found = {}
    for layer in model.layers:
        for leaf in _leaves(layer):
            found[id(leaf)] = leaf
    return list(found.values())


def _leaves(layer) -> list:
    if isinstance(layer, QuantizedConvolution):
        return layer.parts
    return leaf_layers(layer) if isinstance(layer, keras.Model) else [layer]


def layers_by_name(model) -> dict:
    """Returns `{name: layer}` of all layers except inputs, including nested ones."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, layers.InputLayer):
            continue  # Keras numbers those of nested models
        found.setdefault(layer.name, layer)
        if isinstance(layer, keras.Model):
            found = layers_by_name(layer) | found
    return found


def official_variables(model) -> dict:
    """Returns `{official name: keras.Variable}` of a DeepLab model, in order."""
    variables = {}
    for layer in leaf_layers(model):
        for variable in layer.variables:
            leaf = _LEAVES.get(variable.name, variable.name)
            if isinstance(layer, layers.DepthwiseConv2D):
                leaf = "depthwise_weights"
            if not isinstance(layer, layers.Dropout):  # its variable is a seed
                variables[f"{layer.name.replace('.', '/')}/{leaf}"] = variable
    return variables


def dropout_seeds(model) -> dict:
    """Returns `{layer name: keras.Variable}` of the dropout seeds."""
    return {
        layer.name: layer.seed_generator.state
        for layer in leaf_layers(model)
        if isinstance(layer, layers.Dropout) and layer.rate > 0
    }


def batch_normalizations(model) -> list[BatchNormalization]:
    """Returns every batch normalisation of a model."""
    return [x for x in leaf_layers(model) if isinstance(x, BatchNormalization)]
