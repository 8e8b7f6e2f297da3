"""Exports a model as an ONNX file for images of any size, and loads such files.

ONNX Runtime and OpenVINO run them without TensorFlow.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config import ModelConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError, import_extra, one_line
from deeplab_tf.inference import pad_with_mean_pixel
from deeplab_tf.models.checks import BUILT
from deeplab_tf.models.layers import q_sigmoid
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.models.resampling import align_size
from deeplab_tf.serving import onnx_quantization
from deeplab_tf.serving.artefact import (
    Artefact,
    read_file,
    round_to_uint8,
)
from deeplab_tf.serving.calibration import (
    IMAGES,
    check_calibration,
    read_samples,
)
from deeplab_tf.serving.choices import ONNX, ONNX_PRECISIONS
from deeplab_tf.serving.layer_errors import LayerError
from deeplab_tf.serving.native_layers import NATIVE_LAYERS, use_native_layers
from deeplab_tf.serving.publication import publish_artefact, require_replaceable
from deeplab_tf.serving.quantized_weights import store_integer_weights
from deeplab_tf.serving.signatures import INPUT, OUTPUT, PROBABILITIES

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    from google.protobuf.message import Message

# ONNX Runtime's level of log messages.
_FATAL = 4
# Has all operations needed, and every engine since 2023 supports it.
_OPSET = 18
# Keys of the metadata.
_INFO, _PRECISION = "dataset_info", "precision"
_AXES = ("batch", "height", "width")


def _convolve(operation: Callable, layer: layers.Layer, x: tf.Tensor) -> tf.Tensor:
    """Computes a convolution by an operation with an attribute for the atrous rate.

    Keras splits the image into phases instead, which is slow in other engines.
    TensorFlow cannot run the atrous depthwise operation, only convert it.
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
    """A convolution that keeps its atrous rate as an attribute."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution of `x`, `[b, h, w, filters]`."""
        return _convolve(tf.raw_ops.Conv2D, self, x)


@keras.saving.register_keras_serializable("deeplab_tf")
class NativeDepthwiseConv2D(layers.DepthwiseConv2D):
    """A depthwise convolution that keeps its atrous rate as an attribute."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolved `[b, h, w, channels]`."""
        return _convolve(tf.raw_ops.DepthwiseConv2dNative, self, x)


@keras.saving.register_keras_serializable("deeplab_tf")
class NativeActivation(layers.Activation):
    """An activation without scalar constants.

    tf2onnx 1.17 cannot optimise the addition of a scalar to a convolution, and then
    keeps all transpositions in the graph.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the activation of `x`."""
        if self.activation is not q_sigmoid:
            return super().call(x)
        return tf.nn.relu6(x + tf.constant([3.0])) * 0.16667


_LAYER_TYPES = NATIVE_LAYERS | {
    layers.Conv2D: NativeConv2D,
    layers.DepthwiseConv2D: NativeDepthwiseConv2D,
    layers.Activation: NativeActivation,
}


