"""Prepares a training run: initial weights, batch normalisation, resuming."""

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
    """The starting point of a training run.

    `images` are counted per replica and forward pass; `batch_norm` is the requested
    policy or "auto"; `previous` is the experiment to resume and `weights` the prefix of
    the initial checkpoint, if any.
    """

    images: int
    batch_norm: str
    previous: Experiment | None
    weights: str | None


def find_start(
    experiment: Experiment, batch_norm: str, replicas: int, workers: int = 1
) -> Start:
    """Finds the starting point of a run; downloads the initial checkpoint if needed.

    Raises:
        UserError: if a batch cannot be divided among the replicas, `train_logdir` has a
            different model, or the initial checkpoint does not exist.
    """
    train = experiment.train
    images = distribution.split_batch_size(
        experiment.data.batch_size, replicas, train.accumulate_steps, workers
    )
    previous = resume.read_previous_experiment(experiment)
    weights = None
    if train.tf_initial_checkpoint and previous is None:
        weights = find_weights(train.tf_initial_checkpoint)
    return Start(images, batch_norm, previous, weights)


def prepare_trainer(
    experiment: Experiment,
    start: Start,
    strategy: tf.distribute.Strategy,
    precision: str = "float32",
    build: Callable[[ModelConfig], keras.Model] = build_model,
) -> tuple[Trainer, Experiment, str | None]:
    """Returns a trainer, restored from its latest checkpoint or with initial weights.

    `build` builds the model; `start` is the result of `find_start`.

    Returns:
        The trainer; the experiment with the resolved batch normalisation policy; and
        the prefix of the restored checkpoint, if any.
    """
    tf.keras.utils.set_random_seed(experiment.data.seed)
    use_precision(precision)
    with strategy.scope():
        model = build(experiment.model)
    is_new = start.previous is None
    untrained = _initialize(model, experiment.train, start.weights) if is_new else ()
    policy = _resolve_policy(
        experiment, start, strategy.num_replicas_in_sync, untrained
    )
    train = _apply_policy(experiment.train, policy, untrained)
    trainer = Trainer(model, train)
    latest = trainer.restore_latest()
    return trainer, dataclasses.replace(experiment, train=train), latest


def _initialize(
    model: keras.Model, config: TrainConfig, weights: str | None
) -> tuple[str, ...]:
    """Loads and reports the initial checkpoint; returns the moving means it lacks."""
    means = tuple(n for n in official_variables(model) if n.endswith("moving_mean"))
    if not weights:
        return means
    excluded = ()
    if not config.initialize_last_layer:
        excluded = last_layer_scopes(config.last_layers_contain_logits_only)
    report = tf1.load_tf1_checkpoint(model, weights, excluded)
    print(f"{config.tf_initial_checkpoint}: {report}")
    return tuple(name for name in means if name not in report.restored)


def _resolve_policy(
    experiment: Experiment, start: Start, replicas: int, untrained: tuple[str, ...]
) -> BatchNormPolicy:
    """Returns the batch normalisation policy; a resumed run keeps its policy."""
    previous = start.previous
    if previous is None or start.batch_norm != "auto":
        return resolve_batch_norm(start.batch_norm, start.images, replicas, untrained)
    name = previous.train.normalization
    policy = resolve_batch_norm(name, start.images, replicas, untrained)
    reason = f"as {experiment.train.train_logdir} was trained"
    return dataclasses.replace(policy, reason=reason)


def _apply_policy(
    train: TrainConfig, policy: BatchNormPolicy, untrained: tuple[str, ...]
) -> TrainConfig:
    """Prints the policy and returns the training config with it."""
    print(f"batch normalisation: {policy.name} ({policy.reason})")
    is_frozen = policy.name == "freeze"
    if is_frozen and untrained:
        print(
            f"warning: {len(untrained)} frozen batch normalisation layers "
            f"({untrained[0]}, ...) were never trained, which breaks the layers after "
            "them; --batch_norm=train trains them",
            file=sys.stderr,
        )
    return dataclasses.replace(
        train, batch_norm=policy.name, fine_tune_batch_norm=not is_frozen
    )
