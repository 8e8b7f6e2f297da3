"""Stores the rounded weights of a quantised model as 8-bit integers in an ONNX graph.

tf2onnx converts the rounding of features, but cannot convert a scale per channel.
"""

from typing import TYPE_CHECKING

import numpy as np

from deeplab_tf.errors import import_extra

if TYPE_CHECKING:
    import onnx


def store_integer_weights(model: "onnx.ModelProto", needed_by: str) -> None:
    """Replaces the kernels of all convolutions by int8 kernels with scales.

    The kernels must have 255 levels per output channel, the largest of which is in use.
    `needed_by` is the start of the error, as in `import_extra`.
    """
    onnx = import_extra("onnx", "export", needed_by)
    graph = model.graph
    stored = {x.name: x for x in graph.initializer}
    names = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    for name in sorted(names):
        integers, scales = _quantize_kernel(onnx.numpy_helper.to_array(stored[name]))
        parts = {f"{name}_int8": integers, f"{name}_scale": scales}
        graph.initializer.remove(stored[name])
        graph.initializer.extend(
            onnx.numpy_helper.from_array(array, part) for part, array in parts.items()
        )
        graph.node.insert(
            0, onnx.helper.make_node("DequantizeLinear", list(parts), [name], axis=0)
        )


def _quantize_kernel(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantises a kernel `[filters, ...]` to int8; returns it and the filter scales."""
    largest = np.abs(kernel).reshape(len(kernel), -1).max(1)
    # The scale of a filter without weights is arbitrary, but not 0.
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    levels = kernel / scales.reshape(-1, *(kernel.ndim - 1) * [1])
    return np.rint(levels).astype(np.int8), scales.astype(np.float32)
