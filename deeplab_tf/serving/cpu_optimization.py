"""Rewrites a network so that TensorFlow runs it fast on CPUs, for exports.

Results change only by rounding. `benchmarks/op_profile.py` found these rewrites, and
docs/performance.md lists their speedups.
"""

import collections

import keras
import tensorflow as tf
from keras import layers

from deeplab_tf.models.folding import fold_batch_norm, trace_nested_calls
from deeplab_tf.serving.native_layers import NATIVE_LAYERS


@keras.saving.register_keras_serializable("deeplab_tf")
class PolyphaseDepthwiseConv2D(layers.DepthwiseConv2D):
    """An atrous depthwise convolution, computed as a dense one on each phase.

    TensorFlow does the same but first pads the features by the rate; at rate 18, 33x33
    features quadruple. The zero padding of a dense SAME convolution is sufficient.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolved `[b, h, w, channels]`."""
        rates = self.dilation_rate
        if self.padding != "same" or self.strides != (1, 1) or rates == (1, 1):
            return super().call(x)
        missing = -tf.shape(x)[1:3] % rates
        sides = tf.stack([tf.zeros_like(missing), missing], 1)
        phases = tf.space_to_batch(x, rates, sides)
        phases = tf.nn.depthwise_conv2d(phases, self.kernel, [1, 1, 1, 1], "SAME")
        if self.use_bias:
            phases = tf.nn.bias_add(phases, self.bias)
        return tf.batch_to_space(self.activation(phases), rates, sides)


@keras.saving.register_keras_serializable("deeplab_tf")
class ReluOfSum(layers.Activation):
    """ReLU as `tf.maximum`, to work around TensorFlow 2.21's `remapper`.

    The remapper tries to fuse convolution, sum and ReLU even if other layers also need
    the sum, notices that too late, and gives up on the entire graph. In an Xception, no
    convolution would be fused with the operation after it.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the positive part of `x`."""
        return tf.maximum(x, tf.zeros([], x.dtype))


_LAYER_TYPES = NATIVE_LAYERS | {layers.DepthwiseConv2D: PolyphaseDepthwiseConv2D}


def _find_relus_of_shared_sums(model: keras.Model) -> set[layers.Layer]:
    """Returns the ReLUs whose input is a sum that other layers also use."""
    found = set()
    for calls, outputs in trace_nested_calls(model):
        sums = {id(c.outputs[0]) for c in calls if isinstance(c.layer, layers.Add)}
        uses = collections.Counter(id(x) for call in calls for x in call.inputs)
        uses.update(map(id, outputs))
        for call in calls:
            is_relu = getattr(call.layer, "activation", None) is keras.activations.relu
            if isinstance(call.layer, layers.Activation) and is_relu:
                shared = {id(x) for x in call.inputs if uses[id(x)] > 1}
                found |= {call.layer} if shared & sums else set()
    return found


def optimize_for_cpu(model: keras.Model) -> keras.Model:
    """Returns a copy of a model that TensorFlow runs fast on CPUs, for inference only.

    Batch normalisation is folded into the convolutions.
    """
    relus = _find_relus_of_shared_sums(model)

    def replace_type(layer: layers.Layer) -> type:
        if layer in relus:
            return ReluOfSum
        return _LAYER_TYPES.get(type(layer), type(layer))

    return fold_batch_norm(model, replace_type)
