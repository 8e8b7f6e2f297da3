"""The official training loss: cross-entropy over valid pixels.

DeepLabv3 (1706.05587), Sec. 4.1; hard-pixel mining as in the official code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops
from keras.src.backend import set_keras_mask

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config.checks import require
from deeplab_tf.config.options import NOT_NEGATIVE, Range
from deeplab_tf.data.info import is_scored
from deeplab_tf.models.labels import expand_sample_weight, read_labels
from deeplab_tf.models.resampling import resize_bilinear, spatial_size
from deeplab_tf.models.tensors import Tensor


def check_label_weights(label_weights: Sequence[float], num_classes: int) -> None:
    """Raises UserError unless there is a weight for each class, or none at all."""
    require(
        len(label_weights) in (0, num_classes),
        f"label_weights needs one weight for each of the {num_classes} classes; "
        f"received {len(label_weights)}",
    )


def schedule_mined_share(
    step: Tensor, top_k_percent_pixels: float, hard_example_mining_step: int
) -> Tensor:
    """Returns the fraction of pixels in the loss, which decreases from 1.

    Args:
        step: Optimiser steps done.
        top_k_percent_pixels: Final fraction, in (0, 1].
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
        share: Fraction of pixels to keep, in (0, 1]: the hardest ones. A number or a
            scalar tensor.
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
    relaxed_border: int = 0,
) -> tuple[Tensor, Tensor]:
    """Returns the sum of the pixel losses, and the count to divide it by.

    Weights change the sum but not the count. Mining keeps the pixels with the largest
    losses, a fraction `share` of all pixels including ignored ones, and counts those
    whose loss is not 0. The focal loss multiplies the cross-entropy by `(1 - p) **
    focal_gamma` (1708.02002, Eq. 4), where `p` is the probability of the true class.
    Labels outside the classes have no loss but are counted, unlike `ignore_label`.

    See `segmentation_loss` for the arguments.
    """
    if relaxed_border:
        losses = relaxed_pixel_losses(
            ops.cast(labels, "int32"),
            logits,
            ignore_label,
            label_weights,
            relaxed_border,
        )
        return ops.sum(losses), count_pixels(labels, ignore_label)
    labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
    logits = ops.reshape(logits, (-1, logits.shape[-1]))
    losses = pixel_losses(labels, logits, ignore_label, label_weights, focal_gamma)
    if is_mined(share):
        hardest = find_hardest(losses, share)
        total = ops.sum(ops.where(hardest, losses, 0.0))
        return total, ops.sum(ops.cast(hardest, losses.dtype))
    return ops.sum(losses), count_pixels(labels, ignore_label)


def pixel_losses(
    ids: Tensor,
    logits: Tensor,
    ignore_label: int,
    class_weights: Sequence[float] = (),
    focal_gamma: float = 0.0,
) -> Tensor:
    """Returns the weighted loss of each pixel; 0 where the label is not a class.

    Args:
        ids: Class ids, int32, of any shape.
        logits: `[..., num_classes]`.
        ignore_label: Label of pixels without loss.
        class_weights: One weight per class; () weights all equally.
        focal_gamma: Exponent of the focal loss; 0 is the cross-entropy.
    """
    known = is_scored(ids, logits.shape[-1], ignore_label)
    safe = ops.where(known, ids, 0)
    weights = ops.cast(known, logits.dtype)
    if len(class_weights):
        per_class = ops.convert_to_tensor(class_weights, dtype=logits.dtype)
        weights = weights * ops.take(per_class, safe)
    entropy = ops.sparse_categorical_crossentropy(safe, logits, from_logits=True)
    if focal_gamma:
        # 1 - p, accurate where p is almost 1.
        wrong = ops.maximum(-ops.expm1(-entropy), 1e-7)
        entropy = ops.power(wrong, focal_gamma) * entropy
    return weights * entropy


def encode_labels(
    labels: Tensor, num_classes: int, ignore_label: int
) -> tuple[Tensor, Tensor]:
    """Returns one-hot labels with zeros at pixels without a class, and their mask."""
    known = is_scored(labels, num_classes, ignore_label)
    hot = ops.one_hot(ops.where(known, labels, 0), num_classes, dtype="float32")
    mask = ops.cast(known, "float32")[..., None]
    return hot * mask, mask


def relaxed_pixel_losses(
    labels: Tensor,
    logits: Tensor,
    ignore_label: int,
    class_weights: Sequence[float],
    border: int,
) -> Tensor:
    """Returns the loss of the union of all classes within `border` pixels.

    1812.01593, Eq. 2. Shapes are those of `losses.pixel_losses`, with a batch.
    """
    hot, mask = encode_labels(labels, logits.shape[-1], ignore_label)
    allowed = ops.max_pool(hot, 2 * border + 1, 1, "same")
    loss = ops.logsumexp(logits, -1) - ops.logsumexp(logits + (allowed - 1) * 1e4, -1)
    if len(class_weights):
        loss = loss * ops.sum(hot * ops.convert_to_tensor(class_weights), -1)
    return ops.where(mask[..., 0] > 0, loss, 0.0)


def is_mined(share: float | Tensor) -> bool:
    """Returns whether a share, a number or a tensor, may exclude pixels."""
    return not (isinstance(share, float | int) and share == 1.0)


def count_pixels(labels: Tensor, ignore_label: int) -> Tensor:
    """Returns the number of labels that are not ignored, float32."""
    counted = ops.cast(labels, "int32") != ignore_label
    return ops.sum(ops.cast(counted, "float32"))


