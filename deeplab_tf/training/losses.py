"""The official training loss: cross-entropy over valid pixels.

DeepLabv3 (1706.05587), Sec. 4.1; hard-pixel mining as in the official code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from deeplab_tf.models.resampling import resize_bilinear, spatial_size
from deeplab_tf.models.tensors import Tensor


def schedule_mined_share(
    step: Tensor, top_k_percent_pixels: float, hard_example_mining_step: int
) -> Tensor:
    """Returns the share of pixels in the loss, decreasing from 1 as mining sets in.

    Args:
        step: Optimiser steps done.
        top_k_percent_pixels: Final share, in (0, 1].
        hard_example_mining_step: Steps until it is reached; 0 means immediately.
    """
    if hard_example_mining_step == 0 or top_k_percent_pixels == 1.0:
        return top_k_percent_pixels
    ratio = ops.minimum(ops.cast(step, "float32") / hard_example_mining_step, 1.0)
    return ratio * top_k_percent_pixels + (1.0 - ratio)


def segmentation_loss(
    labels: Tensor,
    logits: Tensor,
    ignore_label: int = 255,
    label_weights: Sequence[float] = (),
    share: float | Tensor = 1.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Returns the mean cross-entropy of the valid pixels, a scalar.

    The quotient of `loss_and_count`; without valid pixels, loss and gradient are 0.

    Args:
        labels: Class ids `[batch, height, width]` or `[..., 1]`.
        logits: `[batch, height, width, num_classes]`, float32.
        ignore_label: Label of pixels without loss.
        label_weights: One weight per class; () weights all equally.
        share: Share in (0, 1] of the hardest pixels to keep, a number or a scalar
            tensor.
        focal_gamma: Exponent of the focal loss; 0 is the cross-entropy.
    """
    total, count = loss_and_count(
        labels, logits, ignore_label, label_weights, share, focal_gamma
    )
    return total / ops.maximum(count, 1.0)


def loss_and_count(
    labels: Tensor,
    logits: Tensor,
    ignore_label: int,
    label_weights: Sequence[float] = (),
    share: float | Tensor = 1.0,
    focal_gamma: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Returns the sum of the pixel losses, and the count to divide it by.

    Weights change the sum but not the count. Mining keeps the `share` of all pixels,
    ignored ones included, with the largest losses, and counts those whose loss is not
    0. The focal loss multiplies the cross-entropy by `(1 - p) ** focal_gamma`
    (1708.02002, Eq. 4), where `p` is the probability of the true class. Labels outside
    the classes have no loss but are counted, unlike `ignore_label`.

    For the arguments see `segmentation_loss`.
    """
    num_classes = logits.shape[-1]
    labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
    logits = ops.reshape(logits, (-1, num_classes))
    known = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
    safe = ops.where(known, labels, 0)
    weights = ops.cast(known, logits.dtype)
    if len(label_weights):
        per_class = ops.convert_to_tensor(label_weights, dtype=logits.dtype)
        weights = weights * ops.take(per_class, safe)
    entropy = ops.sparse_categorical_crossentropy(safe, logits, from_logits=True)
    if focal_gamma:
        # 1 - p, accurate where p is almost 1.
        wrong = ops.maximum(-ops.expm1(-entropy), 1e-7)
        entropy = ops.power(wrong, focal_gamma) * entropy
    losses = weights * entropy
    if is_mined(share):
        return _sum_hardest(losses, share)
    return ops.sum(losses), count_pixels(labels, ignore_label)


def is_mined(share: float | Tensor) -> bool:
    """Returns whether a share, a number or a tensor, may leave pixels out."""
    return not (isinstance(share, float | int) and share == 1.0)


def count_pixels(labels: Tensor, ignore_label: int) -> Tensor:
    """Returns the number of labels that are not ignored, float32."""
    counted = ops.cast(labels, "int32") != ignore_label
    return ops.sum(ops.cast(counted, "float32"))


def _sum_hardest(losses: Tensor, share: float | Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum of the largest losses, and the number of them above 0."""
    # Sorting and masking by rank keeps shapes static; XLA would recompile `top_k` for
    # every k.
    size = ops.shape(losses)[0]
    kept = ops.floor(share * ops.cast(size, "float32"))
    descending = -ops.sort(-losses)
    chosen = ops.cast(ops.arange(size), "float32") < kept
    hardest = ops.where(chosen, descending, 0.0)
    return ops.sum(hardest), ops.sum(ops.cast(hardest > 0, losses.dtype))


def regularization_loss(
    variables: Mapping[str, keras.Variable], weight_decay: float
) -> Tensor:
    """Returns `weight_decay / 2` times the sum of squares of the decayed kernels.

    Args:
        variables: Official name to variable. Depthwise kernels, biases, gamma and beta
            are not decayed.
        weight_decay: Value of the official flag.
    """
    kernels = [v for name, v in variables.items() if is_decayed(name)]
    squares = [ops.sum(ops.square(ops.cast(v, "float32"))) for v in kernels]
    return 0.5 * weight_decay * sum(squares)


def is_decayed(name: str) -> bool:
    """Returns whether the variable of an official name has L2 regularisation."""
    return name.endswith("/weights")


def shrink_labels(labels: Tensor, size: Sequence[int | Tensor]) -> Tensor:
    """Returns labels at the size of the logits by nearest neighbours.

    Corners are aligned and halves round up (TF1's `align_corners`).

    Args:
        labels: `[batch, height, width]` or `[batch, height, width, 1]`.
        size: Target height and width.
    """
    if len(labels.shape) == 4:
        labels = labels[..., 0]
    for axis, target in zip((1, 2), size, strict=True):
        source = ops.shape(labels)[axis]
        step = ops.cast(source - 1, "float32") / ops.cast(
            ops.maximum(target - 1, 1), "float32"
        )
        index = ops.floor(ops.cast(ops.arange(target), "float32") * step + 0.5)
        labels = ops.take(labels, ops.cast(index, "int32"), axis=axis)
    return labels


@keras.saving.register_keras_serializable("deeplab_tf")
class SegmentationLoss(keras.losses.Loss):
    """`segmentation_loss` for `compile`; resizes the logits to the labels.

    Labels keep their resolution, because shrinking them removes fine details
    (DeepLabv3, 1706.05587, Sec. 4.1).

    Args:
        ignore_label: Label of pixels without loss.
        label_weights: One weight per class; () weights all equally.
        share: Share in (0, 1] of the hardest pixels to keep.
        focal_gamma: Exponent of the focal loss (1708.02002, Eq. 4); 0 is the
            cross-entropy.
        name: Name of the loss.
        **kwargs: Passed to `keras.losses.Loss`.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        label_weights: Sequence[float] = (),
        share: float = 1.0,
        focal_gamma: float = 0.0,
        name: str = "segmentation_loss",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.ignore_label = ignore_label
        self.label_weights = tuple(label_weights)
        self.share = share
        self.focal_gamma = focal_gamma

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the scalar loss of labels against logits of any height and width."""
        logits = resize_bilinear(ops.cast(y_pred, "float32"), spatial_size(y_true))
        return segmentation_loss(y_true, logits, **self._options())

    def _options(self) -> dict:
        return {
            "ignore_label": self.ignore_label,
            "label_weights": self.label_weights,
            "share": self.share,
            "focal_gamma": self.focal_gamma,
        }

    def get_config(self) -> dict:
        """Returns the constructor arguments."""
        return {**super().get_config(), **self._options()}
