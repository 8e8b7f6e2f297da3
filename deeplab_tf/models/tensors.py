"""The type of tensors of any Keras backend."""

from typing import Any, TypeAlias

# TensorFlow, JAX, NumPy or symbolic tensors, which share no public class.
Tensor: TypeAlias = Any
