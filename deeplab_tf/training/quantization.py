"""Quantisation-aware training: rounds as 8-bit inference does (1712.05877, Sec. 3)."""

from collections.abc import Callable

import keras
import tensorflow as tf

from deeplab_tf.config import TrainConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models.precision import model_precision
from deeplab_tf.models.quantization import quantize_model


class QuantizationDelay:
    """A model that rounds weights and features from `quantize_delay_step` on.

    Create this in the scope of the model's strategy.

    Attributes:
        model: The model, with the ranges of its features if it will be quantised.

    Raises:
        UserError: if the model or another setting does not allow quantisation.
    """

    def __init__(self, model: keras.Model, config: TrainConfig, replicas: int):
        self._delay = config.quantize_delay_step
        self._exact = self.model = model
        if self._delay >= 0:
            _check(model, config, replicas)
            self.model = quantize_model(model)

    def model_at(self, step: int) -> keras.Model:
        """Returns the model after `step` steps: quantised once a step has rounded."""
        return self.model if step > self._delay else self._exact

    def make_network(
        self, make: Callable[[keras.Model], keras.Model], step: keras.Variable
    ) -> Callable:
        """Returns the network to train, which starts to round after the delay.

        Args:
            make: Returns the network to train for a model; see `training_outputs`.
            step: Number of steps done.
        """
        network = make(self.model)
        if self._delay <= 0:
            return network
        exact = make(self._exact)

        def choose(images: tf.Tensor, training: bool) -> list[tf.Tensor]:
            return tf.cond(
                step.value < self._delay,
                lambda: exact(images, training=training),
                lambda: network(images, training=training),
            )

        return choose


def _check(model: keras.Model, config: TrainConfig, replicas: int) -> None:
    """Raises UserError for a model or setting that does not allow quantisation."""
    setting = f"--quantize_delay_step={config.quantize_delay_step}"
    if config.normalization != "freeze":
        raise UserError(
            f"{setting} needs --fine_tune_batch_norm=false, because weights are "
            "rounded with batch normalisation folded into them; received "
            f"--batch_norm={config.normalization}"
        )
    if replicas > 1:
        raise UserError(f"{setting} needs --num_clones=1; found {replicas} replicas")
    if model_precision(model) != "float32":
        raise UserError(
            f"{setting} needs --precision=float32; received {model_precision(model)}"
        )
    if len(model.model_config.image_pyramid) > 1:
        raise UserError(
            f"{setting} needs a single --image_pyramid scale; received "
            f"{list(model.model_config.image_pyramid)}"
        )
