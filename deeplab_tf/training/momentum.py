"""TF1's momentum optimiser, for any backend."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config.options import FRACTION
from deeplab_tf.errors import UserError
from deeplab_tf.models.tensors import Tensor


@keras.saving.register_keras_serializable("deeplab_tf")
class Momentum(keras.optimizers.Optimizer):
    """TF1's momentum: `v = m v + g; w = w - lr v`.

    With Nesterov, `w = w - lr (g + m v)`, where `v` is already updated. Keras' SGD uses
    `v = m v - lr g`, which includes past learning rates and therefore differs while the
    rate decays.

    Args:
        learning_rate: A number, or a schedule such as `PolySchedule`.
        momentum: The factor `m`, in [0, 1).
        nesterov: Whether to use Nesterov's momentum.
        gradient_multipliers: Maps strings to factors on the gradients of variables
            whose `path` contains the string; if several match, their factors are
            multiplied. The official code and `Trainer` double the gradients of biases,
            `{"bias": 2.0}`. Add `"logits": 10.0` to train new logits faster than the
            rest.
        **kwargs: Passed to `keras.optimizers.Optimizer`. Its `weight_decay` is
            decoupled; for the papers' L2 use `DeepLab.set_weight_decay`.

    Raises:
        UserError: if an argument has the wrong type or is out of range or, when the
            optimiser is built, if the string of a multiplier is in no path.
    """

    @check_arguments(momentum=FRACTION)
    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 0.007,
        momentum: float = 0.9,
        nesterov: bool = False,
        gradient_multipliers: Mapping[str, float] | None = None,
        **kwargs: Any,
    ):
        kwargs.setdefault("name", "momentum")
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = momentum
        self.nesterov = nesterov
        self.gradient_multipliers = dict(gradient_multipliers or {})

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates one accumulator per variable."""
        if self.built:
            return
        paths = [variable.path for variable in variables]
        for part in self.gradient_multipliers:
            if not any(part in path for path in paths):
                raise UserError(
                    f"gradient_multipliers contains {part!r}, which matches no trained "
                    f"variable; paths look like {paths[-1]!r}"
                )
        super().build(variables)
        self._factors = [self._multiply_factors(path) for path in paths]
        self.accumulators = [
            self.add_variable_from_reference(v, name="Momentum") for v in variables
        ]

    def _multiply_factors(self, path: str) -> float:
        factors = self.gradient_multipliers.items()
        return math.prod(factor for part, factor in factors if part in path)

    def update_step(
        self, gradient: Tensor, variable: Tensor, learning_rate: Tensor
    ) -> None:
        """Updates one variable and its accumulated gradient."""
        index = self._get_variable_index(variable)
        accumulator, factor = self.accumulators[index], self._factors[index]
        gradient = ops.cast(gradient, variable.dtype)
        if factor != 1.0:
            gradient = gradient * factor
        learning_rate = ops.cast(learning_rate, variable.dtype)
        if keras.backend.backend() == "tensorflow":
            self._apply_in_place(gradient, variable, accumulator, learning_rate)
            return
        velocity = self.momentum * accumulator + gradient
        step = gradient + self.momentum * velocity if self.nesterov else velocity
        self.assign(accumulator, velocity)
        self.assign_sub(variable, learning_rate * step)

    def _apply_in_place(
        self,
        gradient: Tensor,
        variable: Tensor,
        accumulator: keras.Variable,
        learning_rate: Tensor,
    ) -> None:
        """Updates variable and accumulator with TensorFlow's fused operation."""
        import tensorflow as tf

        # Separate products and sums would allocate four tensors.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=accumulator.handle,
            lr=learning_rate,
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "gradient_multipliers": self.gradient_multipliers,
        }
        return {**super().get_config(), **own}
