"""Learning rate, optimisers and gradient multipliers of the official trainer."""

import keras
import tensorflow as tf
from keras import ops

from deeplab_tf.checkpoints.restore import last_layer_scopes
from deeplab_tf.config import TrainConfig
from deeplab_tf.training.losses import is_decayed


@keras.saving.register_keras_serializable("deeplab_tf")
class SlowStart(keras.optimizers.schedules.LearningRateSchedule):
    """A constant learning rate for some steps, then a schedule counted from there."""

    def __init__(self, schedule, steps: int, learning_rate: float):
        super().__init__()
        self.schedule = schedule
        self.steps = steps
        self.learning_rate = learning_rate

    def __call__(self, step):
        """Returns the learning rate at a step."""
        step = ops.cast(step, "float32")
        scheduled = self.schedule(ops.maximum(step - self.steps, 0.0))
        return ops.where(step < self.steps, self.learning_rate, scheduled)

    def get_config(self):
        """Returns the arguments, with the schedule serialised."""
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "steps": self.steps,
            "learning_rate": self.learning_rate,
        }

    @classmethod
    def from_config(cls, config):
        """Returns the schedule from its config."""
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(**{**config, "schedule": schedule})


def learning_rate_schedule(config: TrainConfig):
    """Returns the official learning rate schedule (1706.05587, Sec. 4.1).

    "poly" multiplies the base rate by `(1 - step / steps) ** 0.9`.
    """
    schedules = keras.optimizers.schedules
    if config.learning_policy == "step":
        policy = schedules.ExponentialDecay(
            config.base_learning_rate,
            config.learning_rate_decay_step,
            config.learning_rate_decay_factor,
            staircase=True,
        )
    else:
        rest = config.training_number_of_steps - config.slow_start_step
        policy = schedules.PolynomialDecay(
            config.base_learning_rate,
            config.decay_steps or max(rest, 1),
            config.end_learning_rate,
            config.learning_power,
        )
    return SlowStart(policy, config.slow_start_step, config.slow_start_learning_rate)


@keras.saving.register_keras_serializable("deeplab_tf")
class Momentum(keras.optimizers.Optimizer):
    """TF1's momentum: `v = m v + g; w = w - lr v`.

    Nesterov moves the weight by `lr (g + m v)` instead, with the new `v`. Keras' SGD
    has `v = m v - lr g`, which remembers past learning rates and so differs while the
    rate decays.
    """

    def __init__(
        self,
        learning_rate=0.007,
        momentum: float = 0.9,
        nesterov: bool = False,
        **kwargs,
    ):
        kwargs.setdefault("name", "momentum")
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, variables):
        """Creates one accumulator per variable."""
        if self.built:
            return
        super().build(variables)
        self.accumulators = [
            self.add_variable_from_reference(v, name="Momentum") for v in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        """Moves one variable against its accumulated gradient."""
        accumulator = self.accumulators[self._get_variable_index(variable)]
        # In place: separate products and sums would allocate four tensors.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=accumulator.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )

    def get_config(self):
        """Returns the constructor arguments."""
        own = {"momentum": self.momentum, "nesterov": self.nesterov}
        return {**super().get_config(), **own}


def make_optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    """Returns the optimiser of a config."""
    if config.optimizer == "adam":
        return keras.optimizers.Adam(
            config.adam_learning_rate, epsilon=config.adam_epsilon
        )
    if config.optimizer == "adamw":
        return keras.optimizers.AdamW(
            learning_rate_schedule(config),
            weight_decay=config.weight_decay,
            epsilon=config.adam_epsilon,
        )
    nesterov = config.optimizer == "nesterov"
    return Momentum(learning_rate_schedule(config), config.momentum, nesterov)


def build_optimizer(optimizer: keras.optimizers.Optimizer, trained: dict) -> None:
    """Builds an optimiser for trained variables, keyed by official name."""
    if isinstance(optimizer, keras.optimizers.AdamW):
        optimizer.exclude_from_weight_decay(
            [v.value for n, v in trained.items() if not is_decayed(n)]
        )
    optimizer.build(list(trained.values()))


def slot_variables(optimizer: keras.optimizers.Optimizer, names) -> dict:
    """Returns the state of an optimiser by TF1's slot names.

    `names` are the official names of the trained variables, in order.
    """
    if isinstance(optimizer, Momentum):
        kinds = {"Momentum": "Momentum"}
    else:
        kinds = {"Adam": "momentum", "Adam_1": "velocity"}
    return {
        f"{name}/{kind}": slot
        for kind, suffix in kinds.items()
        for name, slot in zip(names, _find_variables(optimizer, suffix), strict=True)
    }


def _find_variables(
    optimizer: keras.optimizers.Optimizer, suffix: str
) -> list[keras.Variable]:
    return [v for v in optimizer.variables if v.name.endswith(f"_{suffix}")]


def gradient_multiplier(name: str, config: TrainConfig) -> float:
    """Returns the official factor on the gradient of a variable.

    2 for biases, times `last_layer_gradient_multiplier` for the last layers. Like the
    official code it looks for the scopes anywhere in the name.
    """
    scopes = last_layer_scopes(config.last_layers_contain_logits_only)
    is_last = any(scope in name for scope in scopes)
    factor = config.last_layer_gradient_multiplier if is_last else 1.0
    return factor * (2.0 if "biases" in name else 1.0)
