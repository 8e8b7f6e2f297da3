"""Images through windows that overlap, where what the windows see is blended."""

from collections.abc import Callable, Sequence

import tensorflow as tf

# Windows share at least one part in so many of their side with the next one.
_OVERLAP = 3


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


def blended(see: Callable, shape: Sequence, window, axis: int, finish: Callable):
    """Returns what windows along an axis see, put together and finished.

    Where windows overlap, their scores are averaged, each weighing more the farther
    a pixel is from the window's ends. Only what the next window overlaps is kept.

    Args:
        see: Function of a window's start; returns scores, `window` long on the axis.
        shape: Of all scores: batch, height, width and number of classes.
        window: Pixels of a window on the axis.
        axis: 1 or 2.
        finish: What to make of blended scores, pixel by pixel.
    """
    starts = window_starts(shape[axis], window)
    ends = tf.concat([starts[1:], [shape[axis]]], 0)
    ramp = _ramp(window, tf.size(starts))
    # Behind the axis of a window, for weights to fit.
    ramp = tf.reshape(ramp, [-1, *(4 - axis - 1) * [1]])

    def one(i, scores, weights, pieces):
        missing = window - tf.shape(weights)[0]
        scores = _extended(scores, axis, missing) + ramp * see(starts[i])
        weights = _extended(weights, 0, missing) + ramp
        done = ends[i] - starts[i]
        piece = finish(_part(scores, axis, 0, done) / weights[:done])
        pieces = pieces.write(i, _exchanged(piece, axis))
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
    return _exchanged(pieces.concat(), axis)


def _ramp(window, count):
    """Returns the weights of a window's pixels along a side, `[window]`."""
    place = tf.range(window)
    ramp = tf.cast(tf.minimum(place + 1, window - place), tf.float32)
    # What a single window sees is left as it is, to the last bit.
    return tf.where(count > 1, ramp, tf.ones_like(ramp))


def _extended(x, axis: int, missing):
    """Returns a tensor with zeros behind it."""
    return tf.pad(x, [[0, missing if i == axis else 0] for i in range(len(x.shape))])


def _part(x, axis: int, begin, end):
    return x[:, begin:end] if axis == 1 else x[:, :, begin:end]


def _exchanged(x, axis: int):
    """Returns a tensor whose first axis and another have changed places."""
    order = list(range(len(x.shape)))
    order[0], order[axis] = axis, 0
    return tf.transpose(x, order)
