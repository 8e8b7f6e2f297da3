"""Learning rate schedules of the official trainer, for any backend."""

from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config.options import NOT_NEGATIVE, POSITIVE
from deeplab_tf.models.tensors import Tensor


@keras.saving.register_keras_serializable("deeplab_tf")
class SlowStart(LearningRateSchedule):
    """A constant learning rate for some steps, followed by a schedule."""

    def __init__(
        self, schedule: LearningRateSchedule, steps: int, learning_rate: float
    ):
        super().__init__()
        self.schedule = schedule
        self.slow_start_steps = steps
        self.slow_start_learning_rate = learning_rate

    def __call__(self, step: Tensor) -> Tensor:
        """Returns the learning rate at a step."""
        step = ops.cast(step, "float32")
        scheduled = self.schedule(ops.maximum(step - self.slow_start_steps, 0.0))
        is_slow = step < self.slow_start_steps
        return ops.where(is_slow, self.slow_start_learning_rate, scheduled)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, with the schedule serialised."""
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "steps": self.slow_start_steps,
            "learning_rate": self.slow_start_learning_rate,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SlowStart":
        """Returns the schedule from its config."""
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(**{**config, "schedule": schedule})


@keras.saving.register_keras_serializable("deeplab_tf")
class PolySchedule(SlowStart):
    """The "poly" learning rate (DeepLabv3, 1706.05587, Sec. 4.1).

    `end + (base - end) * (1 - step / steps) ** power`, where `base` and `end` are
    learning rates; constant at `end` after `steps`. `steps` includes a slow start,
    after which the decay begins.

    Args:
        base_learning_rate: Initial learning rate. The papers use 0.007 for VOC, with
            batch size 16 and trained batch normalisation.
        steps: Optimiser steps until `end_learning_rate`, usually the total,
            `steps_per_epoch * epochs`.
        power: Exponent.
        end_learning_rate: Final learning rate.
        slow_start_steps: Steps at `slow_start_learning_rate` before the schedule.
        slow_start_learning_rate: Constant learning rate during the slow start.

    Raises:
        UserError: for an argument of the wrong type or out of range.
    """

    @check_arguments(
        base_learning_rate=NOT_NEGATIVE,
        steps=POSITIVE,
        power=NOT_NEGATIVE,
        end_learning_rate=NOT_NEGATIVE,
        slow_start_steps=NOT_NEGATIVE,
        slow_start_learning_rate=NOT_NEGATIVE,
    )
    def __init__(
        self,
        base_learning_rate: float = 0.007,
        steps: float = 30000,
        power: float = 0.9,
        end_learning_rate: float = 0.0,
        slow_start_steps: int = 0,
        slow_start_learning_rate: float = 1e-4,
    ):
        decay = keras.optimizers.schedules.PolynomialDecay(
            base_learning_rate,
            max(steps - slow_start_steps, 1),
            end_learning_rate,
            power,
        )
        super().__init__(decay, slow_start_steps, slow_start_learning_rate)
        self.steps = steps

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "base_learning_rate": self.schedule.initial_learning_rate,
            "steps": self.steps,
            "power": self.schedule.power,
            "end_learning_rate": self.schedule.end_learning_rate,
            "slow_start_steps": self.slow_start_steps,
            "slow_start_learning_rate": self.slow_start_learning_rate,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PolySchedule":
        """Returns the schedule from its config."""
        return cls(**config)
