"""Scale, pad, crop and flip one sample, in the official order and arithmetic.

In training the crop is known before the image is scaled, so that only what it shows
is decoded and interpolated. Its pixels are those of scaling, padding and cropping one
after the other.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf.images.resizing import resize_bilinear, resize_nearest


def resize_image(image, size):
    """Returns float32 `image` resized bilinearly, corners aligned (TF1)."""
    return resize_bilinear(tf.expand_dims(image, 0), size)[0]


def resize_label(label, size):
    """Returns `label` resized to nearest neighbours, corners aligned (TF1)."""
    return resize_nearest(tf.expand_dims(label, 0), size)[0]


def resize_to_range(image, label, min_size, max_size=None, factor=None):
    """Returns a sample whose shorter side is `min_size`, the longer bounded.

    Args:
        image: `[height, width, channels]`.
        label: uint8 `[height, width, 1]`.
        min_size: Shorter side, in pixels.
        max_size: Bound of the longer side; the aspect ratio is kept.
        factor: Sides are raised to the next multiple of it, plus 1.

    Returns:
        float32 image and uint8 label.
    """
    size = size_in_range(tf.shape(image)[:2], min_size, max_size, factor)
    return resize_image(image, size), resize_label(label, size)


def size_in_range(sides, min_size, max_size=None, factor=None):
    """Returns the size to which `resize_to_range` resizes, int32 `[2]`.

    Args:
        sides: Height and width of the image, `[2]`.
        min_size: As in `resize_to_range`, and so are the others.
        max_size: Bound of the longer side.
        factor: What sides are raised to a multiple of, plus 1.
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
    """What chance says of a crop, before the size of the image is known.

    Attributes:
        scale: Factor of the sides of the image, a float32 scalar.
        position: Where the crop is, as shares of the room for it, float32 `[2]`.
        flipped: Whether it is flipped left to right, a bool scalar.
    """

    scale: tf.Tensor
    position: tf.Tensor
    flipped: tf.Tensor


def draw_crop(chance, smallest, largest, step) -> RandomCrop:
    """Returns a random scale and position, and a mirroring in half of all cases.

    Args:
        chance: Four numbers, uniform in 0..1.
        smallest: Smallest scale.
        largest: Largest scale.
        step: Distance of the scales to pick from, which end in `largest`; 0 is
            continuous.
    """
    chance = tf.unstack(chance)
    if smallest == largest:
        scale = tf.constant(smallest, tf.float32)
    elif step == 0:
        scale = smallest + (largest - smallest) * chance[0]
    else:
        # As the official code spaces them, also where `step` does not divide.
        count = int((largest - smallest) / step + 1 + 1e-6)  # 0.7 / 0.1 is below 7
        scales = tf.cast(np.linspace(smallest, largest, count), tf.float32)
        chosen = tf.minimum(tf.cast(chance[0] * count, tf.int32), count - 1)
        scale = tf.gather(scales, chosen)
    return RandomCrop(scale, tf.stack(chance[1:3]), chance[3] < 0.5)


class Window(NamedTuple):
    """A crop of a scaled image, before any pixel is known.

    What lies beyond the scaled image, at the bottom and the right, is padding.

    Attributes:
        first_row: First row of the image that the crop shows, a scalar.
        row_count: Number of rows that it shows, a scalar.
        scaled: Height and width of the scaled image, two scalars.
        left: First column of the crop in the scaled image, a scalar.
        flipped: Whether the crop is flipped left to right, a bool scalar.
        row: Of each visible row of the crop, the one of the image before it, int32.
        row_share: How far it is on the way to the next, float32.
        column: As `row`, of the columns.
        column_share: As `row_share`.
    """

    first_row: tf.Tensor
    row_count: tf.Tensor
    scaled: tuple[tf.Tensor, tf.Tensor]
    left: tf.Tensor
    flipped: tf.Tensor
    row: tf.Tensor
    row_share: tf.Tensor
    column: tf.Tensor
    column_share: tf.Tensor


def crop_window(draw: RandomCrop, source, size) -> Window:
    """Returns the crop that a draw means in an image of a size.

    Args:
        draw: What chance says.
        source: Height and width of the image, int32 `[2]`.
        size: Height and width of the crop.
    """
    scaled = tf.cast(tf.cast(source, tf.float32) * draw.scale, tf.int32)
    scaled = tf.maximum(scaled, 1)
    room = tf.maximum(scaled - tf.constant(size), 0)
    offset = tf.cast(draw.position * tf.cast(room + 1, tf.float32), tf.int32)
    offset = tf.minimum(offset, room)
    end = tf.minimum(offset + tf.constant(size), scaled)
    # In float32 and by one multiplication, as TF1's resize finds the neighbours.
    last = tf.cast(source - 1, tf.float32)
    ratio = last / tf.cast(tf.maximum(scaled - 1, 1), tf.float32)
    axes = zip(*(tf.unstack(x) for x in (offset, end, ratio, last)), strict=True)
    (row, row_share), (column, column_share) = (_neighbours(*axis) for axis in axes)
    # Up to the row behind the last, to which the last is interpolated.
    first, last_row = tf.reduce_min(row), tf.reduce_max(row)
    count = tf.minimum(last_row + 2, source[0]) - first
    return Window(
        first,
        count,
        tuple(tf.unstack(scaled)),
        offset[1],
        draw.flipped,
        *(row, row_share, column, column_share),
    )


