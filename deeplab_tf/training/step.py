"""What one replica does in one optimiser step."""

from collections.abc import Callable

import keras
import tensorflow as tf

from deeplab_tf.config import ModelConfig, TrainConfig
from deeplab_tf.models.precision import precision_of
from deeplab_tf.models.resampling import (
    resize_bilinear,
    scale_dimension,
    spatial_size,
)
from deeplab_tf.models.variables import official_variables
from deeplab_tf.training import losses, optimizer
from deeplab_tf.training.divergence import find_broken_images


def training_outputs(model: keras.Model) -> keras.Model:
    """Returns the model that gives every logits with a loss, before the last resize.

    Those of an image pyramid are the merged ones and those of each scale, as the
    official code has a loss for all of them.

    Args:
        model: A model of `build_model`.
    """
    scales = model.model_config.image_pyramid
    names = ["logits"]
    if len(scales) > 1:
        names += [f"grid_{i}" for i in range(len(scales))]
    return keras.Model(model.input, [model.get_layer(n).output for n in names])


def computes_in_half(model: keras.Model) -> bool:
    """Whether a model computes in float16, whose gradients may vanish or overflow."""
    return precision_of(model) == "float16"


class TrainStep:
    """Loss, gradients and update of one replica's share of a batch.

    To be called in a replica context. The replicas' losses add up to that of the
    batch: each is divided by the pixels that count in the shares of all.

    Args:
        model: A model of `build_model`.
        config: How to train.
        network: What `training_outputs` gives, or what does the same.
        optimizer: A built optimiser.
        averages: Official name to the moving average of that variable.
    """

    def __init__(
        self,
        model: keras.Model,
        config: TrainConfig,
        network: Callable,
        optimizer: keras.optimizers.Optimizer,
        averages: dict[str, keras.Variable],
    ):
        self._model_config: ModelConfig = model.model_config
        self._config = config
        self._network = network
        self._optimizer = optimizer
        variables = official_variables(model)
        self._trained = {n: v for n, v in variables.items() if v.trainable}
        self._averaged = [(averages[n], variables[n]) for n in averages]

    def gradients(self, images, labels, loss_scale=None):
        """Returns this replica's share of the gradients, and what is to be told.

        Args:
            images: float32 `[rows, height, width, channels]`.
            labels: `[rows, height, width]` or `[..., 1]`.
            loss_scale: Factor on the loss, undone in the gradients; None is 1.

        Returns:
            One gradient per trained variable, L2 and multipliers included, and
            `data_loss`, `regularization_loss` and `learning_rate` (of the weights
            before the update, over all replicas), `broken_gradients`, the number of
            those that are not finite, and `classes` `[3, num_classes]`: pixels on the
            grid of the logits that are predicted as, are and are rightly predicted
            as each class.
        """
        config = self._config
        labels = tf.cast(labels, tf.int32)
        if len(labels.shape) == 4:
            labels = labels[..., 0]
        if not config.upsample_logits:
            labels = losses.shrink_labels(labels, self._grid(labels))
        count = self._sum(losses.pixel_count(labels, config.ignore_label))
        parts = config.accumulate_steps
        gradients, told = None, None
        for rows in zip(tf.split(images, parts), tf.split(labels, parts), strict=True):
            if gradients is not None:
                # One after the other, or all would be in memory at once.
                with tf.control_dependencies(gradients):
                    rows = [tf.identity(part) for part in rows]
            more, of_part = self._differentiate(*rows, count, loss_scale)
            gradients = more if told is None else _added(gradients, more)
            told = of_part if told is None else told + of_part
        broken = 0.0
        if loss_scale is None:  # else they may overflow, and are left out
            broken = _broken(gradients)
        told = self._sum(tf.concat([[broken], told], 0))
        results = {
            "data_loss": told[1],
            "regularization_loss": self._decay(),
            "learning_rate": tf.identity(self._optimizer.learning_rate),
            "broken_gradients": told[0],
            "classes": tf.reshape(told[2:], (3, -1)),
        }
        return self._finished(gradients, loss_scale), results

    def update(self, gradients) -> None:
        """Moves the variables against the sum of the replicas' gradients."""
        # The optimiser counts its steps whether there are data or not.
        with tf.control_dependencies(gradients):
            gradients = [tf.identity(gradient) for gradient in gradients]
            self._optimizer.apply(gradients, list(self._trained.values()))
        share = 1.0 - self._config.ema_decay
        for average, variable in self._averaged:
            # Not the sum of two shares: rounded, those of 0.9999 add up to less than
            # 1, and the average of a constant would come to 0.9998 of it.
            average.assign_add(share * (variable - average))

    def whole(self, images, labels) -> dict:
        """Does `gradients` and `update`; returns what is to be told."""
        gradients, results = self.gradients(images, labels)
        self.update(gradients)
        return results

    def gradients_in_half(self, images, labels, loss_scale):
        """Returns the gradients of all replicas, what is to be told, whether finite.

        See `gradients`; for float16, where a step that overflows is left out, which
        all replicas have to know before any of them moves.
        """
        gradients, results = self.gradients(images, labels, loss_scale)
        gradients = self._sum(gradients)
        is_finite = tf.reduce_all([_is_finite(g) for g in gradients])
        return gradients, results, is_finite

    def update_in_half(self, gradients) -> None:
        """Does `update` with gradients that have been summed over the replicas."""
        context = tf.distribute.get_replica_context()
        # The optimiser adds them up once more.
        self.update([g / context.num_replicas_in_sync for g in gradients])

    def first_broken_image(self, images):
        """Returns the place of the first image with pixels that cannot be meant.

        Args:
            images: As in `gradients`.

        Returns:
            The place in the batch of all replicas, a float32 scalar that is the same
            on every replica; -1 where all images are sound.
        """
        context = tf.distribute.get_replica_context()
        own_row = tf.one_hot(
            context.replica_id_in_sync_group, context.num_replicas_in_sync
        )
        broken = tf.cast(find_broken_images(images), tf.float32)
        # Each replica fills its own row, so that the sum holds those of all.
        broken = self._sum(own_row[:, None] * broken[None])
        first = tf.cast(tf.argmax(tf.reshape(broken, [-1])), tf.float32)
        return tf.where(tf.reduce_any(broken > 0), first, -1.0)

    def _grid(self, labels) -> tuple:
        """Returns height and width of the logits, before the last resize."""
        config = self._model_config
        scale = max(1.0, *config.image_pyramid) / config.logits_stride
        return tuple(scale_dimension(size, scale) for size in spatial_size(labels))

    def _sum(self, value):
        """Returns the sum of a value over all replicas."""
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync == 1:
            return value
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value)

    def _differentiate(self, images, labels, count, loss_scale):
        """Returns the gradients of a part of the batch, and a vector of its facts."""
        # Dropout counts its draws whether there are data or not.
        with tf.control_dependencies([images]), tf.GradientTape() as tape:
            several = tf.nest.flatten(self._network(images, training=True))
            loss = tf.add_n([self._loss(x, labels, count) for x in several])
            scaled = loss if loss_scale is None else loss * loss_scale
        variables = [v.value for v in self._trained.values()]
        gradients = tape.gradient(scaled, variables)
        facts = [loss[None], *self._class_counts(several[0], labels)]
        return gradients, tf.concat(facts, 0)

    def _loss(self, logits, labels, count):
        config = self._config
        if config.upsample_logits:
            logits = resize_bilinear(logits, spatial_size(labels))
        share = losses.mined_share(
            self._optimizer.iterations,
            config.top_k_percent_pixels,
            config.hard_example_mining_step,
        )
        total, own_count = losses.loss_and_count(
            labels,
            logits,
            config.ignore_label,
            config.label_weights,
            share,
            config.focal_gamma,
        )
        if losses.is_mined(share):
            # Picked in each part of each replica, as in the official clones; which
            # of them are not 0 is not known before.
            count = self._sum(own_count) * config.accumulate_steps
        return total / tf.maximum(count, 1.0)

    def _class_counts(self, logits, labels):
        """Returns how often each class is predicted, true and both."""
        if self._config.upsample_logits:
            labels = losses.shrink_labels(labels, spatial_size(logits))
        classes = logits.shape[-1]
        labels = tf.where(labels == self._config.ignore_label, -1, labels)
        truth, predicted = (
            tf.reshape(tf.one_hot(ids, classes), (-1, classes))
            for ids in (labels, tf.argmax(logits, -1))
        )
        confusion = tf.matmul(truth, predicted, transpose_a=True)
        return [
            tf.reduce_sum(confusion, 0),
            tf.reduce_sum(confusion, 1),
            tf.linalg.diag_part(confusion),
        ]

    def _decays(self) -> bool:
        return self._config.optimizer != "adamw"

    def _decay(self):
        if not self._decays():
            return tf.constant(0.0)
        return losses.regularization_loss(self._trained, self._config.weight_decay)

    def _finished(self, gradients, loss_scale) -> list:
        """Returns gradients with L2 and the official multipliers."""
        context = tf.distribute.get_replica_context()
        # Replicas add up to one L2.
        decay = self._config.weight_decay / context.num_replicas_in_sync
        finished = []
        for gradient, (name, variable) in zip(
            gradients, self._trained.items(), strict=True
        ):
            if loss_scale is not None:
                gradient = gradient / loss_scale
            if self._decays() and losses.is_decayed(name):
                gradient = gradient + decay * variable.value
            finished.append(
                gradient * optimizer.gradient_multiplier(name, self._config)
            )
        return finished


def _added(ones: list, others: list) -> list:
    return [a + b for a, b in zip(ones, others, strict=True)]


def _broken(gradients: list):
    """Returns how many gradients are not finite throughout, float32."""
    # A sum is not finite where a term is not, nor where finite terms overflow. It takes
    # a fraction of the operations of looking at every term.
    sums = tf.stack([tf.reduce_sum(gradient) for gradient in gradients])
    return tf.reduce_sum(tf.cast(~tf.math.is_finite(sums), tf.float32))


def _is_finite(values):
    return tf.reduce_all(tf.math.is_finite(values))
