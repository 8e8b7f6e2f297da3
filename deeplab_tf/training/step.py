"""One optimiser step on one replica (DeepLabv3, 1706.05587, Sec. 4.1)."""

from collections.abc import Callable

import keras
import tensorflow as tf

from deeplab_tf.config import ModelConfig, TrainConfig
from deeplab_tf.models.resampling import (
    resize_bilinear,
    scale_dimension,
    spatial_size,
)
from deeplab_tf.models.variables import official_variables
from deeplab_tf.training import losses, optimizer, tricks
from deeplab_tf.training.averages import MovingAverages
from deeplab_tf.training.collapse import count_classes
from deeplab_tf.training.replicas import sum_over_replicas


def training_outputs(model: keras.Model) -> keras.Model:
    """Returns a model that outputs all logits with a loss, before resizing.

    With an image pyramid, these are the merged logits and those of each scale, as in
    the official code.
    """
    scales = model.model_config.image_pyramid
    names = ["logits"]
    if len(scales) > 1:
        names += [f"grid_{i}" for i in range(len(scales))]
    return keras.Model(model.input, [model.get_layer(n).output for n in names])


class TrainStep:
    """Runs forward pass, loss, gradients and update on one replica's rows of a batch.

    Call this in a replica context. The losses of the replicas add up to that of the
    batch: each is divided by the number of valid pixels on all replicas. `network` is
    the model of `training_outputs`, or an equivalent one; the optimiser must be built.
    """

    def __init__(
        self,
        model: keras.Model,
        config: TrainConfig,
        network: Callable,
        optimizer: keras.optimizers.Optimizer,
        averages: MovingAverages,
    ):
        self._model_config: ModelConfig = model.model_config
        self._config = config
        self._network = network
        self._optimizer = optimizer
        self._averages = averages
        self._teacher = tricks.Teacher(model, config) if config.teacher else None
        variables = official_variables(model)
        self._trained = {n: v for n, v in variables.items() if v.trainable}

    def __call__(self, images, labels) -> dict:
        """Runs one step and returns the metrics of `compute_gradients`."""
        gradients, metrics = self.compute_gradients(images, labels)
        self.apply_gradients(gradients)
        return metrics

    def compute_gradients(self, images, labels, loss_scale=None) -> tuple[list, dict]:
        """Returns this replica's share of the gradients, and the metrics of the step.

        Args:
            images: float32 `[rows, height, width, channels]`.
            labels: `[rows, height, width]` or `[..., 1]`.
            loss_scale: Factor on the loss, undone in the gradients.

        Returns:
            The gradient of each trained variable, including L2 and multipliers; and
            metrics over all replicas, from before the update: `data_loss`,
            `regularization_loss`, `learning_rate`, `nonfinite_gradients` (their number
            before L2), `classes` (see `count_classes`) and `images`.
        """
        config, variables = self._config, [v.value for v in self._trained.values()]
        labels = self._resize_labels(labels)
        valid = losses.count_pixels(labels, config.ignore_label)
        own_rows = tf.cast(tf.shape(images)[0], tf.float32)
        pixels, rows = tf.unstack(sum_over_replicas(tf.stack([valid, own_rows])))
        # Exactly the number of parts if all have as many rows.
        parts = rows / own_rows * config.accumulate_steps

        def differentiate(images, labels):
            """Returns gradients of the summed loss, and losses and class counts."""
            # Otherwise, dropout advances its seed even if the data have ended.
            with tf.control_dependencies([images]), tf.GradientTape() as tape:
                outputs = tf.nest.flatten(self._network(images, training=True))
                loss = tf.add_n([self._loss(x, labels, pixels, parts) for x in outputs])
                if self._teacher is not None:
                    soft = self._teacher(images, outputs[0], labels)
                    loss += config.teacher_weight * soft / parts
            gradients = tape.gradient(loss, variables, loss_scale)
            return gradients, [loss[None], *self._count_classes(outputs[0], labels)]

        gradients, sums = accumulate(
            differentiate, images, labels, config.accumulate_steps
        )
        sums = sum_over_replicas(tf.concat([[count_nonfinite(gradients)], sums], 0))
        if loss_scale is not None:
            gradients = [gradient / loss_scale for gradient in gradients]
        return self._regularize(gradients), {
            "data_loss": sums[1],
            "regularization_loss": self._regularization_loss(),
            "learning_rate": tf.identity(self._optimizer.learning_rate),
            "nonfinite_gradients": sums[0],
            "classes": tf.reshape(sums[2:], (3, -1)),
            "images": rows,
        }

    def apply_gradients(self, gradients: list) -> None:
        """Updates weights and moving averages; the optimiser sums over replicas."""
        # Otherwise, the optimiser counts the step even if the data have ended.
        with tf.control_dependencies(gradients):
            gradients = [tf.identity(gradient) for gradient in gradients]
            self._optimizer.apply(gradients, list(self._trained.values()))
        self._averages.update()

    def _resize_labels(self, labels):
        """Returns int32 labels `[rows, height, width]` at the size of the loss."""
        labels = tf.cast(labels, tf.int32)
        if len(labels.shape) == 4:
            labels = labels[..., 0]
        if self._config.upsample_logits:
            return labels
        # The logits of the largest scale, before the last resize.
        config = self._model_config
        scale = max(1.0, *config.image_pyramid) / config.logits_stride
        size = [scale_dimension(side, scale) for side in spatial_size(labels)]
        return losses.shrink_labels(labels, size)

    def _loss(self, logits, labels, pixels, parts):
        """Returns this replica's loss, divided by the valid pixels of all replicas.

        `parts` is the number of rows of all replicas, divided by those of this part;
        the losses of the parts are summed.
        """
        config = self._config
        if config.upsample_logits:
            resizing = self._model_config.conventions.resizing
            logits = resize_bilinear(logits, spatial_size(labels), resizing)
        share = losses.schedule_mined_share(
            self._optimizer.iterations,
            config.top_k_percent_pixels,
            config.hard_example_mining_step,
        )
        total, own_pixels = losses.loss_and_count(
            labels,
            logits,
            config.ignore_label,
            config.label_weights,
            share,
            config.focal_gamma,
            config.relaxed_border,
        )
        if losses.is_mined(share):
            # Pixels are mined per replica and part, as per clone in the official code;
            # the divisor is how many of them have a loss above 0.
            pixels = sum_over_replicas(own_pixels) * config.accumulate_steps
        loss = total / tf.maximum(pixels, 1.0)
        return loss + tricks.region_loss(labels, logits, config) / parts

    def _count_classes(self, logits, labels) -> tuple:
        if self._config.upsample_logits:
            labels = losses.shrink_labels(labels, spatial_size(logits))
        return count_classes(logits, labels, self._config.ignore_label)

    @property
    def _has_l2(self) -> bool:
        return self._config.optimizer != "adamw"  # it decays the weights itself

    def _regularization_loss(self):
        if not self._has_l2:
            return tf.constant(0.0)
        return losses.regularization_loss(self._trained, self._config.weight_decay)

    def _regularize(self, gradients: list) -> list:
        """Adds the gradients of L2 and applies the official multipliers."""
        context = tf.distribute.get_replica_context()
        # The replicas' gradients are summed.
        decay = self._config.weight_decay / context.num_replicas_in_sync
        regularized = []
        for gradient, (name, variable) in zip(
            gradients, self._trained.items(), strict=True
        ):
            if self._has_l2 and losses.is_decayed(name):
                gradient = gradient + decay * variable.value
            regularized.append(
                gradient * optimizer.gradient_multiplier(name, self._config)
            )
        return regularized


def accumulate(differentiate: Callable, images, labels, parts: int) -> tuple:
    """Sums gradients and metrics over equal parts of a batch, one at a time.

    `differentiate` takes the images and labels of a part, and returns gradients and a
    list of vectors. Returns the sums of the gradients, and of the concatenated vectors.
    """
    first, *rest = zip(tf.split(images, parts), tf.split(labels, parts), strict=True)
    gradients, vectors = differentiate(*first)
    sums = tf.concat(vectors, 0)
    for rows in rest:
        # Otherwise TensorFlow runs all parts at once, all of them in memory.
        with tf.control_dependencies(gradients):
            rows = [tf.identity(part) for part in rows]
        more, vectors = differentiate(*rows)
        gradients = [a + b for a, b in zip(gradients, more, strict=True)]
        sums += tf.concat(vectors, 0)
    return gradients, sums


def count_nonfinite(gradients: list):
    """Returns the number of gradients that contain NaN or infinity, float32."""
    # Far cheaper than testing every element; an overflow of the sum also counts.
    sums = tf.stack([tf.reduce_sum(gradient) for gradient in gradients])
    return tf.reduce_sum(tf.cast(~tf.math.is_finite(sums), tf.float32))
