"""A network as TensorFlow runs it fastest on a CPU: for exports, not for training.

What is done here changes results by rounding at most. It was found by
`benchmarks/op_profile.py`, and docs/performance.md tells what it brings.
"""

import collections
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

from deeplab_tf.inference import Predictor
from deeplab_tf.models.folding import fold_batch_norm, trace_nested_calls
from deeplab_tf.serving.native_layers import NATIVE
from deeplab_tf.serving.signatures import features_model


@keras.saving.register_keras_serializable("deeplab_tf")
class PhasedDepthwiseConv2D(layers.DepthwiseConv2D):
    """An atrous depthwise convolution as a dense one of every phase of the image.

    TensorFlow does it like this, too, but pads the image by the rate first: behind
    rate 18, features of 33x33 would become four times as many. A phase needs no more
    than the zeros of a dense SAME convolution.
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
    """ReLU by another operation, which TensorFlow 2.21 leaves alone.

    Its `remapper` takes convolution, sum and ReLU for one operation although others
    need the sum as well, finds that out too late, and gives up on the whole graph: no
    convolution of an Xception is fused with what follows it.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the positive part of `x`."""
        return tf.maximum(x, tf.zeros([], x.dtype))


_KINDS = NATIVE | {layers.DepthwiseConv2D: PhasedDepthwiseConv2D}


def _relus_of_shared_sums(model: keras.Model) -> set[layers.Layer]:
    """Returns the ReLUs of sums that other layers take, too."""
    found = set()
    for calls, outputs in trace_nested_calls(model):
        sums = {id(c.outputs[0]) for c in calls if isinstance(c.layer, layers.Add)}
        taken = collections.Counter(id(x) for call in calls for x in call.inputs)
        taken.update(map(id, outputs))
        for call in calls:
            is_relu = getattr(call.layer, "activation", None) is keras.activations.relu
            if isinstance(call.layer, layers.Activation) and is_relu:
                shared = {id(x) for x in call.inputs if taken[id(x)] > 1}
                found |= {call.layer} if shared & sums else set()
    return found


def fast_on_cpu(model: keras.Model) -> keras.Model:
    """Returns a model for inference of what TensorFlow is fast at.

    Batch normalisations are folded; the weights are copies.

    Args:
        model: A model of `build_model`, which is left as it is.
    """
    relus = _relus_of_shared_sums(model)

    def kind_of(layer: layers.Layer) -> type:
        return ReluOfSum if layer in relus else _KINDS.get(type(layer), type(layer))

    return fold_batch_norm(model, kind_of)


def freeze(
    function: tf.types.experimental.ConcreteFunction, lower_control_flow: bool = True
) -> tf.types.experimental.ConcreteFunction:
    """Returns a function whose variables are constants of its graph.

    TensorFlow 2 has no public name for it.

    Args:
        function: Of a graph.
        lower_control_flow: Whether loops and branches become the primitive operations
            of TF1, which clients of frozen graphs know.
    """
    return convert_variables_to_constants_v2(
        function, lower_control_flow=lower_control_flow
    )


def constant(network: keras.Model) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Returns a network as a function whose weights are constants of its graph.

    These are brought into the order that kernels like, and into half precision, once;
    variables at every call.

    Args:
        network: A functional model; outputs by names are given in the order of these.
    """
    spec = tf.TensorSpec(network.input.shape, network.input.dtype)

    @tf.function(input_signature=[spec], autograph=False)
    def outputs(images):
        return tf.nest.flatten(network(images, training=False))

    function = freeze(outputs.get_concrete_function(), lower_control_flow=False)
    return lambda images: tf.nest.flatten(function(images))


def with_constants(predictor: Predictor, model: keras.Model) -> Callable | None:
    """Lets a predictor of a model look at images through constant graphs.

    Args:
        predictor: What labels images.
        model: Its model.

    Returns:
        What gives the features of `features_model` from the same graph, so that the
        weights are stored once; None for a model that has none.
    """
    joint = features_model(model, logits=True)
    network = predictor.network if joint is None else joint
    function = constant(network)
    names = ["logits"] if joint is None else sorted(joint.output)

    def named(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(names, function(images), strict=True))

    def logits(images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return named(images)["logits"]

    def features(images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        outputs = named(images)
        del outputs["logits"]
        return outputs

    for scale, own in predictor.networks.items():
        shares = own is predictor.network
        predictor.networks[scale] = logits if shares else _logits_alone(own)
    return features if joint is not None else None


def _logits_alone(network: keras.Model) -> Callable:
    function = constant(network)
    return lambda images, training=False: function(images)[0]