def find_hardest(losses: Tensor, share: float | Tensor) -> Tensor:
    """Returns a mask of the largest losses except zeros.

    Args:
        losses: Losses of all pixels `[pixels]`.
        share: Fraction of pixels to keep, in (0, 1], a number or a scalar tensor.
    """
    # Sorting keeps shapes static; XLA would recompile `top_k` for every k.
    losses = ops.stop_gradient(losses)
    size = ops.shape(losses)[0]
    kept = ops.cast(ops.floor(share * ops.cast(size, "float32")), "int32")
    is_last = ops.arange(size) == ops.maximum(kept - 1, 0)
    smallest = ops.sum(ops.where(is_last, -ops.sort(-losses), 0.0))
    # NaN counts as hard, so that the loss shows it.
    harder = ~(losses <= smallest)
    # Of equal losses, the first ones are kept.
    equal = ops.cast(losses == smallest, "int32")
    remaining = kept - ops.sum(ops.cast(harder, "int32"))
    hardest = harder | ((equal > 0) & (ops.cumsum(equal) <= remaining))
    return hardest & (losses != 0)


def regularization_loss(
    variables: Mapping[str, keras.Variable], weight_decay: float
) -> Tensor:
    """Returns `weight_decay / 2` times the sum of squares of the decayed kernels.

    Args:
        variables: Maps official names to variables. Depthwise kernels, biases, gamma
            and beta are not decayed.
        weight_decay: Value of the official flag.
    """
    kernels = [v for name, v in variables.items() if is_decayed(name)]
    squares = [ops.sum(ops.square(ops.cast(v, "float32"))) for v in kernels]
    return 0.5 * weight_decay * sum(squares)


def is_decayed(name: str) -> bool:
    """Returns whether L2 regularisation applies to a variable, by official name."""
    return name.endswith("/weights")


def shrink_labels(labels: Tensor, size: Sequence[int | Tensor]) -> Tensor:
    """Resizes labels to the size of the logits by nearest neighbours.

    Corners are aligned and halves round up (TF1's `align_corners`). Labels are `[batch,
    height, width]` or `[..., 1]`; `size` is height and width.
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
    """Cross-entropy over valid pixels, for `compile`.

    Logits are resized to the labels, because shrinking the labels would remove fine
    details (DeepLabv3, 1706.05587, Sec. 4.1).

    By default, the result is the mean over the pixels that are not ignored or, with
    mining, over the hardest pixels of the batch whose loss is above 0; class weights do
    not change the divisor. Other reductions and sample weights apply to the same
    pixels, as in `keras.losses.SparseCategoricalCrossentropy` with `ignore_class`. A
    label that is neither a class nor ignored raises an error (see
    `models.labels.read_labels`), or makes the loss NaN in TensorFlow code compiled with
    XLA, which cannot raise errors.

    Args:
        ignore_label: Label of pixels without loss.
        class_weights: One weight per class; () weights all equally.
        share: Fraction of all pixels to keep, in (0, 1]: those with the largest losses.
        focal_gamma: Exponent of the focal loss (1708.02002, Eq. 4), at least 0; 0 is
            the cross-entropy.
        name: Name of the loss.
        **kwargs: Passed to `keras.losses.Loss`, such as `reduction`.

    Raises:
        UserError: if a class weight, the share or the exponent is out of range.
    """

    @check_arguments(
        class_weights=NOT_NEGATIVE,
        share=Range(above=0, at_most=1),
        focal_gamma=NOT_NEGATIVE,
    )
    def __init__(
        self,
        ignore_label: int = 255,
        class_weights: Sequence[float] = (),
        share: float = 1.0,
        focal_gamma: float = 0.0,
        name: str = "segmentation_loss",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.ignore_label = ignore_label
        self.class_weights = tuple(class_weights)
        self.share = share
        self.focal_gamma = focal_gamma

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Returns the reduced loss.

        Args:
            y_true: Class ids `[batch, height, width]` or `[..., 1]`, or one-hot labels
                `[..., num_classes]`, where a pixel of zeros is ignored.
            y_pred: Logits of any height and width, `[batch, h, w, num_classes]`.
            sample_weight: One weight per image, `[batch]`, or per pixel, `[batch,
                height, width]`.

        Raises:
            UserError: if a shape or a label is invalid (see `read_labels`), or the
                number of class weights is not that of the classes.
        """
        return super().__call__(y_true, y_pred, expand_sample_weight(sample_weight))

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the losses of all pixels, `[batch, height, width]`.

        Ignored pixels have a loss of 0. Keras leaves them out of means, as well as
        pixels excluded by mining.
        """
        # Keras leaves lists as lists of tensors.
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        self._check_logits(tuple(y_pred.shape))
        num_classes = y_pred.shape[3]
        ids, invalid = read_labels(y_true, num_classes, self.ignore_label)
        logits = resize_bilinear(ops.cast(y_pred, "float32"), spatial_size(y_true))
        losses = pixel_losses(
            ids, logits, self.ignore_label, self.class_weights, self.focal_gamma
        )
        valid = ids != self.ignore_label
        if is_mined(self.share):
            hardest = find_hardest(ops.reshape(losses, (-1,)), self.share)
            valid = ops.reshape(hardest, ops.shape(losses))
        losses = ops.where(invalid, float("nan"), losses)
        set_keras_mask(losses, valid)
        return losses

    def _check_logits(self, shape: tuple) -> None:
        """Raises an error unless the logits match the class weights."""
        require(
            len(shape) == 4,
            f"y_pred has the shape {list(shape)}; pass logits [batch, height, width, "
            "num_classes]",
        )
        require(
            len(self.class_weights) in (0, shape[-1]),
            f"class_weights has {len(self.class_weights)} values; the logits have "
            f"{shape[-1]} classes",
        )

    def get_config(self) -> dict:
        """Returns the constructor arguments."""
        own = {
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            "share": self.share,
            "focal_gamma": self.focal_gamma,
        }
        return {**super().get_config(), **own}