@check_arguments(model=BUILT, precision=ONNX_PRECISIONS, calibration=IMAGES)
def export_onnx(
    model: keras.Model,
    path: str,
    probabilities: bool = False,
    precision: str = "float32",
    calibration: Iterable | None = None,
    info: DatasetInfo | None = None,
    float_layers: Collection[str] = (),
) -> None:
    """Writes an ONNX file that labels batches of images of any size.

    Its input is `ImageTensor`, uint8 RGB 0..255 `[batch, height, width, channels]`. Its
    output is `SemanticPredictions`, int32 `[batch, height, width]`: the labels of
    `predict_labels` at one scale. Padding is part of the graph.

    Args:
        model: A float32 model of `build_model`, or a quantised one of `Trainer`, which
            gives an int8 file.
        path: File to write atomically, ending in `.onnx`.
        probabilities: Whether to also output `SemanticProbabilities`, float32 `[batch,
            height, width, num_classes]`.
        precision: "float32"; "float16" stores 16-bit weights; "int8" computes in 8 bits
            (ONNX Runtime's static quantisation).
        calibration: For int8, images from which to measure the range of activations;
            see `export_openvino`.
        info: Class names and colours to store in the file.
        float_layers: For int8, names of layers to leave in float32.

    Raises:
        UserError: if the converter is not installed, an argument is invalid, `path` may
            not be replaced, or the model is not float32.
    """
    if not path.endswith(ONNX):
        raise UserError(f"the name of an ONNX file must end in .onnx; received {path}")
    require_replaceable(path)
    check_calibration(model, precision, calibration)
    needed_by = f"{path}: ONNX files need"
    onnx = import_extra("onnx", "export", needed_by)
    if calibration is not None:
        import_extra("onnxruntime", "export", f"{path}: int8 needs")
        samples = read_samples(calibration)
    converted = convert_to_onnx(model, probabilities, needed_by)
    if calibration is not None:
        converted = onnx_quantization.quantize(converted, samples, float_layers)
    if precision == "float16":
        onnx_quantization.store_as_float16(converted)
    notes = {_PRECISION: precision}
    if info is not None:
        notes[_INFO] = info.to_json()
    onnx.helper.set_model_props(converted, notes)
    onnx.checker.check_model(converted, full_check=True)
    with publish_artefact(path) as unfinished, open(unfinished, "wb") as file:
        file.write(converted.SerializeToString())


def convert_to_onnx(
    model: keras.Model, probabilities: bool, needed_by: str
) -> "onnx.ModelProto":
    """Returns the content of an ONNX file, without class names.

    `needed_by` is the start of the error, as in `import_extra`.

    Raises:
        UserError: if the converter is not installed, or the model is not float32.
    """
    onnx, tf2onnx = (import_extra(x, "export", needed_by) for x in ("onnx", "tf2onnx"))
    serve = _make_serving_function(model, probabilities)
    converted, _ = tf2onnx.convert.from_function(
        serve, input_signature=serve.input_signature, opset=_OPSET
    )
    _name_input(converted.graph)
    _name_axes(converted.graph)
    _pad_explicitly(converted.graph, onnx.helper.make_attribute)
    if is_quantized(model):
        store_integer_weights(converted, needed_by)
    else:
        onnx_quantization.name_outputs(converted.graph)
    return converted


def measure_layer_errors(
    model: keras.Model, path: str, images: Iterable[np.ndarray]
) -> list[LayerError]:
    """Returns the error of each layer of an int8 file of `export_onnx`.

    `images` are uint8 `[1, height, width, channels]`.
    """
    import onnx

    rounded = onnx.load_from_string(read_file(path))
    exact = convert_to_onnx(model, False, f"{path}: int8 needs")
    return onnx_quantization.measure_layer_errors(exact, rounded, images)


def _make_serving_function(
    model: keras.Model, probabilities: bool
) -> tf.types.experimental.PolymorphicFunction:
    """Returns a function from uint8 images to labels and maybe probabilities."""
    config = model.model_config
    network = use_native_layers(model, _LAYER_TYPES)
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
    """Pads images with the mean pixel to sides of `k * output_stride + 1`.

    Does nothing if features and pixels do not align there.
    """
    images = tf.cast(images, tf.float32)
    if not config.aligns_features:
        return images
    stride = config.output_stride
    # Pad by the maximum, then crop, because engines that infer the range of values may
    # conclude that a padding that depends on the size is negative.
    most = (stride - 1, stride - 1)
    padded = pad_with_mean_pixel(images, most, config.mean_pixel)
    sides = align_size(tf.shape(images)[1:3], stride)
    return padded[:, : sides[0], : sides[1]]


def _name_input(graph: "onnx.GraphProto") -> None:
    """Restores the name of the input, which the converter makes lower-case."""
    old = graph.input[0].name
    graph.input[0].name = INPUT
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = INPUT


