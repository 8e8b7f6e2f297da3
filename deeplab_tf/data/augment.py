"""Scale, pad, crop and flip one sample, in the official order and arithmetic."""

import numpy as np
import tensorflow as tf


def resize_image(image, size):
    """Returns float32 `image` resized bilinearly, corners aligned (TF1)."""
    return tf.raw_ops.ResizeBilinear(
        images=tf.expand_dims(image, 0), size=size, align_corners=True
    )[0]


def resize_label(label, size):
    """Returns `label` resized to nearest neighbours, corners aligned (TF1)."""
    return tf.raw_ops.ResizeNearestNeighbor(
        images=tf.expand_dims(label, 0), size=size, align_corners=True
    )[0]


def _resize(image, label, size):
    return resize_image(image, size), resize_label(label, size)


def resize_to_range(image, label, min_size, max_size=None, factor=None):
    """Returns a sample whose shorter side is `min_size`, the longer bounded.

    Args:
        image: float32 `[height, width, 3]`.
        label: uint8 `[height, width, 1]`.
        min_size: Shorter side, in pixels.
        max_size: Bound of the longer side; the aspect ratio is kept.
        factor: Sides are raised to the next multiple of it, plus 1.
    """
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    size = tf.floor(sides * (min_size / tf.reduce_min(sides)))
    if max_size is not None:
        if factor is not None:
            max_size -= (max_size - 1) % factor
        bounded = tf.floor(sides * (max_size / tf.reduce_max(sides)))
        size = tf.where(tf.reduce_max(size) > max_size, bounded, size)
    size = tf.cast(size, tf.int32)
    if factor is not None:
        size += (factor - (size - 1) % factor) % factor
    return _resize(image, label, size)


def random_scale(image, label, seed, smallest, largest, step):
    """Returns a sample at a random scale.

    Args:
        image: float32 `[height, width, 3]`.
        label: uint8 `[height, width, 1]`.
        seed: Two integers.
        smallest: Smallest scale.
        largest: Largest scale.
        step: Distance of the scales to pick from, which end in `largest`; 0 is
            continuous.
    """
    if smallest == largest:
        scale = tf.constant(smallest, tf.float32)
    elif step == 0:
        scale = tf.random.stateless_uniform([], seed, smallest, largest)
    else:
        # As the official code spaces them, also where `step` does not divide.
        count = int((largest - smallest) / step + 1 + 1e-6)  # 0.7 / 0.1 is below 7
        scales = tf.cast(np.linspace(smallest, largest, count), tf.float32)
        scale = scales[tf.random.stateless_uniform([], seed, 0, count, tf.int32)]
    size = tf.cast(tf.cast(tf.shape(image)[:2], tf.float32) * scale, tf.int32)
    return _resize(image, label, tf.maximum(size, 1))


def pad_to(image, label, size, mean_pixel, ignore_label):
    """Returns a sample of at least `size`, padded at the bottom and the right.

    Args:
        image: float32 `[height, width, 3]`.
        label: uint8 `[height, width, 1]`.
        size: Least height and width.
        mean_pixel: RGB value of the padding.
        ignore_label: Label of the padding.
    """
    missing = tf.maximum(tf.constant(size) - tf.shape(image)[:2], 0)
    paddings = [[0, missing[0]], [0, missing[1]], [0, 0]]
    mean_pixel = tf.constant(mean_pixel, tf.float32)
    image = tf.pad(image - mean_pixel, paddings) + mean_pixel
    label = tf.pad(label, paddings, constant_values=ignore_label)
    return image, label


def random_crop(image, label, size, seed):
    """Returns the same random window of image and label."""
    room = tf.shape(image)[:2] - tf.constant(size)
    offset = tf.random.stateless_uniform([2], seed, maxval=1.0)
    offset = tf.cast(offset * tf.cast(room + 1, tf.float32), tf.int32)
    offset = tf.minimum(offset, room)

    def crop(x):
        x = tf.slice(x, [offset[0], offset[1], 0], [*size, -1])
        return tf.ensure_shape(x, [*size, x.shape[-1]])

    return crop(image), crop(label)


def random_flip(image, label, seed):
    """Returns the sample mirrored left to right in half of all cases."""
    mirror = tf.random.stateless_uniform([], seed) <= 0.5
    flipped = tf.reverse(image, [1]), tf.reverse(label, [1])
    return tf.cond(mirror, lambda: flipped, lambda: (image, label))
