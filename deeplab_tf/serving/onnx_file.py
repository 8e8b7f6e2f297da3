"""A model as an ONNX file: images of any size in, label maps out.

ONNX Runtime and OpenVINO run it without TensorFlow.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from deeplab_tf.config import ModelConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.inference import pad_with_mean_pixel
from deeplab_tf.models.layers import q_sigmoid
from deeplab_tf.models.resampling import align_size
from deeplab_tf.serving.artefact import Artefact, import_extra, pixels, read_file
from deeplab_tf.serving.native_layers import NATIVE, native
from deeplab_tf.serving.publication import ONNX, publish_artefact, require_replaceable
from deeplab_tf.serving.signatures import INPUT, OUTPUT, PROBABILITIES

if TYPE_CHECKING:
    import onnx
    import onnxruntime

# Has every operation here, and is read by every engine since 2023.
_OPSET = 18
_INFO = "dataset_info"
_AXES = ("batch", "height", "width")


def _convolved(operation: Callable, layer: layers.Layer, x: tf.Tensor) -> tf.Tensor:
    """Returns a convolution by an operation that knows atrous rates itself.

    TensorFlow takes the image apart for them instead, which is slow elsewhere. It has
    no kernel for atrous depthwise ones: these graphs are for conversion only.
    """
    x = operation(
        input=x,
        filter=layer.kernel,
        strides=[1, *layer.strides, 1],
        padding=layer.padding.upper(),
        dilations=[1, *layer.dilation_rate, 1],
    )
    return layer.activation(x + layer.bias if layer.use_bias else x)


@keras.saving.register_keras_serializable("deeplab_tf")
class NativeConv2D(layers.Conv2D):
    """A convolution that says its atrous rate."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolved `[b, h, w, filters]`."""
        return _convolved(tf.raw_ops.Conv2D, self, x)


@keras.saving.register_keras_serializable("deeplab_tf")
class NativeDepthwiseConv2D(layers.DepthwiseConv2D):
    """A depthwise convolution that says its atrous rate."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolved `[b, h, w, channels]`."""
        return _convolved(tf.raw_ops.DepthwiseConv2dNative, self, x)


@keras.saving.register_keras_serializable("deeplab_tf")
class NativeActivation(layers.Activation):
    """An activation whose constants have an axis.

    tf2onnx 1.17 stumbles over a number that is added to a convolution, and then leaves
    every transposition in the graph.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the activation of `x`."""
        if self.activation is not q_sigmoid:
            return super().call(x)
        return tf.nn.relu6(x + tf.constant([3.0])) * 0.16667


_KINDS = NATIVE | {
    layers.Conv2D: NativeConv2D,
    layers.DepthwiseConv2D: NativeDepthwiseConv2D,
    layers.Activation: NativeActivation,
}


def export_onnx(
    model: keras.Model,
    path: str,
    probabilities: bool = False,
    info: DatasetInfo | None = None,
) -> None:
    """Writes an ONNX file that labels images of any number and size.

    `ImageTensor` is uint8 `[batch, height, width, channels]`, RGB 0..255;
    `SemanticPredictions` is int32 `[batch, height, width]`: the labels of
    `predict_labels` at one scale, padding being part of the graph.

    Args:
        model: A model of `build_model`, of float32.
        path: File to write, `.onnx` at its end; replaced once the new one is whole.
        probabilities: Whether `SemanticProbabilities`, float32 `[batch, height, width,
            num_classes]`, is another output.
        info: Class names and colours to send along.

    Raises:
        UserError: if the converter is not installed, and for settings that cannot
            work.
    """
    if not path.endswith(ONNX):
        raise UserError(f"an ONNX file has .onnx at its end; received {path}")
    require_replaceable(path)
    onnx, tf2onnx = (import_extra(x, path, "ONNX") for x in ("onnx", "tf2onnx"))
    serve = _serving(model, probabilities)
    converted, _ = tf2onnx.convert.from_function(
        serve, input_signature=serve.input_signature, opset=_OPSET
    )
    _name_input(converted.graph)
    _name_axes(converted.graph)
    _pad_explicitly(converted.graph, onnx.helper.make_attribute)
    if info is not None:
        onnx.helper.set_model_props(converted, {_INFO: info.to_json()})
    onnx.checker.check_model(converted, full_check=True)
    with publish_artefact(path) as unfinished, open(unfinished, "wb") as file:
        file.write(converted.SerializeToString())


