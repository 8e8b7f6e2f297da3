"""Scaling of the loss for float16, in which small gradients are 0."""

from collections.abc import Callable

import tensorflow as tf

_INITIAL = 2.0**15
_GROWS_AFTER = 2000


class LossScale:
    """A factor that halves at an overflow and doubles after 2,000 steps without.

    A step that overflows is left out, as in 1710.03740, Sec. 3.2. Keras' own
    optimiser for this asks each replica by itself whether it overflowed, and so
    lets them diverge where they exchange gradients later.
    """

    def __init__(self):
        self._scale = tf.Variable(_INITIAL, name="loss_scale")
        self._steps = tf.Variable(0, dtype=tf.int64, name="steps_without_overflow")

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """What a checkpoint holds."""
        return {"scale": self._scale, "steps": self._steps}

    def value(self):
        """Returns the factor, a float32 scalar."""
        return self._scale.read_value()

    def update(self, is_finite, do_step: Callable[[], object]) -> None:
        """Does a step if its gradients are finite, and adapts the factor.

        Args:
            is_finite: Whether all gradients are, a scalar.
            do_step: Does the step.
        """

        def finite():
            do_step()
            steps = self._steps + 1
            grows = steps >= _GROWS_AFTER
            self._scale.assign(self._scale * tf.where(grows, 2.0, 1.0))
            self._steps.assign(tf.where(grows, tf.zeros_like(steps), steps))
            return 0

        def overflown():
            self._scale.assign(tf.maximum(self._scale / 2.0, 1.0))
            self._steps.assign(0)
            return 0

        tf.cond(is_finite, finite, overflown)
