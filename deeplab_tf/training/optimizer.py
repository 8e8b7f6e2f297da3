"""The official learning rate schedule, optimisers and gradient multipliers."""

from collections.abc import Sequence

import keras

from deeplab_tf.checkpoints.restore import last_layer_scopes
from deeplab_tf.config import TrainConfig
from deeplab_tf.training.learning_rate import PolySchedule, SlowStart
from deeplab_tf.training.losses import is_decayed
from deeplab_tf.training.momentum import Momentum


def learning_rate_schedule(config: TrainConfig) -> SlowStart:
    """Returns the official learning rate schedule (1706.05587, Sec. 4.1)."""
    start = (config.slow_start_step, config.slow_start_learning_rate)
    if config.learning_policy == "step":
        policy = keras.optimizers.schedules.ExponentialDecay(
            config.base_learning_rate,
            config.learning_rate_decay_step,
            config.learning_rate_decay_factor,
            staircase=True,
        )
        return SlowStart(policy, *start)
    if config.decay_steps:
        steps = config.slow_start_step + config.decay_steps
    else:
        steps = config.training_number_of_steps
    return PolySchedule(
        config.base_learning_rate,
        steps,
        config.learning_power,
        config.end_learning_rate,
        *start,
    )


def make_optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    """Makes the optimiser that a config selects."""
    if config.optimizer == "adam":
        return keras.optimizers.Adam(
            config.adam_learning_rate, epsilon=config.adam_epsilon
        )
    if config.optimizer == "adamw":
        return AdamW(
            learning_rate_schedule(config),
            weight_decay=config.weight_decay,
            epsilon=config.adam_epsilon,
        )
    nesterov = config.optimizer == "nesterov"
    return Momentum(learning_rate_schedule(config), config.momentum, nesterov)


class AdamW(keras.optimizers.AdamW):
    """AdamW with a factor on the learning rate of each variable.

    A factor on its gradients would cancel. The weight decay has none.
    """

    _factors: tuple[float, ...] = ()

    def set_factors(self, factors: Sequence[float]) -> None:
        """Sets the factors in the order of the variables passed to `build`."""
        self._factors = tuple(factors)

    def update_step(self, gradient, variable, learning_rate) -> None:
        """Updates a variable at its own learning rate."""
        if self._factors:
            learning_rate *= self._factors[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate)


def build_optimizer(
    optimizer: keras.optimizers.Optimizer, trained: dict, config: TrainConfig
) -> None:
    """Builds an optimiser for trained variables, keyed by official name."""
    if isinstance(optimizer, AdamW):
        optimizer.set_factors([last_layer_multiplier(name, config) for name in trained])
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

    It is 2 for biases, multiplied by `last_layer_multiplier`, which AdamW applies to
    the update instead.
    """
    is_adamw = config.optimizer == "adamw"
    factor = 1.0 if is_adamw else last_layer_multiplier(name, config)
    return factor * (2.0 if "biases" in name else 1.0)


def last_layer_multiplier(name: str, config: TrainConfig) -> float:
    """Returns `last_layer_gradient_multiplier` in the last layers, else 1.

    As in the official code, the scopes of the last layers may be anywhere in the name.
    """
    scopes = last_layer_scopes(config.last_layers_contain_logits_only)
    is_last = any(scope in name for scope in scopes)
    return config.last_layer_gradient_multiplier if is_last else 1.0
