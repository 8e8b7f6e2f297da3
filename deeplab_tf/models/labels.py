"""Converts label maps and predictions to class ids, and checks them."""

import functools
import sys
from typing import Any

import keras
import numpy as np
from keras import ops

from deeplab_tf.config.checks import require
from deeplab_tf.data.info import is_scored
from deeplab_tf.errors import UserError
from deeplab_tf.models.tensors import Tensor

_IDS = "class ids [batch, height, width] or [batch, height, width, 1]"


def read_labels(
    labels: Tensor, num_classes: int, ignore_label: int
) -> tuple[Tensor, Tensor]:
    """Returns labels as class ids, and a mask of the invalid ones.

    TensorFlow code compiled with XLA cannot raise an error; use the mask to make its
    results NaN.

    Args:
        labels: Class ids `[batch, height, width]` or `[batch, height, width, 1]`, or
            one-hot labels `[batch, height, width, num_classes]`, where a pixel of zeros
            is ignored.
        num_classes: Number of classes.
        ignore_label: Label of pixels to ignore.

    Returns:
        Class ids, int32, and booleans, both `[batch, height, width]`.

    Raises:
        UserError: if the shape is invalid or, in eager mode, a pixel is neither a class
            nor ignored. For such a pixel, a TensorFlow graph raises
            `InvalidArgumentError`, and a function compiled by JAX a runtime error.
    """
    labels = ops.convert_to_tensor(labels)
    shape = tuple(labels.shape)
    if _has_channels(shape, num_classes):
        ids, invalid = _read_one_hot(labels, ignore_label)
        after = f"which is neither one-hot ({num_classes} classes) nor all 0 (ignored)"
        _require_valid(invalid, labels, "labels have the pixel", after)
        return ids, invalid
    require(
        _has_ids(shape),
        f"labels have the shape {list(shape)}; pass {_IDS}, or one-hot labels [batch, "
        f"height, width, {num_classes}]",
    )
    ids, invalid, labels = _read_ids(labels)
    invalid |= (ids != ignore_label) & ~is_scored(ids, num_classes, ignore_label)
    after = (
        f"which is neither a class (0..{num_classes - 1}) nor ignored (ignore_label="
        f"{ignore_label}); map it to a class or pass it as ignore_label"
    )
    _require_valid(invalid, labels, "labels contain", after)
    return ids, invalid


def read_predictions(predictions: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns predictions as class ids, and a mask of the invalid ones.

    Args:
        predictions: Scores `[batch, height, width, num_classes]`, logits or
            probabilities, or class ids `[batch, height, width]` or
            `[batch, height, width, 1]`.
        num_classes: Number of classes.

    Returns:
        See `read_labels`.

    Raises:
        UserError: if the shape is invalid, or a prediction is not a class; see
            `read_labels`.
    """
    predictions = ops.convert_to_tensor(predictions)
    shape = tuple(predictions.shape)
    if _has_channels(shape, num_classes):
        ids = ops.cast(ops.argmax(predictions, axis=-1), "int32")
        return ids, ops.zeros_like(ids, dtype="bool")
    require(
        _has_ids(shape),
        f"predictions have the shape {list(shape)}; pass {_IDS}, or scores [batch, "
        f"height, width, {num_classes}]",
    )
    ids, invalid, predictions = _read_ids(predictions)
    invalid |= (ids < 0) | (ids >= num_classes)
    after = (
        f"which is not a class (0..{num_classes - 1}); pass class ids or class scores"
    )
    _require_valid(invalid, predictions, "predictions contain", after)
    return ids, invalid


def expand_sample_weight(sample_weight: Tensor | None) -> Tensor | None:
    """Reshapes weights to broadcast with `[batch, height, width]`.

    Args:
        sample_weight: A scalar; one weight per image, `[batch]` or `[batch, 1]`; or one
            per pixel, `[batch, height, width]` or `[batch, height, width, 1]`. Axes of
            length 1 are repeated.

    Raises:
        UserError: if the shape is invalid.
    """
    if sample_weight is None:
        return None
    sample_weight = ops.convert_to_tensor(sample_weight)
    shape = tuple(sample_weight.shape)
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        return ops.reshape(sample_weight, (-1, 1, 1))
    require(
        shape == () or _has_ids(shape),
        f"sample_weight has the shape {list(shape)}; pass one weight per image, "
        "[batch], or per pixel, [batch, height, width]",
    )
    return ops.squeeze(sample_weight, -1) if len(shape) == 4 else sample_weight


def _has_channels(shape: tuple, num_classes: int) -> bool:
    """Returns whether a tensor has one channel per class instead of class ids."""
    return len(shape) == 4 and shape[3] == num_classes > 1


def _has_ids(shape: tuple) -> bool:
    """Returns whether a tensor has one value per pixel."""
    return len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)


def _read_ids(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns int32 ids, a mask of values that are not, and `x` without channel."""
    x = x if len(x.shape) == 3 else ops.squeeze(x, -1)
    ids = ops.cast(x, "int32")
    return ids, ops.cast(ids, x.dtype) != x, x


def _read_one_hot(labels: Tensor, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Returns class ids, ignored where all channels are 0, and a mask of errors."""
    is_one = ops.cast(ops.equal(labels, 1), "int32")
    ones = ops.sum(is_one, -1)
    nonzero = ops.sum(ops.cast(ops.not_equal(labels, 0), "int32"), -1)
    ids = ops.cast(ops.argmax(is_one, axis=-1), "int32")
    ids = ops.where(nonzero == 0, ignore_label, ids)
    return ids, (nonzero > 1) | (nonzero != ones)


def _require_valid(invalid: Tensor, values: Tensor, before: str, after: str) -> None:
    """Raises an error about the first invalid pixel, now or when the graph runs.

    `invalid` is a mask `[batch, height, width]`. The message quotes the pixel from
    `values`, `[batch, height, width]` or `[..., channels]`, between `before` and
    `after`.
    """
    invalid = ops.reshape(invalid, (-1,))
    values = ops.reshape(values, (-1, *values.shape[3:]))
    is_any = ops.any(invalid)

    def find_first() -> Tensor:
        # Indexing with brackets makes XLA compile the labels as constants.
        return ops.take(values, ops.argmax(ops.cast(invalid, "int32")), axis=0)

    # A replica's part of a batch may be empty.
    nothing = ops.zeros(values.shape[1:], values.dtype)
    first = ops.cond(is_any, find_first, lambda: nothing)

    def fail(is_invalid: Any, value: Any) -> None:
        if is_invalid:
            text = ", ".join(f"{x:g}" for x in np.ravel(value).astype(float))
            raise UserError(f"{before} {f'[{text}]' if value.ndim else text}, {after}")

    backend = keras.backend.backend()
    # Keras has imported it; models run where TensorFlow is absent.
    framework = sys.modules[backend]
    if backend == "tensorflow" and not framework.executing_eagerly():
        # XLA leaves it out.
        framework.debugging.Assert(ops.logical_not(is_any), [before, first, after])
    elif backend == "jax" and isinstance(is_any, framework.core.Tracer):
        report = functools.partial(framework.debug.callback, fail)
        framework.lax.cond(is_any, report, lambda *_: None, is_any, first)
    else:
        fail(ops.convert_to_numpy(is_any), ops.convert_to_numpy(first))