def _serving(
    model: keras.Model, probabilities: bool
) -> tf.types.experimental.PolymorphicFunction:
    """Returns what labels images, as a graph without sizes."""
    config = model.model_config
    network = native(model, _KINDS)
    shape = [None, None, None, config.channels]

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        height, width = tf.unstack(tf.shape(images)[1:3])
        logits = network(_pad_to_stride(images, config), training=False)
        logits = logits[:, :height, :width]
        outputs = {OUTPUT: tf.argmax(logits, axis=-1, output_type=tf.int32)}
        return outputs | (
            {PROBABILITIES: tf.nn.softmax(logits)} if probabilities else {}
        )

    signature = [tf.TensorSpec(shape, tf.uint8, name=INPUT)]
    return tf.function(serve, signature, autograph=False)


def _pad_to_stride(images: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Returns images padded with the mean pixel, sides of `k * output_stride + 1`."""
    stride = config.output_stride
    # Enough for every size, then cut: engines that follow which values a size may have
    # take a padding that depends on it for negative.
    most = (stride - 1, stride - 1)
    images = tf.cast(images, tf.float32)
    padded = pad_with_mean_pixel(images, most, config.mean_pixel)
    sides = align_size(tf.shape(images)[1:3], stride)
    return padded[:, : sides[0], : sides[1]]


def _name_input(graph: "onnx.GraphProto") -> None:
    """Gives the input its name, which the converter has in small letters."""
    old = graph.input[0].name
    graph.input[0].name = INPUT
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = INPUT


def _name_axes(graph: "onnx.GraphProto") -> None:
    """Names the open sizes, for whoever looks at the file."""
    for value in (*graph.input, *graph.output):
        sides = value.type.tensor_type.shape.dim
        for name, side in zip(_AXES, sides, strict=False):
            side.dim_param = name


def _pad_explicitly(graph: "onnx.GraphProto", make_attribute: Callable) -> None:
    """Spells the padding of dense convolutions out.

    ONNX Runtime refuses atrous ones that ask for the same size instead.
    """
    for node in graph.node:
        found = {attribute.name: attribute for attribute in node.attribute}
        automatic = found.get("auto_pad")
        if automatic is None or automatic.s != b"SAME_UPPER" or node.op_type != "Conv":
            continue
        if set(found["strides"].ints) != {1}:
            continue
        kernel, rates = found["kernel_shape"].ints, found["dilations"].ints
        total = [rate * (k - 1) for rate, k in zip(rates, kernel, strict=True)]
        before = [missing // 2 for missing in total]
        after = [n - m for n, m in zip(total, before, strict=True)]
        node.attribute.remove(automatic)
        node.attribute.append(make_attribute("pads", before + after))


class OnnxPredictor(Artefact):
    """An ONNX file of `export_onnx` as evaluation and prediction look at it.

    Args:
        path: The file.

    Raises:
        UserError: if the file is broken or of another kind, or ONNX Runtime is not
            installed.
    """

    def __init__(self, path: str):
        self._session = _session(path)
        inputs = {x.name: x for x in self._session.get_inputs()}
        outputs = {x.name: x for x in self._session.get_outputs()}
        if set(inputs) != {INPUT} or OUTPUT not in outputs:
            raise UserError(
                f"{path} takes {sorted(inputs)} and gives {sorted(outputs)}; {INPUT} "
                f"and {OUTPUT} are needed"
            )
        told = self._session.get_modelmeta().custom_metadata_map.get(_INFO)
        info = DatasetInfo.from_json(told, f"{path}: {_INFO}") if told else None
        scores, channels = outputs.get(PROBABILITIES), inputs[INPUT].shape[-1]
        protocol = {"artefact": "ONNX"}
        classes = scores and scores.shape[-1]
        super().__init__(path, channels, info, protocol, bool(scores), classes)

    def _labels(self, images: np.ndarray) -> np.ndarray:
        return self._session.run([OUTPUT], {INPUT: pixels(images)})[0]

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return self._session.run([PROBABILITIES], {INPUT: pixels(images)})[0]


def _session(path: str) -> "onnxruntime.InferenceSession":
    """Returns what runs a file."""
    engine = import_extra("onnxruntime", path, "ONNX")
    content = read_file(path)
    try:
        return engine.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # the engine has no public class of its errors
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as an ONNX file: {reason}") from error
