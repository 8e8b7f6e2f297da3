"""Training steps in float16, whose gradients would underflow without loss scaling."""

from collections.abc import Callable

import keras
import tensorflow as tf

from deeplab_tf.models.precision import model_precision
from deeplab_tf.training.replicas import Replicas, sum_over_replicas
from deeplab_tf.training.step import TrainStep

_INITIAL = 2.0**15
_GROWS_AFTER = 2000


def is_half_precision(model: keras.Model) -> bool:
    """Returns whether a model computes in float16."""
    return model_precision(model) == "float16"


class LossScale:
    """A loss scale that halves on overflow and doubles after 2,000 good steps."""

    def __init__(self):
        self._scale = tf.Variable(_INITIAL, name="loss_scale")
        self._steps = tf.Variable(0, dtype=tf.int64, name="steps_without_overflow")

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """Variables to save in a checkpoint."""
        return {"scale": self._scale, "steps": self._steps}

    def value(self):
        """Returns the scale, a float32 scalar."""
        return self._scale.read_value()

    def update(self, is_finite, do_step: Callable[[], object]) -> None:
        """Calls `do_step` if all gradients are finite, else halves the scale."""

        def grow():
            do_step()
            steps = self._steps + 1
            grows = steps >= _GROWS_AFTER
            self._scale.assign(self._scale * tf.where(grows, 2.0, 1.0))
            self._steps.assign(tf.where(grows, tf.zeros_like(steps), steps))
            return 0

        def shrink():
            self._scale.assign(tf.maximum(self._scale / 2.0, 1.0))
            self._steps.assign(0)
            return 0

        tf.cond(is_finite, grow, shrink)


class HalfPrecisionStep:
    """Scales the loss of a step and skips the step if a gradient overflows.

    See 1710.03740, Sec. 3.2. Keras' LossScaleOptimizer decides on each replica before
    gradients are exchanged, so replicas may diverge; here, all replicas decide
    together.
    """

    def __init__(self, step: TrainStep, replicas: Replicas, jit: bool):
        self.scale = LossScale()
        self._step = step
        self._replicas = replicas
        self._compute = replicas.compile(self._compute_gradients, jit)
        self._apply = replicas.compile(self._apply_gradients, jit)

    def __call__(self, images, labels) -> tuple[dict, tf.Tensor]:
        """Runs a step on all replicas unless it overflows.

        Returns:
            The metrics of `TrainStep`, and whether all gradients were finite.
        """
        replicas, scale = self._replicas, self.scale.value()
        gradients, *results = replicas.run(self._compute, images, labels, scale)
        metrics, is_finite = replicas.first(results)
        self.scale.update(is_finite, lambda: replicas.run(self._apply, gradients))
        # The scale cannot get any smaller.
        is_hopeless = ~is_finite & (scale <= 1.0)
        hopeless = {"nonfinite_gradients": tf.cast(is_hopeless, tf.float32)}
        return metrics | hopeless, is_finite

    def _compute_gradients(self, images, labels, scale) -> tuple:
        """Returns summed gradients, metrics, and whether all gradients are finite."""
        gradients, metrics = self._step.compute_gradients(images, labels, scale)
        gradients = sum_over_replicas(gradients)
        finite = [tf.reduce_all(tf.math.is_finite(g)) for g in gradients]
        return gradients, metrics, tf.reduce_all(finite)

    def _apply_gradients(self, gradients: list) -> None:
        # The optimiser sums over replicas again.
        count = self._replicas.count
        self._step.apply_gradients([g / count for g in gradients])
