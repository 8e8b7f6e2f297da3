"""Reads the operations of a TFLite file, float or 8-bit, official or ours.

TensorFlow includes the schema; neither an interpreter nor an extra is needed.
"""

import math
import struct
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

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

_IDENTIFIER = b"TFL3"  # bytes 4 to 8
# What damaged flatbuffers raise.
DAMAGE = (struct.error, IndexError, ValueError, TypeError, AttributeError)
_BUILTINS = {
    number: name
    for name, number in vars(schema.BuiltinOperator).items()
    if not name.startswith("_")
}
_TYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT64: np.int64,
}
_FUSED = {
    schema.ActivationFunctionType.RELU: RELU,
    schema.ActivationFunctionType.RELU6: RELU6,
}
_ACTIVATIONS = {"RELU": RELU, "RELU6": RELU6, "LOGISTIC": SIGMOID}
_OPTIONS = {
    "CONV_2D": schema.Conv2DOptions,
    "DEPTHWISE_CONV_2D": schema.DepthwiseConv2DOptions,
    "FULLY_CONNECTED": schema.FullyConnectedOptions,
    "AVERAGE_POOL_2D": schema.Pool2DOptions,
    "MAX_POOL_2D": schema.Pool2DOptions,
    "RESIZE_BILINEAR": schema.ResizeBilinearOptions,
    "ADD": schema.AddOptions,
    "SUB": schema.SubOptions,
    "MUL": schema.MulOptions,
    "CONCATENATION": schema.ConcatenationOptions,
}


class TFLiteGraph:
    """The operations of a TFLite file.

    Attributes:
        operations: In topological order.
        is_quantized: Whether any kernel has 8 bits.
        resizings: Coordinates of all resizes of more than one cell.
        image_size: Height and width of the input.

    Raises:
        One of `DAMAGE`: if the file is damaged.
    """

    def __init__(self, content: bytes):
        if content[4:8] != _IDENTIFIER:
            raise ValueError(f"bytes 4 to 8 are not {_IDENTIFIER.decode()}")
        self._model = schema.Model.GetRootAs(content)
        self._graph = self._model.Subgraphs(0)
        self._constants: dict[int, np.ndarray] = {}
        self._codes = [
            self._read_operator_name(i)
            for i in range(self._model.OperatorCodesLength())
        ]
        self.operations: list[Operation] = []
        self.is_quantized, self.resizings = False, set[str]()
        image = self._graph.Inputs(0)
        self.image_size = tuple(self._read_shape(image)[1:3])
        for i in range(self._graph.OperatorsLength()):
            self._add_operator(self._graph.Operators(i))

    def _read_operator_name(self, index: int) -> str:
        code = self._model.OperatorCodes(index)
        # Old files have only the deprecated field.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        return _BUILTINS.get(number, str(number))

    def _read_shape(self, tensor: int) -> list[int]:
        found = self._graph.Tensors(tensor)
        return [found.Shape(i) for i in range(found.ShapeLength())]

    def _read_constant(self, tensor: int) -> np.ndarray | None:
        """Returns a constant tensor, dequantised; None if it is computed."""
        if tensor < 0:
            return None
        if tensor not in self._constants:
            found = self._graph.Tensors(tensor)
            content = self._model.Buffers(found.Buffer())
            if not content.DataLength() or found.Type() not in _TYPES:
                return None
            values = content.DataAsNumpy().view(_TYPES[found.Type()])
            values = values.reshape(self._read_shape(tensor))
            self.is_quantized |= values.itemsize == 1
            self._constants[tensor] = _dequantize(values, found.Quantization())
        return self._constants[tensor]

    def _add_operator(self, operator: schema.Operator) -> None:
        """Stores a dequantised constant, or appends the operator as an operation."""
        kind = self._codes[operator.OpcodeIndex()]
        inputs = [operator.Inputs(i) for i in range(operator.InputsLength())]
        outputs = tuple(operator.Outputs(i) for i in range(operator.OutputsLength()))
        constants = [self._read_constant(x) for x in inputs]
        if kind in ("DEQUANTIZE", "QUANTIZE") and constants[0] is not None:
            self._constants[outputs[0]] = constants[0]
            return
        data = tuple(
            x for x, c in zip(inputs, constants, strict=True) if x >= 0 and c is None
        )
        name = (self._graph.Tensors(outputs[0]).Name() or b"").decode(errors="replace")
        options = _read_options(operator, kind)
        base = Operation(PASS, data, outputs, name)
        self._append_operation(
            self._read_operation(base, kind, options, constants), options
        )

    def _append_operation(self, operation: Operation, options: Any) -> None:
        """Appends an operation and the activation that is fused into it."""
        fused = getattr(options, "FusedActivationFunction", lambda: None)()
        if fused not in _FUSED:
            self.operations.append(operation)
            return
        between = ("before the activation", operation.outputs[0])
        self.operations += [
            operation._replace(outputs=(between,)),
            Operation(
                ACTIVATION, (between,), operation.outputs, activation=_FUSED[fused]
            ),
        ]

    def _read_operation(
        self, base: Operation, kind: str, options: Any, constants: list
    ) -> Operation:
        """Returns an operation; those of unknown kinds pass on their inputs."""
        if kind in _ACTIVATIONS:
            return base._replace(kind=ACTIVATION, activation=_ACTIVATIONS[kind])
        if kind in _KINDS:
            return base._replace(kind=_KINDS[kind])
        if kind in _READERS:
            return _READERS[kind](self, base._replace(kind=kind), options, constants)
        return base

    def _read_convolution(
        self, base: Operation, options: Any, constants: list
    ) -> Operation:
        """Returns a convolution with its dequantised kernel, bias, strides and rate."""
        kernel, bias = constants[1], constants[2] if len(constants) > 2 else None
        if kernel is None:
            return base._replace(kind=PASS)
        is_dense = base.kind == "FULLY_CONNECTED"
        convolution = base._replace(
            kind=DEPTHWISE if base.kind == "DEPTHWISE_CONV_2D" else CONVOLUTION,
            kernel=(kernel[:, None, None] if is_dense else kernel).transpose(
                1, 2, 3, 0
            ),
            offset=0.0 if bias is None else bias,
        )
        if is_dense:
            return convolution
        return convolution._replace(
            strides=(options.StrideH(), options.StrideW()),
            rate=(options.DilationHFactor(), options.DilationWFactor()),
        )

    def _read_pool(self, base: Operation, options: Any, constants: list) -> Operation:
        size = (options.FilterHeight(), options.FilterWidth())
        is_global = list(size) == self._read_shape(base.inputs[0])[1:3]
        return base._replace(
            kind=POOL if base.kind == "AVERAGE_POOL_2D" else SUBSAMPLE,
            size=None if is_global else size,
            strides=(options.StrideH(), options.StrideW()),
        )

    def _read_resize(self, base: Operation, options: Any, constants: list) -> Operation:
        if math.prod(self._read_shape(base.inputs[0])[1:3]) > 1:
            flags = (options.AlignCorners(), options.HalfPixelCenters())
            self.resizings.add(name_resizing(*flags))
        size = tuple(self._read_shape(base.outputs[0])[1:3])
        return base._replace(kind=RESIZE, inputs=base.inputs[:1], size=size)

    def _read_phase_change(
        self, base: Operation, options: Any, constants: list
    ) -> Operation:
        """Returns a SpaceToBatchND or BatchToSpaceND as an operation."""
        kind = PHASES if base.kind == "SPACE_TO_BATCH_ND" else MERGE_PHASES
        return base._replace(kind=kind, rate=tuple(map(int, constants[1])))

    def _read_affine(self, base: Operation, options: Any, constants: list) -> Operation:
        """Returns an affine operation if one of the inputs is constant."""
        is_constant = [x is not None for x in constants]
        if sum(is_constant) != 1 or (base.kind == "SUB" and is_constant[0]):
            return base._replace(kind=PASS)
        constant = constants[is_constant.index(True)]
        if base.kind == "MUL":
            return base._replace(kind=AFFINE, scale=constant)
        return base._replace(
            kind=AFFINE, offset=constant if base.kind == "ADD" else -constant
        )


