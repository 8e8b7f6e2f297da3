"""Makes a network round as its 8-bit export does (1712.05877, Sec. 3)."""

import keras
from keras import layers

from deeplab_tf.models.fake_quantization import FakeQuantization, QuantizedConvolution
from deeplab_tf.models.folding import find_links, pair_batch_norms, unwrap_recomputed
from deeplab_tf.models.normalization import BatchNormalization, PixelScaling
from deeplab_tf.models.resampling import WindowMean
from deeplab_tf.models.variables import leaf_layers

_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)
# Layers whose outputs are rounded. Others keep the levels of their inputs.
_ROUNDED = (
    *_CONVOLUTIONS,
    BatchNormalization,
    WindowMean,
    layers.Activation,
    layers.Add,
    layers.Concatenate,
    layers.Multiply,
)
# Computed together with the layer before them.
_FUSED = (keras.activations.relu, keras.activations.relu6)


def quantize_model(model: keras.Model) -> keras.Model:
    """Returns a model that rounds weights and features, sharing all variables.

    Its training needs frozen batch normalisation, because the weights are rounded after
    folding it. The ranges of features are new variables, learned in training; see
    `FakeQuantization`.
    """
    quantized = _Quantizer(model).copy(model)
    quantized.model_config = model.model_config
    return quantized


def is_quantized(model: keras.Model) -> bool:
    """Returns whether a model was made by `quantize_model`."""
    return any(isinstance(x, FakeQuantization) for x in leaf_layers(model))


def _is_fused(layer) -> bool:
    """Returns whether 8-bit engines fuse an activation into the layer before."""
    return isinstance(layer, layers.Activation) and layer.activation in _FUSED


def _pixel_limits(layer: PixelScaling) -> tuple[float, float]:
    """Returns the range of scaled pixels.

    It is a little wider, because no 8-bit zero point lies between two of the 256
    levels, as the mean pixel 127.5 does.
    """
    offsets = layer.offset if isinstance(layer.offset, tuple) else (layer.offset,)
    widening = 256 / 255
    return widening * min(offsets), widening * (255 * layer.scale + max(offsets))


class _Quantizer:
    """Copies a model, and adds the rounding of weights and features."""

    def __init__(self, model: keras.Model):
        self._consumers, self._producers = find_links(model)
        self._pairs = pair_batch_norms(self._consumers, self._producers)
        self._folded = set(self._pairs.values())
        self._copies, self._roundings = {}, {}

    def copy(self, layer):
        """Returns the layer or model to use, or None for a folded normalisation."""
        layer = unwrap_recomputed(layer)
        if layer in self._folded:
            return None
        if layer not in self._copies:
            copy = self._copies[layer] = self._make_copy(layer)
            self._roundings[copy] = self._make_rounding(layer)
        return self._copies[layer]

    def _make_copy(self, layer):
        """Copies a layer; convolutions and layers with variables share them."""
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(
                layer, clone_function=self.copy, call_function=self._call_and_round
            )
        if isinstance(layer, _CONVOLUTIONS):
            return QuantizedConvolution(layer, self._pairs.get(layer), name=layer.name)
        # Other layers are not shared if possible: the `output` of a layer with several
        # calls is that of its first.
        if layer.variables:
            return layer
        return type(layer).from_config(layer.get_config())

    def _make_rounding(self, layer) -> FakeQuantization | None:
        """Returns the rounding of a layer's output, or None if it needs none."""
        if isinstance(layer, PixelScaling):
            return FakeQuantization(_pixel_limits(layer), name=f"{layer.name}.quant")
        if not isinstance(layer, _ROUNDED):
            return None
        end = self._pairs.get(layer, layer)
        if all(map(_is_fused, self._consumers[end])):
            return None  # rounded after the activation
        return FakeQuantization(name=f"{layer.name}.act_quant")

    def _call_and_round(self, copy, x, *args, **kwargs):
        """Calls a copy and rounds its output; returns `x` if the copy is None."""
        if copy is None:
            return x
        x = copy(x, *args, **kwargs)
        rounding = self._roundings[copy]
        return x if rounding is None else rounding(x)
