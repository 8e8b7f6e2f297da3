"""The type of tensors of any Keras backend."""

from typing import Any, TypeAlias

# TensorFlow, JAX, NumPy or symbolic; they have no public class in common.
Tensor: TypeAlias = Any