def _neighbours(begin, end, ratio, last):
    """Returns the pixels before those of a crop, and the shares of the way on."""
    position = tf.cast(tf.range(begin, end), tf.float32) * ratio
    # Rounding may carry the last position beyond the last pixel.
    position = tf.minimum(position, last)
    before = tf.floor(position)
    return tf.cast(before, tf.int32), position - before


def crop_image(rows, window: Window, size, mean_pixel):
    """Returns the crop of a scaled and padded image.

    Args:
        rows: What the window shows of the image, `[rows, width, channels]`.
        window: The crop.
        size: Its height and width.
        mean_pixel: Value of each channel in the padding.

    Returns:
        float32 `[*size, channels]`.
    """
    height, width = size
    channels = rows.shape[-1]
    mean_pixel = tf.constant(mean_pixel, tf.float32)
    scaled_height, scaled_width = window.scaled
    # The resize knows no offset. It does the columns of whole rows, and the rows too
    # where all of them are in the crop.
    is_whole = scaled_height <= height
    count = tf.where(is_whole, scaled_height, window.row_count)
    x = resize_image(tf.cast(rows, tf.float32), [count, scaled_width])
    visible = [-1, tf.size(window.column), -1]
    x = tf.slice(x, [0, window.left, 0], visible)
    x = tf.cond(window.flipped, lambda: tf.reverse(x, [1]), lambda: x)
    x = tf.cond(
        scaled_width < width,
        lambda: _padded(x, width, mean_pixel, window.flipped),
        lambda: x,
    )
    # As lines of memory, which copy and broadcast fast; pixels do not.
    x = tf.reshape(x, [count, width * channels])

    def padded():
        line = tf.tile(mean_pixel, [width])
        return tf.concat([x, tf.tile(line[None], [height - count, 1])], 0)

    def interpolated():
        before = window.row - window.first_row
        upper = tf.gather(x, before)
        lower = tf.gather(x, tf.minimum(before + 1, count - 1))
        return upper + (lower - upper) * window.row_share[:, None]

    return tf.reshape(
        tf.cond(is_whole, padded, interpolated), [height, width, channels]
    )


def _padded(x, width, mean_pixel, flipped):
    """Returns `x` with mean pixels to its right, or to its left where flipped."""
    rows, columns, channels = tf.unstack(tf.shape(x))
    line = tf.tile(mean_pixel, [width - columns])
    beyond = tf.broadcast_to(line, [rows, tf.size(line)])
    x = tf.reshape(x, [rows, columns * channels])
    x = tf.cond(
        flipped, lambda: tf.concat([beyond, x], 1), lambda: tf.concat([x, beyond], 1)
    )
    return tf.reshape(x, [rows, width, channels])


def crop_label(label, window: Window, size, ignore_label):
    """Returns the crop of a scaled and padded label, uint8 `[*size, 1]`.

    Args:
        label: uint8 `[height, width, 1]`.
        window: The crop.
        size: Its height and width.
        ignore_label: Value of the padding.
    """
    row = window.row - window.first_row + _rounded(window.row_share)
    column = window.column + _rounded(window.column_share)
    count = window.row_count
    rows = tf.slice(tf.squeeze(label, -1), [window.first_row, 0], [count, -1])
    # One row and one column of padding, for the indices that point beyond.
    rows = tf.pad(rows, [[0, 1], [0, 1]], constant_values=ignore_label)
    column = _filled(column, size[1], tf.shape(label)[1])
    column = tf.raw_ops.Reverse(tensor=column, dims=[window.flipped])
    # Gathering whole lines of memory is fast, single pixels is not.
    x = _transposed(tf.gather(_transposed(tf.cast(rows, tf.int32)), column))
    x = tf.gather(tf.cast(x, tf.uint8), _filled(row, size[0], count))
    return tf.reshape(x, [*size, 1])


def _transposed(x):
    # TensorFlow complains of uint8 in a `tf.transpose` on CPUs without AVX-512.
    return tf.einsum("ij->ji", x)


def _rounded(share):
    return tf.cast(share >= 0.5, tf.int32)


def _filled(x, length, value):
    """Returns the vector `x`, `value` behind it up to a length."""
    return tf.concat([x, tf.fill([length - tf.size(x)], value)], 0)


# Photometric jitter.

_GREY = (0.299, 0.587, 0.114)


def jitter_colors(image, chance, strength):
    """Returns an image of other brightness, contrast and saturation.

    Each factor is uniform in `1 - strength .. 1 + strength`, as in torchvision's
    ColorJitter. Images of other than three channels have no saturation.

    Args:
        image: 0..255, `[height, width, channels]`.
        chance: Three numbers, uniform in 0..1.
        strength: 0..1.

    Returns:
        float32 0..255, of the same shape.
    """
    factors = tf.unstack(1.0 + strength * (2.0 * chance - 1.0))
    image = tf.cast(image, tf.float32) * factors[0]
    grey = image
    if image.shape[-1] == 3:
        grey = tf.reduce_sum(image * _GREY, -1, keepdims=True)
        image = grey + (image - grey) * factors[2]
    mean = tf.reduce_mean(grey)
    return tf.clip_by_value(mean + (image - mean) * factors[1], 0.0, 255.0)
