"""Mean IoU as a Keras metric, for any backend."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config.checks import require
from deeplab_tf.config.options import COUNT
from deeplab_tf.data.info import is_scored
from deeplab_tf.models.labels import expand_sample_weight, read_labels, read_predictions
from deeplab_tf.models.tensors import Tensor


def count_confusions(
    labels: Tensor,
    predictions: Tensor,
    num_classes: int,
    ignore_label: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Returns the confusion matrix `[truth, prediction]` of tensors.

    Equals `confusion.confusion_matrix`, which takes arrays. The matrix has the type of
    `weights`, one per pixel; by default, it is int64, or int32 without 64-bit support.
    """
    labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
    predictions = ops.cast(ops.reshape(predictions, (-1,)), "int32")
    scored = is_scored(labels, num_classes, ignore_label)
    # Ignored pixels are counted in an extra cell after the matrix.
    cells = ops.where(scored, labels * num_classes + predictions, num_classes**2)
    if weights is None:
        weights = ops.ones_like(cells, dtype=_find_widest("int"))
    counts = _sum_by_cell(cells, ops.reshape(weights, (-1,)), num_classes**2 + 1)
    return ops.reshape(counts[:-1], (num_classes, num_classes))


def _sum_by_cell(cells: Tensor, weights: Tensor, size: int) -> Tensor:
    """Sums the weights in each cell, `[size]`."""
    if keras.backend.backend() != "tensorflow":
        return ops.segment_sum(weights, cells, size)
    import tensorflow as tf

    # Six times as fast on a CPU; XLA cannot compile the dynamic size of `ops.bincount`.
    return tf.raw_ops.DenseBincount(input=cells, size=size, weights=weights)


def _find_widest(kind: str) -> str:
    """Returns the widest "int" or "float" type of the Keras backend."""
    if keras.backend.backend() != "jax":
        return f"{kind}64"
    import jax

    return jax.dtypes.canonicalize_dtype(f"{kind}64").name


@keras.saving.register_keras_serializable("deeplab_tf")
class MeanIoU(keras.metrics.Metric):
    """Mean IoU of predictions and labels over all updates.

    Pixels are counted as integers, so the result does not depend on batch size or order
    and is exact beyond 2^24 pixels. Classes in neither labels nor predictions are left
    out, as in `evaluate`. A label that is neither a class nor ignored, or a prediction
    that is not a class, raises an error (see `models.labels.read_labels`), or makes the
    result NaN in TensorFlow code compiled with XLA, which cannot raise errors. On JAX,
    the result is also NaN once an entry of the confusion matrix reaches 2^31 pixels,
    unless `jax_enable_x64` is set.

    Args:
        num_classes: Number of classes.
        ignore_label: Label of pixels that are not scored.
        target_class_ids: Classes to average, as in `keras.metrics.IoU`; None averages
            all.
        name: Name of the metric.
        **kwargs: Passed to `keras.metrics.Metric`.

    Raises:
        UserError: if `num_classes` is out of range, or a target is not a class.
    """

    @check_arguments(num_classes=COUNT)
    def __init__(
        self,
        num_classes: int,
        ignore_label: int = 255,
        target_class_ids: Sequence[int] | None = None,
        name: str = "miou",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        classes = range(num_classes)
        targets = tuple(classes if target_class_ids is None else target_class_ids)
        require(
            bool(targets) and set(targets) <= set(classes),
            f"target_class_ids must be classes (0..{num_classes - 1}); received "
            f"{target_class_ids}",
        )
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.target_class_ids = targets
        # Sums of updates without and with weights. The latter become NaN after an
        # invalid update.
        shape = (num_classes, num_classes)
        self.counts = self.add_variable(
            shape, "zeros", dtype=_find_widest("int"), name="confusion"
        )
        self.weighted_counts = self.add_variable(
            shape, "zeros", dtype=_find_widest("float"), name="weighted_confusion"
        )

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        """Adds labels and predictions, of the same height and width, to the counts.

        Args:
            y_true: Class ids `[batch, height, width]` or `[..., 1]`, or one-hot labels
                `[..., num_classes]`, in which a pixel of zeros is ignored.
            y_pred: Logits or probabilities `[..., num_classes]`, or class ids `[batch,
                height, width]` or `[..., 1]`.
            sample_weight: One weight per image, `[batch]`, or per pixel, `[batch,
                height, width]`; without weights, pixels are counted exactly.

        Raises:
            UserError: if a shape, label or prediction is invalid; see `read_labels`.
        """
        labels, invalid = read_labels(y_true, self.num_classes, self.ignore_label)
        predictions, wrong = read_predictions(y_pred, self.num_classes)
        _check_size(tuple(labels.shape[1:]), tuple(predictions.shape[1:]))
        predictions = ops.where(wrong, 0, predictions)
        invalid = ops.any(invalid) | ops.any(wrong)
        pixels = (labels, predictions, self.num_classes, self.ignore_label)
        if sample_weight is None:
            added = 0.0
            self.counts.assign_add(count_confusions(*pixels))
            invalid |= ops.any(self.counts < 0)  # overflow
        else:
            weights = ops.cast(
                expand_sample_weight(sample_weight), _find_widest("float")
            )
            weights = ops.broadcast_to(weights, ops.shape(labels))
            added = count_confusions(*pixels, weights)
        poison = ops.cast(ops.where(invalid, float("nan"), 0.0), _find_widest("float"))
        self.weighted_counts.assign(self.weighted_counts + added + poison)

    def result(self) -> Tensor:
        """Returns the mean IoU, 0..1, over the target classes that are present.

        These have pixels in labels or predictions; see `confusion.mean_iou`.
        """
        targets = list(self.target_class_ids)
        hits, truth, predicted = (ops.take(x, targets) for x in self._count_classes())
        union = truth + predicted - hits
        present = union != 0
        iou = hits / ops.where(present, union, 1)
        mean = ops.sum(iou) / ops.maximum(ops.sum(ops.cast(present, iou.dtype)), 1)
        return ops.cast(mean, "float32")

    def iou_per_class(self) -> Tensor:
        """Returns the IoU of each class, float32 `[num_classes]`.

        NaN for classes without labels. Equals `confusion.iou_per_class`, which takes
        arrays.
        """
        hits, truth, predicted = self._count_classes()
        union = ops.where(truth == 0, float("nan"), truth + predicted - hits)
        return ops.cast(hits / union, "float32")

    def _count_classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the correct, ground-truth and predicted pixels of each class."""
        counts = ops.cast(self.counts, _find_widest("float")) + self.weighted_counts
        return ops.diagonal(counts), ops.sum(counts, 1), ops.sum(counts, 0)

    def get_config(self) -> dict:
        """Returns the constructor arguments."""
        own = {
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
            "target_class_ids": self.target_class_ids,
        }
        return {**super().get_config(), **own}


def _check_size(labels: tuple, predictions: tuple) -> None:
    """Raises `UserError` if heights or widths are known to differ."""
    pairs = zip(labels, predictions, strict=True)
    require(
        all(None in pair or pair[0] == pair[1] for pair in pairs),
        f"labels are {labels[0]}x{labels[1]} pixels, predictions "
        f"{predictions[0]}x{predictions[1]}; resize the predictions to the labels",
    )
