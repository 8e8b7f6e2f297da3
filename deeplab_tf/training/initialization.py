"""Initial weights of a training, from the checkpoint that it names."""

import keras

from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.restore import last_layer_scopes
from deeplab_tf.config import TrainConfig
from deeplab_tf.models.variables import official_variables


def moving_means(model: keras.Model) -> tuple[str, ...]:
    """Returns the official names of the moving means of a model, one for each layer."""
    return tuple(n for n in official_variables(model) if n.endswith("moving_mean"))


def initialize(
    model: keras.Model, config: TrainConfig, weights: str | None
) -> tuple[str, ...]:
    """Loads the initial checkpoint into a model and prints the report.

    Args:
        model: The model.
        config: How it is trained.
        weights: Prefix of the checkpoint; None loads nothing.

    Returns:
        The moving means that no checkpoint has trained.
    """
    if not weights:
        return moving_means(model)
    excluded = ()
    if not config.initialize_last_layer:
        excluded = last_layer_scopes(config.last_layers_contain_logits_only)
    report = tf1.load_tf1_checkpoint(model, weights, excluded)
    print(f"{config.tf_initial_checkpoint}: {report}")
    return tuple(n for n in moving_means(model) if n not in report.restored)
