"""Reads the operations of a frozen graph, official or ours."""

import collections
import math
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from deeplab_tf.checkpoints.graphs.convolutions import (
    ACTIVATION,
    AFFINE,
    CONCATENATE,
    CONVOLUTION,
    DEPTHWISE,
    MERGE_PHASES,
    PASS,
    PHASES,
    POOL,
    RELU,
    RELU6,
    RESIZE,
    SIGMOID,
    SUBSAMPLE,
    Operation,
    name_resizing,
)

# More elements than any kernel has; a few bytes can claim any number.
_MAX_ELEMENTS = 2**26
_ALIASES = {"Identity", "Enter", "ReadVariableOp", "Switch"}
# Their outputs are sizes, not features.
_SIZES = {"Shape", "ShapeN", "Size", "Rank"}
_ACTIVATIONS = {"Relu": RELU, "Relu6": RELU6, "Sigmoid": SIGMOID}
_NORMALIZATIONS = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
_SUMS = {"Add", "AddV2", "BiasAdd"}
# Operations on constants, such as those of a normalisation that is not folded.
_ARITHMETIC: dict[str, Callable] = {
    "Add": np.add,
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "RealDiv": np.divide,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Sqrt": np.sqrt,
    "Reshape": lambda x, shape: x.reshape(shape),
    "Squeeze": np.squeeze,
}
_SHAPING = {"Reshape", "Squeeze"}


class FrozenGraph:
    """The operations of a frozen graph.

    Attributes:
        constants: Values of constant nodes by name.
        operations: In topological order.
        resizings: Coordinates of all resizes.
    """

    def __init__(self, graph: tf.compat.v1.GraphDef):
        self.constants: dict[str, np.ndarray] = {}
        self._origins: dict[str, str] = {}
        self.resizings: set[str] = set()
        self.operations: list[Operation] = []
        for node in _sort_nodes(graph):
            self._add_node(node, [_node_name(x) for x in node.input if x[0] != "^"])

    def _add_node(self, node, inputs: list[str]) -> None:
        """Stores a node's value if it is constant; otherwise appends its operation."""
        if node.op in _SIZES:
            return
        if node.op in _ALIASES and inputs:
            self._origins[node.name] = self._origins.get(inputs[0], inputs[0])
        constant = self._evaluate_constant(node, inputs)
        if constant is not None:
            self.constants[node.name] = constant
        else:
            self.operations.append(self._read_operation(node, inputs))

    def _evaluate_constant(self, node, inputs: list[str]) -> np.ndarray | None:
        """Computes the value of a node with constant inputs; None for other nodes."""
        if node.op == "Const":
            return _read_constant(node.attr["value"].tensor)
        if not inputs or not all(x in self.constants for x in inputs):
            return None
        values = [self.constants[x] for x in inputs]
        if node.op in _ALIASES:
            return values[0]
        if node.op not in _ARITHMETIC or any(x.dtype.kind not in "fi" for x in values):
            return None
        if node.op not in _SHAPING:
            size = math.prod(np.broadcast_shapes(*(x.shape for x in values)))
            if size > max(x.size for x in values):
                return None
        with np.errstate(all="ignore"):
            return _ARITHMETIC[node.op](*values)

    def _read_operation(self, node, inputs: list[str]) -> Operation:
        """Returns an operation; those of unknown kinds pass on their inputs."""
        data = tuple(x for x in inputs if x not in self.constants)
        base = Operation(PASS, data, (node.name,), node.name)
        if node.op in _ACTIVATIONS:
            return base._replace(kind=ACTIVATION, activation=_ACTIVATIONS[node.op])
        if node.op in _KINDS:
            return base._replace(kind=_KINDS[node.op])
        read = _READERS.get(node.op, FrozenGraph._read_affine)
        return read(self, base, node, inputs)

    def _read_pool(self, base: Operation, node, inputs: list[str]) -> Operation:
        return base._replace(
            kind=POOL if node.op == "AvgPool" else SUBSAMPLE,
            strides=_read_spatial_sides(node, "strides"),
            size=_read_spatial_sides(node, "ksize"),
        )

    def _read_resize(self, base: Operation, node, inputs: list[str]) -> Operation:
        flags = (node.attr[name].b for name in ("align_corners", "half_pixel_centers"))
        self.resizings.add(name_resizing(*flags))
        size = self.constants.get(inputs[1])
        size = None if size is None else tuple(map(int, size))
        return base._replace(kind=RESIZE, inputs=base.inputs[:1], size=size)

    def _read_phase_change(self, base: Operation, node, inputs: list[str]) -> Operation:
        """Returns a SpaceToBatchND or BatchToSpaceND as an operation."""
        kind = PHASES if node.op == "SpaceToBatchND" else MERGE_PHASES
        rate = tuple(map(int, self.constants.get(inputs[1], (1, 1))))
        return base._replace(kind=kind, inputs=base.inputs[:1], rate=rate)

    def _read_convolution(self, base: Operation, node, inputs: list[str]) -> Operation:
        """Returns a convolution with its kernel, strides and rate."""
        kernel = self.constants.get(inputs[1])
        if kernel is None or kernel.ndim != 4 or node.attr["data_format"].s == b"NCHW":
            return base  # no layer of a network of ours
        is_depthwise = node.op == "DepthwiseConv2dNative"
        return base._replace(
            kind=DEPTHWISE if is_depthwise else CONVOLUTION,
            kernel=kernel,
            weights=self._origins.get(inputs[1], inputs[1]),
            strides=_read_spatial_sides(node, "strides"),
            rate=_read_spatial_sides(node, "dilations"),
        )

    def _read_affine(self, base: Operation, node, inputs: list[str]) -> Operation:
        """Returns an affine operation if all inputs but one are constant."""
        constants = [self.constants[x] for x in inputs if x in self.constants]
        if len(base.inputs) != 1 or not constants:
            return base
        if node.op in _NORMALIZATIONS and len(constants) == 4:
            return _read_normalization(base, node, constants)
        constant = constants[0]
        if node.op == "Mul":
            return base._replace(kind=AFFINE, scale=constant)
        if node.op in _SUMS:
            return base._replace(kind=AFFINE, offset=constant)
        if node.op == "Sub" and inputs[0] in base.inputs:
            return base._replace(kind=AFFINE, offset=-constant)
        return base


