"""Finds the convolutions of a network in a graph of operations of any format."""

import collections
import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Kinds of operations. Others only pass values on.
CONVOLUTION, DEPTHWISE = "convolution", "depthwise"
AFFINE = "affine"  # multiplies by `scale`, then adds `offset`, per channel
ACTIVATION = "activation"
POOL = "pool"  # averages over a window of `size`, or over the entire image
SUBSAMPLE = "subsample"  # max pooling with `strides`
RESIZE = "resize"  # to `size`, if it is known
CONCATENATE = "concatenate"
PHASES = "phases"  # splits into phases (SpaceToBatch) of `rate`
MERGE_PHASES = "merge phases"
PASS = "pass"

RELU, RELU6, SIGMOID = "relu", "relu6", "sigmoid"
# relu6(x + 3) / 6
HARD_SIGMOID = "hard sigmoid"
_HARD_SIGMOID_OFFSET, _HARD_SIGMOID_SCALE = 3.0, 1 / 6

# Coordinates of bilinear resizing; "legacy" is neither.
ALIGN_CORNERS, HALF_PIXEL, LEGACY = "align_corners", "half_pixel", "legacy"


def name_resizing(aligns_corners: bool, has_half_pixels: bool) -> str:
    """Names how a resize maps coordinates: ALIGN_CORNERS, HALF_PIXEL or LEGACY."""
    if aligns_corners:
        return ALIGN_CORNERS
    return HALF_PIXEL if has_half_pixels else LEGACY


class Operation(NamedTuple):
    """An operation of a graph.

    Attributes:
        kind: One of the constants of this module.
        inputs: Names of its inputs that are not constant.
        outputs: Names of its outputs.
        name: Name, for errors.
        kernel: Kernel of a convolution, `[height, width, channels, filters]`, or
            `[height, width, channels, 1]` if it is depthwise; None if it is unknown.
        weights: Identifies the kernel. Convolutions with the same one are one layer,
            called several times; None is always a new layer.
        strides: Vertical and horizontal stride.
        rate: Vertical and horizontal atrous rate.
        scale: Factor of an affine operation.
        offset: Offset of an affine operation, or bias of a convolution.
        activation: Name of an activation.
        size: Height and width of a pooling window or of a resized tensor; None is
            the entire image, or unknown.
    """

    kind: str
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]
    name: str = ""
    kernel: Any = None
    weights: Hashable = None
    strides: tuple[int, int] = (1, 1)
    rate: tuple[int, int] = (1, 1)
    scale: Any = 1.0
    offset: Any = 0.0
    activation: str = ""
    size: tuple[int, int] | None = None


class Pool(NamedTuple):
    """An average pooling; a window of None is the entire image."""

    window: tuple[int, int] | None
    strides: tuple[int, int]


class _Flow(NamedTuple):
    """Where the values of a tensor come from.

    Attributes:
        sources: The convolutions that they come from, in order of concatenation.
        stride: Image pixels per cell.
        pool: The pooling since the sources, if any.
        phases: Vertical and horizontal number of phases.
        is_concatenated: Whether the sources are concatenated.
    """

    sources: tuple[int, ...] = ()
    stride: int = 1
    pool: Pool | None = None
    phases: tuple[int, int] = (1, 1)
    is_concatenated: bool = False


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution of a network, with the affine operations that follow it.

    Attributes:
        name: Name, for errors.
        is_depthwise: Whether it is depthwise.
        kernel: See `Operation`, without the affine operations.
        strides: Vertical and horizontal stride.
        rate: Vertical and horizontal atrous rate.
        sources: Indices of the convolutions that its input comes from.
        is_concatenated: Whether its input is a concatenation of the sources, in order.
        pool: Pooling between the sources and this convolution, if any.
        stride: Image pixels per cell of the output.
        scale: Factor that follows, per filter.
        offset: Bias or other offset that follows, per filter.
        activation: Name of the activation that follows, if any.
        resized: Size to which the result is resized, if it is known.
    """

    name: str
    is_depthwise: bool
    kernel: Any
    strides: tuple[int, int]
    rate: tuple[int, int]
    sources: tuple[int, ...]
    is_concatenated: bool
    pool: Pool | None
    stride: int
    scale: Any
    offset: Any
    activation: str
    resized: tuple[int, int] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return tuple(self.kernel.shape)

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.shape[2]

    @property
    def filters(self) -> int:
        """Number of output channels."""
        return self.shape[2 if self.is_depthwise else 3]

    def fold(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the kernel and the bias, with all affine operations folded in."""
        scale = np.broadcast_to(np.float32(self.scale).reshape(-1), (self.filters,))
        offset = np.float32(self.offset).reshape(-1)
        shape = (self.filters, 1) if self.is_depthwise else (self.filters,)
        kernel = np.float32(self.kernel) * scale.reshape(shape)
        return kernel, np.broadcast_to(offset, (self.filters,)).copy()


