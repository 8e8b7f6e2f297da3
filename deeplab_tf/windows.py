"""Sliding-window inference with blended overlaps."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.models.resampling import align_size

# Windows share at least one part in so many of their side with the next one.
_OVERLAP = 3
_LEAST_WINDOW = 65
_MIB = 1 << 20
_TOO_SMALL = "the memory limit is too small for images of"


class Budget:
    """How large windows may be for the memory that there is.

    Args:
        limit: Bytes that an image may take.
        in_window: Bytes that a pixel of a window takes.
        in_rows: Bytes that a pixel of the rows of a window takes, at the image's width.

    Raises:
        UserError: if not even the smallest window stays below the limit.
    """

    def __init__(self, limit: int, in_window: float, in_rows: float):
        self._limit = float(limit)
        self._in_window, self._in_rows = in_window, in_rows
        least = (in_window + in_rows) * _LEAST_WINDOW**2
        if limit < least:
            raise UserError(
                f"a memory limit of {limit / _MIB:.0f} MiB is too small: this model "
                f"needs {math.ceil(least / _MIB)} MiB for the smallest window, "
                f"{_LEAST_WINDOW}x{_LEAST_WINDOW}"
            )

    def window(self, height, width, stride: int):
        """Returns height and width of the windows for an image, int32 scalars.

        Args:
            height: Pixels of the image, as it comes.
            width: Likewise.
            stride: The model's output stride; what it sees is `k * stride + 1`.
        """
        in_window, in_rows = self._in_window, self._in_rows
        seen = [tf.cast(align_size(x, stride), tf.float32) for x in (height, width)]
        fits = (in_window + in_rows) * seen[0] * seen[1] <= self._limit
        # The side of which a square window takes all of the limit.
        half = in_rows * seen[1] / (2 * in_window)
        largest = tf.sqrt(half**2 + self._limit / in_window) - half
        check = tf.debugging.Assert(
            fits | (largest >= _LEAST_WINDOW), [_TOO_SMALL, height, width]
        )
        # In a graph the rest would not wait, and begin with thousands of windows.
        # Outside of one there is no operation.
        with tf.control_dependencies([] if check is None else [check]):
            side = tf.maximum(tf.cast(largest, tf.int32), 1)
        side = align_size(side - stride + 1, stride)  # the one before
        return (
            tf.where(fits, height, tf.minimum(side, height)),
            tf.where(fits, width, tf.minimum(side, width)),
        )


@contextlib.contextmanager
def readable_limits() -> Iterator[None]:
    """Reports in one line that a memory limit is too small for some images.

    Raises:
        UserError: instead of what the graph raises.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(rf"{_TOO_SMALL}\D+(\d+)\D+(\d+)", error.message)
        if not found:
            raise
        height, width = found.groups()
        raise UserError(f"{_TOO_SMALL} {width}x{height} pixels") from error


def window_starts(side, window):
    """Returns where windows along a side begin, int32 `[windows]`.

    They are spread evenly, as few as overlap by a third of a window or more.

    Args:
        side: Pixels of the side.
        window: Pixels of a window, at most those of the side.
    """
    step = tf.maximum(window - window // _OVERLAP, 1)
    last = -(-(side - window) // step)
    return tf.range(last + 1) * (side - window) // tf.maximum(last, 1)


def slide_window(score: Callable, shape: Sequence, window: Sequence, finish: Callable):
    """Scores an image in overlapping windows, and returns the blended scores finished.

    Where windows overlap, their scores are averaged, each weighing more the farther
    a pixel is from the window's ends. Only the rows that the next window overlaps are
    kept.

    Args:
        score: Function of a window's top and left; returns its scores.
        shape: Of all scores: batch, height, width and number of classes.
        window: Height and width of the windows.
        finish: Function of blended scores, pixel by pixel.
    """
    batch, _, width, classes = shape
    rows, columns = window

    def score_rows(top):
        row_shape = (batch, rows, width, classes)
        return _blend(partial(score, top), row_shape, columns, 2, tf.identity)

    return _blend(score_rows, shape, rows, 1, finish)


def _blend(score: Callable, shape: Sequence, window, axis: int, finish: Callable):
    """Blends the scores of windows along an axis, and returns them finished.

    Args:
        score: Function of a window's start; returns scores, `window` long on the axis.
        shape: Of all scores: batch, height, width and number of classes.
        window: Pixels of a window on the axis.
        axis: 1 or 2.
        finish: Function of blended scores, pixel by pixel.
    """
    starts = window_starts(shape[axis], window)
    ends = tf.concat([starts[1:], [shape[axis]]], 0)
    # With trailing axes, to broadcast over scores.
    ramp = tf.reshape(_ramp(window, tf.size(starts)), [-1, *(3 - axis) * [1]])

    def one(i, scores, weights, pieces):
        missing = window - tf.shape(weights)[0]
        scores = _extend(scores, axis, missing) + ramp * score(starts[i])
        weights = _extend(weights, 0, missing) + ramp
        done = ends[i] - starts[i]
        piece = finish(_part(scores, axis, 0, done) / weights[:done])
        pieces = pieces.write(i, _swap_axes(piece, axis))
        return i + 1, _part(scores, axis, done, window), weights[done:], pieces

    nothing = tf.zeros([0 if i == axis else side for i, side in enumerate(shape)])
    some = tf.TensorShape([None, None, None, shape[-1]])
    kind = finish(tf.zeros([1, 1, 1, shape[-1]]))
    pieces = tf.TensorArray(
        kind.dtype,
        tf.size(starts),
        infer_shape=False,
        element_shape=[None, None, None, *kind.shape[3:]],
    )
    *_, pieces = tf.while_loop(
        lambda i, *_: i < tf.size(starts),
        one,
        (0, nothing, ramp[:0], pieces),
        (tf.TensorShape([]), some, tf.TensorShape([None, *ramp.shape[1:]]), None),
        parallel_iterations=1,  # more would be in memory at once
    )
    return _swap_axes(pieces.concat(), axis)


def _ramp(window, count):
    """Returns the weights of a window's pixels along a side, `[window]`."""
    place = tf.range(window)
    ramp = tf.cast(tf.minimum(place + 1, window - place), tf.float32)
    # The scores of a single window stay bit-identical.
    return tf.where(count > 1, ramp, tf.ones_like(ramp))


def _extend(x, axis: int, missing):
    """Returns a tensor with zeros appended on an axis."""
    return tf.pad(x, [[0, missing if i == axis else 0] for i in range(len(x.shape))])


def _part(x, axis: int, begin, end):
    return x[:, begin:end] if axis == 1 else x[:, :, begin:end]


def _swap_axes(x, axis: int):
    """Returns a tensor whose first axis and another are swapped."""
    order = list(range(len(x.shape)))
    order[0], order[axis] = axis, 0
    return tf.transpose(x, order)
