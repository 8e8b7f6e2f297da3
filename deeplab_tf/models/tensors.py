"""What type checkers call tensors where any Keras backend may run."""

from typing import Any, TypeAlias

# TensorFlow's, JAX's, NumPy's or a symbolic one: no public class stands for them all.
Tensor: TypeAlias = Any