def _merge_flows(flows: Sequence[_Flow], kind: str) -> _Flow:
    """Combines the flows of all inputs of an operation."""
    if len(flows) == 1:
        return flows[0]
    sources = tuple(dict.fromkeys(i for flow in flows for i in flow.sources))
    pools = [flow.pool for flow in flows if flow.pool]
    return _Flow(
        sources,
        max((flow.stride for flow in flows), default=1),
        pools[0] if pools else None,
        max((flow.phases for flow in flows), default=(1, 1)),
        kind == CONCATENATE or any(flow.is_concatenated for flow in flows),
    )


def _propagate_flow(flow: _Flow, operation: Operation) -> _Flow:
    """Returns the flow after an operation that is not a convolution."""
    if operation.kind == POOL:
        return flow._replace(pool=Pool(operation.size, operation.strides))
    if operation.kind == SUBSAMPLE:
        return flow._replace(stride=flow.stride * operation.strides[0])
    if operation.kind == PHASES:
        return flow._replace(phases=operation.rate)
    if operation.kind == MERGE_PHASES:
        return flow._replace(phases=(1, 1))
    return flow


class _Tail(NamedTuple):
    """The operations that follow a convolution."""

    scale: Any = 1.0
    offset: Any = 0.0
    activation: str = ""
    resized: tuple[int, int] | None = None


def _find_tail(operation: Operation, consumers: dict) -> _Tail:
    """Combines the operations after a convolution, up to the first branch."""
    tail, x = _Tail(offset=operation.offset), operation.outputs[0]
    while len(users := consumers[x]) == 1:
        user = users[0]
        if user.kind == AFFINE and not tail.activation:
            offset = tail.offset * user.scale + user.offset
            tail = tail._replace(scale=tail.scale * user.scale, offset=offset)
        elif user.kind == AFFINE and _is_hard_sigmoid(tail, user):
            offset = tail.offset - _HARD_SIGMOID_OFFSET
            tail = tail._replace(offset=offset, activation=HARD_SIGMOID)
        elif user.kind == ACTIVATION and not tail.activation:
            tail = tail._replace(activation=user.activation)
        elif user.kind == RESIZE:
            return tail._replace(resized=user.size)
        elif user.kind not in (PASS, MERGE_PHASES):
            break
        x = user.outputs[0]
    return tail


def _is_hard_sigmoid(tail: _Tail, user: Operation) -> bool:
    """Returns whether a ReLU6 and this product after it are a hard sigmoid."""
    # 8-bit files round the factor.
    is_sixth = np.allclose(user.scale, _HARD_SIGMOID_SCALE, rtol=0.01)
    return tail.activation == RELU6 and is_sixth and not np.any(user.offset)


def trace_convolutions(operations: Iterable[Operation]) -> list[Convolution]:
    """Returns the convolutions of operations that are in topological order."""
    operations = list(operations)
    consumers = collections.defaultdict(list)
    for operation in operations:
        for x in operation.inputs:
            consumers[x].append(operation)
    flows: dict[Hashable, _Flow] = {}
    known: dict[Hashable, int] = {}
    found: list[Convolution] = []
    for operation in operations:
        inputs = [flows[x] for x in operation.inputs if x in flows]
        flow = _merge_flows(inputs, operation.kind)
        if operation.kind in (CONVOLUTION, DEPTHWISE):
            index = known.get(operation.weights, len(found))
            if index == len(found):
                tail = _find_tail(operation, consumers)
                found.append(_make_convolution(operation, flow, tail))
            if operation.weights is not None:
                known[operation.weights] = index
            stride = flow.stride * operation.strides[0]
            flow = _Flow((index,), stride, None, flow.phases)
        else:
            flow = _propagate_flow(flow, operation)
        flows |= dict.fromkeys(operation.outputs, flow)
    return found


def _make_convolution(operation: Operation, flow: _Flow, tail: _Tail) -> Convolution:
    """Combines a convolution with the flow of its input and its tail."""
    rate = tuple(max(pair) for pair in zip(operation.rate, flow.phases, strict=True))
    return Convolution(
        operation.name,
        operation.kind == DEPTHWISE,
        operation.kernel,
        operation.strides,
        rate,
        flow.sources,
        flow.is_concatenated,
        flow.pool,
        flow.stride * operation.strides[0],
        tail.scale,
        tail.offset,
        tail.activation,
        tail.resized,
    )
