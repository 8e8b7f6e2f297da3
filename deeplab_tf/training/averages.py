"""Exponential moving averages of the weights, with which a model may be scored."""

import contextlib
from collections.abc import Iterator

import keras

from deeplab_tf.models.variables import official_variables


class MovingAverages:
    """The moving average of every variable of a model.

    Made in the scope of the model's strategy.

    Args:
        model: A model of `build_model`.
        decay: Share of an average that a step keeps; 0 keeps no averages.

    Attributes:
        variables: Official name to average, moving statistics included.
    """

    def __init__(self, model: keras.Model, decay: float):
        self._decay = decay
        self._weights = official_variables(model) if decay else {}
        self.variables = {
            name: keras.Variable(v.numpy(), trainable=False, name="average")
            for name, v in self._weights.items()
        }

    def start(self) -> None:
        """Sets the averages to the present weights."""
        for name, average in self.variables.items():
            average.assign(self._weights[name])

    def update(self) -> None:
        """Moves the averages towards the present weights, after a step."""
        share = 1.0 - self._decay
        for name, average in self.variables.items():
            # Not the sum of two shares: rounded, those of 0.9999 add up to less than
            # 1, and the average of a constant would come to 0.9998 of it.
            average.assign_add(share * (self._weights[name] - average))

    @contextlib.contextmanager
    def swap_in(self) -> Iterator[None]:
        """Temporarily gives the model its averages as weights."""
        own = {name: self._weights[name].numpy() for name in self.variables}
        try:
            for name, average in self.variables.items():
                self._weights[name].assign(average)
            yield
        finally:
            for name, value in own.items():
                self._weights[name].assign(value)
