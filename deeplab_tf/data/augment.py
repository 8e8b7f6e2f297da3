"""Randomly scales, pads, crops and flips training samples, like the official code.

The crop is chosen first, so that only the pixels inside it are decoded and scaled. The
result equals that of the official order: scale, pad, crop, flip.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf.images.resizing import resize_bilinear, resize_nearest


def resize_image(image, size):
    """Returns a float32 image resized bilinearly with aligned corners."""
    return resize_bilinear(tf.expand_dims(image, 0), size)[0]


def resize_label(label, size):
    """Returns a label resized by nearest neighbour with aligned corners."""
    return resize_nearest(tf.expand_dims(label, 0), size)[0]


def resize_to_range(image, label, min_size, max_size=None, factor=None):
    """Resizes an image `[height, width, channels]` and label; see `size_in_range`."""
    size = size_in_range(tf.shape(image)[:2], min_size, max_size, factor)
    return resize_image(image, size), resize_label(label, size)


def size_in_range(sides, min_size, max_size=None, factor=None):
    """Returns the height and width of a resized image, int32 `[2]`.

    The shorter side becomes `min_size`, or less if the longer side would otherwise
    exceed `max_size`. The aspect ratio is kept, but with a `factor`, both sides are
    rounded up to `k * factor + 1`.
    """
    sides = tf.cast(sides, tf.float32)
    size = tf.floor(sides * (min_size / tf.reduce_min(sides)))
    if max_size is not None:
        if factor is not None:
            max_size -= (max_size - 1) % factor
        bounded = tf.floor(sides * (max_size / tf.reduce_max(sides)))
        size = tf.where(tf.reduce_max(size) > max_size, bounded, size)
    size = tf.cast(size, tf.int32)
    if factor is not None:
        size += (factor - (size - 1) % factor) % factor
    return size


class RandomCrop(NamedTuple):
    """The random parameters of a crop, independent of the image size.

    Attributes:
        scale: Factor by which the image is scaled, float32.
        position: Vertical and horizontal offset of the crop as a fraction, 0..1, of the
            largest possible offset, float32 `[2]`.
        flipped: Whether the crop is flipped left to right, bool.
    """

    scale: tf.Tensor
    position: tf.Tensor
    flipped: tf.Tensor


def draw_crop(uniform, smallest, largest, step) -> RandomCrop:
    """Returns a random crop from four random numbers, uniform in 0..1.

    Scales lie between `smallest` and `largest`, `step` apart; a `step` of 0 allows any
    scale in that range. Half of the crops are flipped.
    """
    uniform = tf.unstack(uniform)
    if smallest == largest:
        scale = tf.constant(smallest, tf.float32)
    elif step == 0:
        scale = smallest + (largest - smallest) * uniform[0]
    else:
        # Number and spacing are those of the official code, even if the division is
        # inexact: 0.5 to 1.2 by 0.1 gives 7 scales, because 0.7 / 0.1 is below 7.
        count = int((largest - smallest) / step + 1)
        scales = tf.cast(np.linspace(smallest, largest, count), tf.float32)
        chosen = tf.minimum(tf.cast(uniform[0] * count, tf.int32), count - 1)
        scale = tf.gather(scales, chosen)
    return RandomCrop(scale, tf.stack(uniform[1:3]), uniform[3] < 0.5)


class Window(NamedTuple):
    """Maps the pixels of a crop to those of the original image.

    A crop that is larger than the scaled image is padded at the bottom and the right.

    Attributes:
        first_row: First image row that the crop needs, a scalar.
        row_count: Number of image rows that the crop needs, a scalar.
        scaled: Height and width of the scaled image, two scalars.
        left: First column of the crop in the scaled image, a scalar.
        flipped: Whether the crop is flipped left to right, a bool scalar.
        row: Image row at or above each unpadded row of the crop, int32.
        row_weight: Interpolation weight of the row below, float32.
        column: Image column at or to the left of each unpadded column, int32.
        column_weight: Interpolation weight of the column to the right, float32.
    """

    first_row: tf.Tensor
    row_count: tf.Tensor
    scaled: tuple[tf.Tensor, tf.Tensor]
    left: tf.Tensor
    flipped: tf.Tensor
    row: tf.Tensor
    row_weight: tf.Tensor
    column: tf.Tensor
    column_weight: tf.Tensor


def crop_window(crop: RandomCrop, source, size) -> Window:
    """Returns the window of a crop of `size` in an image of size `source`."""
    scaled = tf.cast(tf.cast(source, tf.float32) * crop.scale, tf.int32)
    scaled = tf.maximum(scaled, 1)
    room = tf.maximum(scaled - tf.constant(size), 0)
    offset = tf.cast(crop.position * tf.cast(room + 1, tf.float32), tf.int32)
    offset = tf.minimum(offset, room)
    end = tf.minimum(offset + tf.constant(size), scaled)
    # In float32 and with a single multiplication, exactly as TF1 resizes.
    last = tf.cast(source - 1, tf.float32)
    ratio = last / tf.cast(tf.maximum(scaled - 1, 1), tf.float32)
    axes = zip(*(tf.unstack(x) for x in (offset, end, ratio, last)), strict=True)
    (row, row_weight), (column, column_weight) = (
        _find_neighbours(*axis) for axis in axes
    )
    # The last row is interpolated with the one below it.
    first, last_row = tf.reduce_min(row), tf.reduce_max(row)
    count = tf.minimum(last_row + 2, source[0]) - first
    return Window(
        first,
        count,
        tuple(tf.unstack(scaled)),
        offset[1],
        crop.flipped,
        *(row, row_weight, column, column_weight),
    )


def _find_neighbours(begin, end, ratio, last):
    """Returns the pixel before each crop position and the weight of the next pixel."""
    position = tf.cast(tf.range(begin, end), tf.float32) * ratio
    # Rounding may move the last position beyond the last pixel.
    position = tf.minimum(position, last)
    before = tf.floor(position)
    return tf.cast(before, tf.int32), position - before


def crop_image(rows, window: Window, size, mean_pixel):
    """Returns a crop of a scaled and padded image, float32 `[*size, channels]`.

    `rows` holds the image rows of the window, `[rows, width, channels]`.
    """
    height, width = size
    channels = rows.shape[-1]
    mean_pixel = tf.constant(mean_pixel, tf.float32)
    scaled_height, scaled_width = window.scaled
    # The resize op cannot start at an offset, so it resizes complete rows. It resizes
    # along the height only if all rows are in the crop.
    has_all_rows = scaled_height <= height
    count = tf.where(has_all_rows, scaled_height, window.row_count)
    x = resize_image(tf.cast(rows, tf.float32), [count, scaled_width])
    visible = [-1, tf.size(window.column), -1]
    x = tf.slice(x, [0, window.left, 0], visible)
    x = tf.cond(window.flipped, lambda: tf.reverse(x, [1]), lambda: x)
    x = tf.cond(
        scaled_width < width,
        lambda: _pad_columns(x, width, mean_pixel, window.flipped),
        lambda: x,
    )
    # Flat rows are copied and broadcast much faster than pixels.
    x = tf.reshape(x, [count, width * channels])

    def pad_rows():
        line = tf.tile(mean_pixel, [width])
        return tf.concat([x, tf.tile(line[None], [height - count, 1])], 0)

    def interpolate_rows():
        before = window.row - window.first_row
        upper = tf.gather(x, before)
        lower = tf.gather(x, tf.minimum(before + 1, count - 1))
        return upper + (lower - upper) * window.row_weight[:, None]

    return tf.reshape(
        tf.cond(has_all_rows, pad_rows, interpolate_rows), [height, width, channels]
    )


def _pad_columns(x, width, mean_pixel, flipped):
    """Pads `x` with mean pixels on the right, or on the left if flipped."""
    rows, columns, channels = tf.unstack(tf.shape(x))
    line = tf.tile(mean_pixel, [width - columns])
    beyond = tf.broadcast_to(line, [rows, tf.size(line)])
    x = tf.reshape(x, [rows, columns * channels])
    x = tf.cond(
        flipped, lambda: tf.concat([beyond, x], 1), lambda: tf.concat([x, beyond], 1)
    )
    return tf.reshape(x, [rows, width, channels])


def crop_label(label, window: Window, size, ignore_label):
    """Returns a crop of a scaled and padded label, uint8 `[*size, 1]`."""
    row = window.row - window.first_row + _round_weight(window.row_weight)
    column = window.column + _round_weight(window.column_weight)
    count = window.row_count
    rows = tf.slice(tf.squeeze(label, -1), [window.first_row, 0], [count, -1])
    # Positions outside the image point to one row and one column of padding.
    rows = tf.pad(rows, [[0, 1], [0, 1]], constant_values=ignore_label)
    column = _pad_vector(column, size[1], tf.shape(label)[1])
    column = tf.raw_ops.Reverse(tensor=column, dims=[window.flipped])
    # Gathering contiguous rows is much faster than gathering pixels.
    x = _transpose(tf.gather(_transpose(tf.cast(rows, tf.int32)), column))
    x = tf.gather(tf.cast(x, tf.uint8), _pad_vector(row, size[0], count))
    return tf.reshape(x, [*size, 1])


def _transpose(x):
    """Transposes a matrix."""
    # `tf.transpose` warns about uint8 on CPUs without AVX-512.
    return tf.einsum("ij->ji", x)


def _round_weight(weight):
    """Returns 1 where the next pixel is the nearest, else 0, int32."""
    return tf.cast(weight >= 0.5, tf.int32)


def _pad_vector(x, length, value):
    """Pads the vector `x` with `value` to `length`."""
    return tf.concat([x, tf.fill([length - tf.size(x)], value)], 0)


_GREY = (0.299, 0.587, 0.114)


def jitter_colors(image, uniform, strength):
    """Randomly changes brightness, contrast and saturation.

    Each factor is uniform in `1 - strength .. 1 + strength`, as in torchvision's
    ColorJitter. Saturation changes only in images with three channels.

    Args:
        image: Pixels 0..255, `[height, width, channels]`.
        uniform: Three random numbers, uniform in 0..1.
        strength: Largest relative change, 0..1.
    """
    factors = tf.unstack(1.0 + strength * (2.0 * uniform - 1.0))
    image = tf.cast(image, tf.float32) * factors[0]
    grey = image
    if image.shape[-1] == 3:
        grey = tf.reduce_sum(image * _GREY, -1, keepdims=True)
        image = grey + (image - grey) * factors[2]
    mean = tf.reduce_mean(grey)
    return tf.clip_by_value(mean + (image - mean) * factors[1], 0.0, 255.0)
