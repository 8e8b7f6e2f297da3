"""Quantises OpenVINO graphs to 8 bits with NNCF, and measures the error of layers."""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deeplab_tf.serving.layer_errors import LayerError, compute_errors
from deeplab_tf.serving.onnx_quantization import Layer
from deeplab_tf.serving.signatures import INPUT

if TYPE_CHECKING:
    import openvino

# Operations between a convolution and the output of its layer.
_FUSED = ("Add", "Clamp", "Relu")


def quantize(
    graph: "openvino.Model",
    images: Iterable[np.ndarray],
    layers: Sequence[Layer],
    float_layers: Collection[str] = (),
) -> "openvino.Model":
    """Returns a graph that computes in 8 bits.

    Args:
        graph: A float32 graph.
        images: uint8 images `[1, height, width, channels]`, from which the range of
            each activation is measured.
        layers: The layers of the ONNX file from which the graph was converted.
        float_layers: Names of layers to leave in float32.
    """
    import nncf

    nncf.set_log_level(logging.WARNING)  # not a line for each layer
    if all(layer.name in float_layers for layer in layers):
        return graph
    ports, samples = _map_outputs(graph), [{INPUT: image} for image in images]
    kept = [
        name
        for layer in layers
        if layer.name in float_layers
        for name in _find_operations(ports[layer.output].get_node())
    ]
    return nncf.quantize(
        graph,
        nncf.Dataset(samples),
        subset_size=len(samples),
        # Parts of a layer that NNCF would not quantise are not errors.
        ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
    )


def _map_outputs(graph: "openvino.Model") -> "dict[str, openvino.Output]":
    """Returns the outputs of operations by their tensor names in ONNX."""
    return {
        name: port
        for operation in graph.get_ops()
        for port in operation.outputs()
        for name in port.names
    }


def _find_operations(node: "openvino.Node") -> Iterator[str]:
    """Yields the names of a layer's operations, from the last to the first."""
    yield node.get_friendly_name()
    if node.get_type_name() not in _FUSED:
        return
    first, *others = (port.get_node() for port in node.input_values())
    # The sum of two features is a layer of its own.
    if all(other.get_type_name() in ("Constant", "Convert") for other in others):
        yield from _find_operations(first)


def measure_layer_errors(
    exact: "openvino.Model",
    rounded: "openvino.Model",
    layers: Sequence[Layer],
    images: Iterable[np.ndarray],
) -> list[LayerError]:
    """Returns the error of each layer, in network order.

    The arguments are those of `onnx_quantization.measure_layer_errors`. The graphs are
    combined and cannot be used further.
    """
    import openvino

    results = _build_comparison(exact, rounded, [layer.output for layer in layers])
    both = openvino.Model(results, exact.get_parameters())
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(both, "CPU", hints)
    sums = np.zeros((len(layers), 2))
    for image in images:
        found = compiled({INPUT: image})
        sums += np.reshape([found[i] for i in range(sums.size)], sums.shape)
    return compute_errors([layer.name for layer in layers], sums)


def _build_comparison(
    exact: "openvino.Model", rounded: "openvino.Model", outputs: Sequence[str]
) -> "list[openvino.Node]":
    """Returns the sums of squares of each layer's error and of its exact output.

    Every 8-bit layer reads the exact outputs of the layers before, and rounds them.
    """
    import openvino

    ops = openvino.opset13
    ports, rounded_ports = _map_outputs(exact), _map_outputs(rounded)

    def sum_squares(x: "openvino.Node") -> "openvino.Node":
        axes = list(range(len(x.output(0).partial_shape)))
        return ops.reduce_sum(ops.multiply(x, x), axes)

    for source, target in zip(rounded.inputs, exact.inputs, strict=True):
        for reader in source.get_target_inputs():
            reader.replace_source_output(target)
    results = []
    for name in outputs:
        value, result = ports[name], rounded_ports[name]
        for reader in result.get_target_inputs():
            reader.replace_source_output(value)
        axes = list(range(len(value.partial_shape)))
        mean = ops.reduce_mean(value, axes, keep_dims=True)
        results += [
            sum_squares(ops.subtract(result, value)),
            sum_squares(ops.subtract(value, mean)),
        ]
    return results
