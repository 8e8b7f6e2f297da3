"""Sliding-window inference with blended overlaps."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.models.resampling import align_size

# Adjacent windows overlap by at least 1 / _OVERLAP of their side.
_OVERLAP = 3
_LEAST_WINDOW = 65
_MIB = 1 << 20
_TOO_SMALL = "the memory limit is too small for images of"


class MemoryBudget:
    """Chooses the window size that fits a memory limit.

    Args:
        limit: Memory limit per image, in bytes.
        in_window: Bytes needed per window pixel.
        in_rows: Bytes needed per pixel of a row of windows, as wide as the image.

    Raises:
        UserError: if the smallest window exceeds the limit.
    """

    def __init__(self, limit: float, in_window: float, in_rows: float):
        self._limit = float(limit)
        self._in_window, self._in_rows = in_window, in_rows
        least = (in_window + in_rows) * _LEAST_WINDOW**2
        if limit < least:
            raise UserError(
                f"a memory limit of {limit / _MIB:.0f} MiB is too small: this model "
                f"needs {math.ceil(least / _MIB)} MiB for the smallest window, "
                f"{_LEAST_WINDOW}x{_LEAST_WINDOW}"
            )

    def choose_window(self, height, width, stride: int):
        """Returns the height and width of the windows for an image, int32 scalars.

        Windows are padded to `k * stride + 1`, where `stride` is the model's output
        stride.
        """
        in_window, in_rows = self._in_window, self._in_rows
        padded = [tf.cast(align_size(x, stride), tf.float32) for x in (height, width)]
        fits = (in_window + in_rows) * padded[0] * padded[1] <= self._limit
        # Side of the largest square window: side^2 * in_window + side * width * in_rows
        # is the limit.
        half = in_rows * padded[1] / (2 * in_window)
        largest = tf.sqrt(half**2 + self._limit / in_window) - half
        check = tf.debugging.Assert(
            fits | (largest >= _LEAST_WINDOW), [_TOO_SMALL, height, width]
        )
        # Without this control dependency, a graph would start on thousands of tiny
        # windows before the assertion fails. The check is None in eager mode.
        with tf.control_dependencies([] if check is None else [check]):
            side = tf.maximum(tf.cast(largest, tf.int32), 1)
        side = align_size(side - stride + 1, stride)  # round down
        return (
            tf.where(fits, height, tf.minimum(side, height)),
            tf.where(fits, width, tf.minimum(side, width)),
        )


@contextlib.contextmanager
def translate_limit_errors() -> Iterator[None]:
    """Converts the error of a graph whose memory limit is too small to a UserError."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(rf"{_TOO_SMALL}\D+(\d+)\D+(\d+)", error.message)
        if not found:
            raise
        height, width = found.groups()
        raise UserError(
            f"{_TOO_SMALL} {width}x{height} pixels; raise it or use smaller images"
        ) from error


def window_starts(side, window):
    """Returns the start of each window along a side, int32 `[windows]`.

    Windows are evenly spaced, as few as possible with an overlap of at least a third.
    Lengths are in pixels; a window is at most as long as the side.
    """
    step = tf.maximum(window - window // _OVERLAP, 1)
    last = -(-(side - window) // step)
    return tf.range(last + 1) * (side - window) // tf.maximum(last, 1)


def slide_window(score: Callable, shape: Sequence, window: Sequence, finish: Callable):
    """Scores an image in overlapping windows and blends the scores.

    Overlaps are weighted averages: the farther a pixel is from the border of a window,
    the larger its weight. Only rows that overlap the next windows are kept in memory.

    Args:
        score: Maps the top and left of a window to its scores.
        shape: Shape of all scores: batch, height, width, number of classes.
        window: Height and width of the windows.
        finish: Pointwise function to apply to the blended scores.
    """
    batch, _, width, classes = shape
    rows, columns = window

    def score_rows(top):
        row_shape = (batch, rows, width, classes)
        return _blend_windows(partial(score, top), row_shape, columns, 2, tf.identity)

    return _blend_windows(score_rows, shape, rows, 1, finish)


def _blend_windows(
    score: Callable, shape: Sequence, window, axis: int, finish: Callable
):
    """Blends the scores of windows along an axis (1 or 2) and applies `finish`.

    `score` takes the start of a window and returns scores of length `window` on the
    axis.
    """
    starts = window_starts(shape[axis], window)
    ends = tf.concat([starts[1:], [shape[axis]]], 0)
    # Add trailing axes to broadcast over the scores.
    ramp = tf.reshape(_make_ramp(window, tf.size(starts)), [-1, *(3 - axis) * [1]])

    def blend_next(i, scores, weights, pieces):
        missing = window - tf.shape(weights)[0]
        scores = _append_zeros(scores, axis, missing) + ramp * score(starts[i])
        weights = _append_zeros(weights, 0, missing) + ramp
        done = ends[i] - starts[i]
        piece = finish(_slice_axis(scores, axis, 0, done) / weights[:done])
        pieces = pieces.write(i, _swap_with_first_axis(piece, axis))
        return i + 1, _slice_axis(scores, axis, done, window), weights[done:], pieces

    nothing = tf.zeros([0 if i == axis else side for i, side in enumerate(shape)])
    some = tf.TensorShape([None, None, None, shape[-1]])
    result = finish(tf.zeros([1, 1, 1, shape[-1]]))
    pieces = tf.TensorArray(
        result.dtype,
        tf.size(starts),
        infer_shape=False,
        element_shape=[None, None, None, *result.shape[3:]],
    )
    *_, pieces = tf.while_loop(
        lambda i, *_: i < tf.size(starts),
        blend_next,
        (0, nothing, ramp[:0], pieces),
        (tf.TensorShape([]), some, tf.TensorShape([None, *ramp.shape[1:]]), None),
        parallel_iterations=1,  # limits memory
    )
    return _swap_with_first_axis(pieces.concat(), axis)


def _make_ramp(window, count):
    """Returns the blending weights along a side of a window, `[window]`."""
    place = tf.range(window)
    ramp = tf.cast(tf.minimum(place + 1, window - place), tf.float32)
    # Keeps the scores of a single window bit-identical.
    return tf.where(count > 1, ramp, tf.ones_like(ramp))


def _append_zeros(x, axis: int, missing):
    return tf.pad(x, [[0, missing if i == axis else 0] for i in range(len(x.shape))])


def _slice_axis(x, axis: int, begin, end):
    return x[:, begin:end] if axis == 1 else x[:, :, begin:end]


def _swap_with_first_axis(x, axis: int):
    order = list(range(len(x.shape)))
    order[0], order[axis] = axis, 0
    return tf.transpose(x, order)


def pack_results(results: Sequence[tf.Tensor]) -> tf.Tensor:
    """Joins results of pixels, with or without channels, to one tensor of channels."""
    if len(results) == 1:
        return results[0]
    channels = [x if len(x.shape) == 4 else x[..., None] for x in results]
    return tf.concat([tf.cast(x, tf.float32) for x in channels], -1)


def unpack_results(packed: tf.Tensor, samples: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Reverses `pack_results`; `samples` have the channels and types of the results."""
    if len(samples) == 1:
        return [packed]
    has_channels = [len(x.shape) == 4 for x in samples]
    pairs = zip(samples, has_channels, strict=True)
    parts = tf.split(packed, [x.shape[-1] if has else 1 for x, has in pairs], -1)
    return [
        tf.cast(part if has else part[..., 0], sample.dtype)
        for part, sample, has in zip(parts, samples, has_channels, strict=True)
    ]