def _name_axes(graph: "onnx.GraphProto") -> None:
    """Names the axes of inputs and outputs, which can have any size."""
    for value in (*graph.input, *graph.output):
        sides = value.type.tensor_type.shape.dim
        for name, side in zip(_AXES, sides, strict=False):
            side.dim_param = name


def _pad_explicitly(graph: "onnx.GraphProto", make_attribute: Callable) -> None:
    """Makes the SAME padding of stride-1 convolutions explicit.

    ONNX Runtime refuses SAME padding for atrous convolutions.
    """
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        automatic = attributes.get("auto_pad")
        if automatic is None or automatic.s != b"SAME_UPPER" or node.op_type != "Conv":
            continue
        if set(attributes["strides"].ints) != {1}:
            continue
        kernel, rates = attributes["kernel_shape"].ints, attributes["dilations"].ints
        total = [rate * (k - 1) for rate, k in zip(rates, kernel, strict=True)]
        before = [missing // 2 for missing in total]
        after = [n - m for n, m in zip(total, before, strict=True)]
        node.attribute.remove(automatic)
        node.attribute.append(make_attribute("pads", before + after))


class OnnxPredictor(Artefact):
    """An ONNX file of `export_onnx`, loaded for evaluation and prediction.

    Raises:
        UserError: if the file is damaged or has other inputs or outputs, or ONNX
            Runtime is not installed.
    """

    def __init__(self, path: str):
        self._session = _load_session(path)
        inputs = {x.name: x for x in self._session.get_inputs()}
        outputs = {x.name: x for x in self._session.get_outputs()}
        if set(inputs) != {INPUT} or OUTPUT not in outputs:
            raise UserError(
                f"{path} has the inputs {sorted(inputs)} and outputs "
                f"{sorted(outputs)}; {INPUT} and {OUTPUT} are needed"
            )
        notes = self._session.get_modelmeta().custom_metadata_map
        stored, precision = notes.get(_INFO), notes.get(_PRECISION)
        info = DatasetInfo.from_json(stored, f"{path}: {_INFO}") if stored else None
        scores, channels = outputs.get(PROBABILITIES), inputs[INPUT].shape[-1]
        protocol = {"artefact": "ONNX"} | (
            {"precision": precision} if precision else {}
        )
        classes = scores and scores.shape[-1]
        super().__init__(path, channels, info, protocol, bool(scores), classes)

    def _labels(self, images: np.ndarray) -> np.ndarray:
        return self._session.run([OUTPUT], {INPUT: round_to_uint8(images)})[0]

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return self._session.run([PROBABILITIES], {INPUT: round_to_uint8(images)})[0]


def _load_session(path: str) -> "onnxruntime.InferenceSession":
    """Loads a file into ONNX Runtime; refuses files that read other files."""
    needed_by = f"{path}: ONNX files need"
    engine, onnx = (
        import_extra(x, "export", needed_by) for x in ("onnxruntime", "onnx")
    )
    content = read_file(path)
    options = engine.SessionOptions()
    options.log_severity_level = _FATAL  # errors are raised
    try:
        tensors = _find_tensors(onnx.load_model_from_string(content), onnx.TensorProto)
        outside = [x.name for x in tensors if x.data_location == x.EXTERNAL]
        if not outside:
            return engine.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
    except Exception as error:  # ONNX Runtime has no public error class
        reason = one_line(str(error).strip().partition("\n")[0])
        raise UserError(f"{path} cannot be read as an ONNX file: {reason}") from error
    raise UserError(
        f"{path} reads {one_line(outside[0])} from another file; convert it to one "
        "file with onnx.save"
    )


def _find_tensors(message: "Message", kind: type) -> Iterator["onnx.TensorProto"]:
    """Yields all tensors in a message, those of nested graphs included."""
    if isinstance(message, kind):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Sequence) else [value]:
                yield from _find_tensors(part, kind)
