"""Exponential moving averages (EMA) of the weights."""

import contextlib
from collections.abc import Iterator

import keras

from deeplab_tf.models.variables import official_variables


class MovingAverages:
    """The moving averages of all variables of a model, including moving statistics.

    Create this in the scope of the model's strategy. `variables` maps official names to
    averages; it is empty if `decay` is 0.
    """

    def __init__(self, model: keras.Model, decay: float):
        self._decay = decay
        self._weights = official_variables(model) if decay else {}
        self.variables = {
            name: keras.Variable(v.numpy(), trainable=False, name="average")
            for name, v in self._weights.items()
        }

    def start(self) -> None:
        """Sets the averages to the current weights."""
        for name, average in self.variables.items():
            average.assign(self._weights[name])

    def update(self) -> None:
        """Moves the averages towards the current weights; call this after each step."""
        share = 1.0 - self._decay
        for name, average in self.variables.items():
            # Not `decay * average + share * weight`: rounded, the factors of 0.9999 add
            # up to less than 1, and a constant would decay to 0.9998 of its value.
            average.assign_add(share * (self._weights[name] - average))

    @contextlib.contextmanager
    def swap_in(self) -> Iterator[None]:
        """Temporarily replaces the model's weights with their averages."""
        own = {name: self._weights[name].numpy() for name in self.variables}
        try:
            for name, average in self.variables.items():
                self._weights[name].assign(average)
            yield
        finally:
            for name, value in own.items():
                self._weights[name].assign(value)