def _read_normalization(base: Operation, node, constants: list) -> Operation:
    """Returns a batch normalisation with constant statistics as affine operation."""
    gamma, beta, mean, variance = map(np.float64, constants)
    # The fused operation raises smaller epsilons to this.
    epsilon = max(node.attr["epsilon"].f, 1.001e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    return base._replace(kind=AFFINE, scale=scale, offset=beta - mean * scale)


# Our pooling at any size is a matrix product.
_KINDS = {"Mean": POOL, "BatchMatMulV2": POOL, "ConcatV2": CONCATENATE}
_READERS = {
    "Conv2D": FrozenGraph._read_convolution,
    "DepthwiseConv2dNative": FrozenGraph._read_convolution,
    "AvgPool": FrozenGraph._read_pool,
    "MaxPool": FrozenGraph._read_pool,
    "ResizeBilinear": FrozenGraph._read_resize,
    "SpaceToBatchND": FrozenGraph._read_phase_change,
    "BatchToSpaceND": FrozenGraph._read_phase_change,
}


def _node_name(tensor: str) -> str:
    """Returns the name of the node that computes a tensor."""
    return tensor.partition(":")[0]


def _read_spatial_sides(node, attribute: str) -> tuple[int, int]:
    """Returns height and width from a list attribute `[batch, height, width, ...]`."""
    values = list(node.attr[attribute].list.i) or [1, 1, 1, 1]
    return values[1], values[2]


def _read_constant(tensor) -> np.ndarray | None:
    size = math.prod(side.size for side in tensor.tensor_shape.dim)
    return tf.make_ndarray(tensor) if 0 <= size <= _MAX_ELEMENTS else None


def _sort_nodes(graph: tf.compat.v1.GraphDef) -> Iterator:
    """Yields the nodes in topological order, without those of endless loops.

    The back edges of while loops are ignored.
    """
    nodes = {node.name: node for node in graph.node}
    consumers = collections.defaultdict(list)
    missing = {}
    for node in graph.node:
        inputs = {_node_name(x) for x in node.input if x[0] != "^"} & nodes.keys()
        if node.op == "Merge":
            inputs = {x for x in inputs if nodes[x].op != "NextIteration"}
        missing[node.name] = len(inputs)
        for name in inputs:
            consumers[name].append(node.name)
    ready = collections.deque(name for name, count in missing.items() if not count)
    while ready:
        name = ready.popleft()
        yield nodes[name]
        for consumer in consumers[name]:
            missing[consumer] -= 1
            if not missing[consumer]:
                ready.append(consumer)
