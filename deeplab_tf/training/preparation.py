"""Prepares a training: initial weights, batch normalisation, resuming."""

import dataclasses
import sys
from collections.abc import Callable

import keras
import tensorflow as tf

from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.pretrained import find_weights
from deeplab_tf.checkpoints.restore import last_layer_scopes
from deeplab_tf.config import Experiment, ModelConfig, TrainConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.precision import use_precision
from deeplab_tf.models.variables import official_variables
from deeplab_tf.training import distribution, resume
from deeplab_tf.training.batch_norm import BatchNormPolicy, resolve_batch_norm
from deeplab_tf.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Start:
    """The start of a training.

    Attributes:
        images: Images per replica and forward pass.
        batch_norm: Requested policy of batch normalisation, or "auto".
        previous: The experiment to resume; None starts anew.
        weights: Prefix of the initial checkpoint, if there is one.
    """

    images: int
    batch_norm: str
    previous: Experiment | None
    weights: str | None


def find_start(experiment: Experiment, batch_norm: str, replicas: int) -> Start:
    """Returns the start of a training, with its initial checkpoint downloaded.

    Args:
        experiment: The experiment.
        batch_norm: Requested policy of batch normalisation, or "auto".
        replicas: Number of replicas.

    Raises:
        UserError: if the replicas cannot share a batch, the `train_logdir` holds
            another model, or there is no such checkpoint.
    """
    train = experiment.train
    images = distribution.require_divisible(
        experiment.data.batch_size, replicas, train.accumulate_steps
    )
    previous = resume.experiment_before(experiment)
    is_needed = train.tf_initial_checkpoint and previous is None
    weights = find_weights(train.tf_initial_checkpoint) if is_needed else None
    return Start(images, batch_norm, previous, weights)


def prepare_trainer(
    experiment: Experiment,
    start: Start,
    strategy: tf.distribute.Strategy,
    precision: str = "float32",
    build: Callable[[ModelConfig], keras.Model] = build_model,
) -> tuple[Trainer, Experiment, str | None]:
    """Returns a trainer at its latest checkpoint, or with its initial weights.

    Args:
        experiment: The experiment.
        start: The start, from `find_start`.
        strategy: The replicas.
        precision: Precision of convolutions.
        build: Builds the model.

    Returns:
        The trainer; the experiment with the policy of batch normalisation that "auto"
        resolved to; and the checkpoint that is resumed, if any.
    """
    tf.keras.utils.set_random_seed(experiment.data.seed)
    use_precision(precision)
    with strategy.scope():
        model = build(experiment.model)
    is_new = start.previous is None
    untrained = _initialize(model, experiment.train, start.weights) if is_new else ()
    resolved = _resolve(experiment, start, strategy.num_replicas_in_sync, untrained)
    train = _with_batch_norm(experiment.train, resolved, untrained)
    trainer = Trainer(model, train)
    latest = trainer.restore_latest()
    return trainer, dataclasses.replace(experiment, train=train), latest


def _initialize(
    model: keras.Model, config: TrainConfig, weights: str | None
) -> tuple[str, ...]:
    """Loads the initial checkpoint, and returns the untrained moving means."""
    means = tuple(n for n in official_variables(model) if n.endswith("moving_mean"))
    if not weights:
        return means
    excluded = ()
    if not config.initialize_last_layer:
        excluded = last_layer_scopes(config.last_layers_contain_logits_only)
    report = tf1.load_tf1_checkpoint(model, weights, excluded)
    print(f"{config.tf_initial_checkpoint}: {report}")
    return tuple(name for name in means if name not in report.restored)


def _resolve(
    experiment: Experiment, start: Start, replicas: int, untrained: tuple[str, ...]
) -> BatchNormPolicy:
    """Returns the policy of batch normalisation; a resumed training keeps its own."""
    previous = start.previous
    if previous is None or start.batch_norm != "auto":
        return resolve_batch_norm(start.batch_norm, start.images, replicas, untrained)
    policy = previous.train.normalization
    resolved = resolve_batch_norm(policy, start.images, replicas, untrained)
    reason = f"as {experiment.train.train_logdir} was trained"
    return dataclasses.replace(resolved, reason=reason)


def _with_batch_norm(
    train: TrainConfig, resolved: BatchNormPolicy, untrained: tuple[str, ...]
) -> TrainConfig:
    print(f"batch normalisation: {resolved.policy} ({resolved.reason})")
    is_frozen = resolved.policy == "freeze"
    if is_frozen and untrained:
        print(
            f"warning: {len(untrained)} frozen batch normalisations ({untrained[0]}, "
            "...) were never trained, which breaks the layers after them; "
            "--batch_norm=train trains them",
            file=sys.stderr,
        )
    return dataclasses.replace(
        train, batch_norm=resolved.policy, fine_tune_batch_norm=not is_frozen
    )
