"""Stores ONNX files in 16 bits, and quantises them to 8 bits with ONNX Runtime.

Calibration, per-channel weights and asymmetric activations are those of ONNX Runtime's
static quantisation (1712.05877, Sec. 2). Only layers of the network are quantised:
normalising the image and resizing logits in 8 bits would cost 3 points of mIoU.
"""

import dataclasses
import os
import tempfile
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np

from deeplab_tf.serving.layer_errors import (
    LayerError,
    compute_errors,
    parse_layer_name,
)
from deeplab_tf.serving.signatures import INPUT

if TYPE_CHECKING:
    import onnx

# Operations that start a layer, and those that ONNX Runtime fuses into it.
_OPERATIONS, _ACTIVATIONS = ("Conv", "Add", "Concat"), ("Clip", "Relu")
# Prefix of the 8-bit tensors in a graph that also has the exact ones.
_PREFIX = "int8/"
# What the quantiser appends to the name of a tensor after rounding.
_RESTORED = "_DequantizeLinear_Output"


@dataclasses.dataclass
class Layer:
    """A layer of an ONNX graph: an operation and its activation.

    Attributes:
        name: Name of the Keras layer of the operation; `name:2` is its second call.
        nodes: Names of the nodes.
        output: Name of the output tensor.
    """

    name: str
    nodes: list[str]
    output: str


def find_layers(graph: "onnx.GraphProto") -> list[Layer]:
    """Returns the layers that can be quantised, in network order."""
    layers: list[Layer] = []
    # Layers by output; tensors that are computed from the first convolution on.
    producers: dict[str, Layer] = {}
    features: set[str] = set()
    for node in graph.node:
        is_feature = node.op_type == "Conv" or not features.isdisjoint(node.input)
        if not is_feature or node.op_type == "Shape":
            continue
        features.update(node.output)
        if node.op_type in _OPERATIONS:
            name = _find_layer_name(node)
            # A layer may be called several times.
            calls = sum(layer.name.partition(":")[0] == name for layer in layers)
            layer = Layer(f"{name}:{calls + 1}" if calls else name, [], "")
            layers.append(layer)
        elif node.op_type in _ACTIVATIONS and node.input[0] in producers:
            layer = producers[node.input[0]]
        else:
            continue
        layer.nodes.append(node.name)
        layer.output = node.output[0]
        producers[layer.output] = layer
    return layers


def _find_layer_name(node: "onnx.NodeProto") -> str:
    """Returns the name of the Keras layer of a node.

    The converter renames convolutions, but neither their biases nor their kernels,
    except those of depthwise convolutions.
    """
    weights = [name for name in node.input[:0:-1] if "/" in name]
    is_convolution = node.op_type == "Conv" and weights
    return parse_layer_name(weights[0] if is_convolution else node.name)


def name_outputs(graph: "onnx.GraphProto") -> None:
    """Renames the output of each layer to the name of the layer."""
    new = {layer.output: layer.name for layer in find_layers(graph)}
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = new.get(name, name)
    for value in graph.value_info:
        value.name = new.get(value.name, value.name)


