"""Mean IoU as a Keras metric, for any backend."""

from typing import Any

import keras
from keras import ops

from deeplab_tf.evaluation.confusion import is_scored
from deeplab_tf.models.tensors import Tensor


def count_confusions(
    labels: Tensor, predictions: Tensor, num_classes: int, ignore_label: int
) -> Tensor:
    """Returns the confusion matrix `[truth, prediction]` of tensors, int64.

    The same as `confusion.confusion_matrix`, which takes arrays.
    """
    labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
    predictions = ops.cast(ops.reshape(predictions, (-1,)), "int32")
    scored = is_scored(labels, num_classes, ignore_label)
    # Ignored pixels go to an extra cell after the matrix.
    cells = ops.where(scored, labels * num_classes + predictions, num_classes**2)
    counts = ops.bincount(cells, minlength=num_classes**2 + 1)[:-1]
    return ops.cast(ops.reshape(counts, (num_classes, num_classes)), "int64")


@keras.saving.register_keras_serializable("deeplab_tf")
class MeanIoU(keras.metrics.Metric):
    """Mean IoU of logits and labels over all updates.

    Integer counts make the result independent of batch size and order, and exact
    beyond 2^24 pixels.

    Args:
        num_classes: Number of classes.
        ignore_label: Label of pixels that are not scored.
        name: Name of the metric.
        **kwargs: Passed to `keras.metrics.Metric`.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_label: int = 255,
        name: str = "miou",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.counts = self.add_variable(
            shape=(num_classes, num_classes),
            initializer="zeros",
            dtype="int64",
            name="confusion",
        )

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: None = None
    ) -> None:
        """Counts labels against logits of the same height and width.

        Args:
            y_true: Class ids `[batch, height, width]` or `[..., 1]`.
            y_pred: Scores `[batch, height, width, num_classes]`, logits or
                probabilities.
            sample_weight: Not supported; must be None.

        Raises:
            ValueError: for a weight.
        """
        if sample_weight is not None:
            raise ValueError("MeanIoU does not support sample_weight; use ignore_label")
        self.update_labels(y_true, ops.argmax(y_pred, axis=-1))

    def update_labels(self, labels: Tensor, predictions: Tensor) -> None:
        """Counts labels against predicted labels."""
        counts = count_confusions(
            labels, predictions, self.num_classes, self.ignore_label
        )
        self.counts.assign_add(counts)

    def result(self) -> Tensor:
        """Returns the mean, 0..1, over classes in the ground truth or prediction."""
        counts = ops.cast(self.counts, "float32")
        hits = ops.diagonal(counts)
        union = ops.sum(counts, 0) + ops.sum(counts, 1) - hits
        present = ops.cast(union > 0, "float32")
        iou = hits / ops.maximum(union, 1.0)
        return ops.sum(iou) / ops.maximum(ops.sum(present), 1.0)

    def get_config(self) -> dict:
        """Returns the constructor arguments."""
        own = {"num_classes": self.num_classes, "ignore_label": self.ignore_label}
        return {**super().get_config(), **own}