_KINDS = {"MEAN": POOL, "CONCATENATION": CONCATENATE}
_READERS = {
    "CONV_2D": TFLiteGraph._read_convolution,
    "DEPTHWISE_CONV_2D": TFLiteGraph._read_convolution,
    "FULLY_CONNECTED": TFLiteGraph._read_convolution,
    "AVERAGE_POOL_2D": TFLiteGraph._read_pool,
    "MAX_POOL_2D": TFLiteGraph._read_pool,
    "RESIZE_BILINEAR": TFLiteGraph._read_resize,
    "SPACE_TO_BATCH_ND": TFLiteGraph._read_phase_change,
    "BATCH_TO_SPACE_ND": TFLiteGraph._read_phase_change,
    "ADD": TFLiteGraph._read_affine,
    "SUB": TFLiteGraph._read_affine,
    "MUL": TFLiteGraph._read_affine,
}


def _read_options(operator: schema.Operator, kind: str) -> Any:
    if kind not in _OPTIONS or operator.BuiltinOptions() is None:
        return None
    options, table = _OPTIONS[kind](), operator.BuiltinOptions()
    options.Init(table.Bytes, table.Pos)
    return options


def _dequantize(values: np.ndarray, quantization: Any) -> np.ndarray:
    """Returns real values; those of an axis can have scales of their own."""
    if quantization is None or not quantization.ScaleLength():
        return values
    count, axis = quantization.ScaleLength(), quantization.QuantizedDimension()
    scales = [quantization.Scale(i) for i in range(count)]
    zeros = [quantization.ZeroPoint(i) for i in range(quantization.ZeroPointLength())]
    shape = [1] * values.ndim
    if count > 1:
        shape[axis] = count
    zero = np.reshape(zeros, shape) if len(zeros) == count else 0
    with np.errstate(over="ignore"):
        return np.float32((values - np.float64(zero)) * np.reshape(scales, shape))