def store_as_float16(model: "onnx.ModelProto") -> None:
    """Stores weights as float16, which the graph converts to float32."""
    from onnx import TensorProto, helper, numpy_helper

    limit = np.finfo(np.float16).max
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        name, value = weight.name, numpy_helper.to_array(weight)
        half = np.clip(value, -limit, limit).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}/float16"))
        casts.append(helper.make_node("Cast", [weight.name], [name], name, to=1))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _CalibrationReader:
    """Feeds calibration images to ONNX Runtime."""

    def __init__(self, images: Iterable[np.ndarray]):
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next image by the name of the input, or None at the end."""
        image = next(self._images, None)
        return None if image is None else {INPUT: image}


def quantize(
    model: "onnx.ModelProto",
    images: Iterable[np.ndarray],
    float_layers: Collection[str] = (),
) -> "onnx.ModelProto":
    """Returns a model that computes in 8 bits.

    Args:
        model: A model of `convert_to_onnx`.
        images: uint8 images `[1, height, width, channels]`, from which the range of
            each activation is measured: the means of their minima and maxima.
        float_layers: Names of layers to leave in float32.
    """
    import onnx
    from onnxruntime import quantization

    layers = find_layers(model.graph)
    exact, nodes = (
        [x for y in layers if (y.name in float_layers) == is_float for x in y.nodes]
        for is_float in (True, False)
    )
    if not nodes:
        return model
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    # Else, ONNX Runtime logs advice to optimise the graph, which would rename tensors.
    onnx.helper.set_model_props(marked, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        quantization.quantize_static(
            marked,
            path,
            _CalibrationReader(images),
            op_types_to_quantize=[*_OPERATIONS, *_ACTIVATIONS],
            nodes_to_quantize=nodes,
            per_channel=True,
            # On x86 unsigned activations are faster than signed ones.
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # The extremes of all images are rare values, and cost 0.2 points of mIoU.
            extra_options={"CalibMovingAverage": True},
        )
        rounded = onnx.load(path)
    _restore_inputs(rounded.graph, model.graph, exact)
    return rounded


def _restore_inputs(
    rounded: "onnx.GraphProto", exact: "onnx.GraphProto", names: Collection[str]
) -> None:
    """Makes the nodes `names` read features that are not rounded.

    The quantiser rounds a tensor if the layer that writes it computes in 8 bits.
    """
    kept = {node.name for node in rounded.node}
    removed = {node.output[0]: node for node in exact.node if node.name not in kept}
    parameters: set[str] = set()
    # New nodes have to precede their readers.
    for position, node in reversed(list(enumerate(rounded.node))):
        for i, name in enumerate(node.input if node.name in names else ()):
            if not name.endswith(_RESTORED):
                continue
            node.input[i] = source = name.removesuffix(_RESTORED)
            if source in removed:
                activation = _copy_activation(removed[source], source)
                activation.output[0] += f"/{position}"
                node.input[i] = activation.output[0]
                parameters.update(activation.input[1:])
                rounded.node.insert(position, activation)
    parameters -= {weight.name for weight in rounded.initializer}
    rounded.initializer.extend(x for x in exact.initializer if x.name in parameters)


def _copy_activation(node: "onnx.NodeProto", source: str) -> "onnx.NodeProto":
    """Returns a copy of an activation that reads `source`.

    The quantiser removes activations where the range of 8-bit values suffices.
    """
    import onnx

    inputs, output = [source, *node.input[1:]], f"{source}/activated"
    return onnx.helper.make_node(node.op_type, inputs, [output])


def measure_layer_errors(
    exact: "onnx.ModelProto",
    rounded: "onnx.ModelProto",
    images: Iterable[np.ndarray],
) -> list[LayerError]:
    """Returns the error of each layer, in network order.

    Args:
        exact: A model of `convert_to_onnx`.
        rounded: The model that `quantize` made of it.
        images: uint8 images `[1, height, width, channels]`.
    """
    import onnxruntime

    layers = find_layers(exact.graph)
    session = onnxruntime.InferenceSession(
        _build_comparison(exact, rounded, layers).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    sums = sum(np.float64(session.run(None, {INPUT: image})) for image in images)
    names = [layer.name for layer in layers]
    return compute_errors(names, sums.reshape(len(names), 2))


def _build_comparison(
    exact: "onnx.ModelProto", rounded: "onnx.ModelProto", layers: list[Layer]
) -> "onnx.ModelProto":
    """Returns a model that compares each 8-bit layer with the exact one.

    Every 8-bit layer reads the exact outputs of the layers before, and rounds them. For
    each layer, the model returns the sums of squares of the error and of the exact
    output without its mean.
    """
    import onnx

    make_node, both = onnx.helper.make_node, onnx.ModelProto()
    both.CopyFrom(exact)
    renamed = onnx.compose.add_prefix(rounded, _PREFIX)
    sources = {_PREFIX + name: name for name in (INPUT, *(x.output for x in layers))}
    for node in renamed.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = sources.get(name, name)
    activations = {
        x.output[0]: x for x in exact.graph.node if x.op_type in _ACTIVATIONS
    }
    nodes, outputs = list(renamed.graph.node), []
    for name in (layer.output for layer in layers):
        result, difference, mean, centred = (
            f"{_PREFIX}{name}{ending}" for ending in ("", "/error", "/mean", "/centred")
        )
        if name in activations:
            nodes.append(_copy_activation(activations[name], result))
            result = nodes[-1].output[0]
        nodes += [
            make_node("Sub", [result, name], [difference]),
            make_node("ReduceMean", [name], [mean]),
            make_node("Sub", [name, mean], [centred]),
        ]
        for x in (difference, centred):
            outputs.append(f"{x}/sum")
            nodes.append(make_node("ReduceSumSquare", [x], [outputs[-1]]))
    both.graph.node.extend(nodes)
    both.graph.initializer.extend(renamed.graph.initializer)
    del both.graph.output[:], both.graph.value_info[:]
    both.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in outputs
    )
    return both
