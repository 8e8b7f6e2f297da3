"""Resizing by TensorFlow's TF1 operations.

The official graph uses these operations, and on a CPU they are several times faster
than the matrix products of `models.resampling`. They do not exist in other backends,
and the gradient of the bilinear resize is not deterministic on a GPU.
"""

from collections.abc import Sequence

import tensorflow as tf


def resize_bilinear(
    images: tf.Tensor, size: tf.Tensor | Sequence, resizing: str = "align_corners"
) -> tf.Tensor:
    """Resizes `[batch, height, width, channels]` images bilinearly, to float32.

    For `resizing`, see `models.resampling.resize_bilinear`.
    """
    aligned = resizing == "align_corners"
    return tf.raw_ops.ResizeBilinear(
        images=images, size=size, align_corners=aligned, half_pixel_centers=not aligned
    )


def resize_nearest(labels: tf.Tensor, size: tf.Tensor | Sequence) -> tf.Tensor:
    """Resizes `[batch, height, width, channels]` labels by nearest neighbour.

    Corners are aligned.
    """
    return tf.raw_ops.ResizeNearestNeighbor(
        images=labels, size=size, align_corners=True
    )
