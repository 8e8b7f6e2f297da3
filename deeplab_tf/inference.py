"""Images of any size to probabilities and labels: pad, scale, flip, average, slide.

Evaluation, export and prediction all go through `Predictor`, so that they
cannot differ. The protocol is DeepLabv3's (1706.05587, Sec. 4): the mean of the
softmax probabilities over scales and mirrored images. An image that is too large for
the memory is seen through windows that overlap.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import at_image_scale
from deeplab_tf.models.memory import activation_bytes
from deeplab_tf.models.resampling import resize_bilinear, scale_dimension
from deeplab_tf.windows import blended

# What an inference takes beside its activations: 1.3 to 1.7 times as much in all was
# measured for all kinds of backbones (Eigen's and oneDNN's workspaces).
_WORKSPACE = 2.0
# Activations grow with the area; of this size they are computed, in pixels.
_NOMINAL_SIDE = 513
# While rows of windows are blended there are so many copies of their scores.
_COPIES_OF_ROWS = 6
_LEAST_WINDOW = 65
_TOO_SMALL = "the memory limit is too small for images of"
_MIB = 1 << 20


class Predictor:
    """A model together with how it looks at an image.

    Args:
        model: A model of `build_model`.
        scales: Scales of the image; the probabilities are averaged.
        flip: Whether every scale is also seen mirrored left to right.
        crop_size: Height and width to which images are padded, as the official
            protocol does; larger images are not cut. None pads to the next
            `k * output_stride + 1`, where features and pixels align.
        window: Height and width of what is seen at once. Larger images are seen
            through windows that overlap by a third, where what they see is blended.
            None sees every image whole.
        memory_limit: Bytes that the inference of an image may take beside the model
            and what is returned; the window is then as large as they allow. None is
            no limit.

    Raises:
        UserError: for scales that are not positive, and for a window as well as a
            limit.
    """

    def __init__(
        self,
        model: keras.Model,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        crop_size: tuple[int, int] | None = None,
        window: tuple[int, int] | None = None,
        memory_limit: int | None = None,
    ):
        self.config = model.model_config
        if window is not None and memory_limit is not None:
            raise UserError("a window and a memory limit exclude each other")
        self.scales = tuple(float(scale) for scale in scales)
        if not all(scale > 0 for scale in self.scales or (0.0,)):
            raise UserError(f"scales must be positive; received {self.scales}")
        self.flip = flip
        self.crop_size = crop_size
        self.window = window
        self.memory_limit = memory_limit
        logits = model.get_layer("logits").output
        self.network = keras.Model(model.input, logits, name="logits_of_image")
        self.networks = {s: at_image_scale(self.network, s) for s in self.scales}
        if memory_limit is not None:
            least = self._needed(_LEAST_WINDOW, _LEAST_WINDOW)
            if memory_limit < least:
                raise UserError(
                    f"a memory limit of {memory_limit / _MIB:.0f} MiB is too small: "
                    f"this model needs {math.ceil(least / _MIB)} MiB for the smallest "
                    f"window, {_LEAST_WINDOW}x{_LEAST_WINDOW}"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.config.num_classes

    @property
    def protocol(self) -> dict:
        """What decides about results besides weights and how an image is looked at."""
        return {
            "output_stride": self.config.output_stride,
            "atrous_rates": list(self.config.context.rates),
        }

    @functools.cached_property
    def _bytes_per_pixel(self) -> tuple[float, float]:
        """What a pixel of a window takes, and one of the rows that it belongs to."""
        area = _NOMINAL_SIDE**2
        largest = max(1.0, *self.scales) ** 2
        features = activation_bytes(self.network, (_NOMINAL_SIDE, _NOMINAL_SIDE)) / area
        scores = 4 * self.config.num_classes
        views = len(self.scales) * (2 if self.flip else 1)
        # Each view before and after its softmax; sums of blended rows while they grow.
        in_window = _WORKSPACE * features * largest + (2 * views + 2) * scores
        return in_window, _COPIES_OF_ROWS * scores

    def _needed(self, side, width):
        """Returns the bytes for square windows on an image of a width."""
        in_window, in_rows = self._bytes_per_pixel
        return in_window * side**2 + in_rows * side * width

    def _window(self, images):
        """Returns height and width of the windows for images."""
        height, width = _size(images)
        if self.window is not None:
            return tf.minimum(self.window[0], height), tf.minimum(self.window[1], width)
        limit = self.memory_limit / tf.cast(tf.shape(images)[0], tf.float32)
        in_window, in_rows = self._bytes_per_pixel
        # The side whose `_needed` is the limit.
        half = in_rows * tf.cast(width, tf.float32) / (2 * in_window)
        largest = tf.cast(tf.sqrt(half**2 + limit / in_window) - half, tf.int32)
        area = tf.cast(height, tf.float32) * tf.cast(width, tf.float32)
        fits = (in_window + in_rows) * area <= limit
        tf.debugging.Assert(
            fits | (largest >= _LEAST_WINDOW), [_TOO_SMALL, height, width]
        )
        stride = self.config.output_stride
        side = (largest - 1) // stride * stride + 1
        sides = tf.minimum(side, height), tf.minimum(side, width)
        return tuple(map(functools.partial(tf.where, fits), (height, width), sides))

    def _padded(self, images):
        """Returns images padded at the bottom and the right with the mean pixel."""
        size = tf.shape(images)[1:3]
        if self.crop_size is not None:
            target = tf.maximum(tf.constant(self.crop_size), size)
        else:
            stride = self.config.output_stride
            target = (size - 1 + stride - 1) // stride * stride + 1
        missing = target - size
        paddings = [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]]
        mean_pixel = tf.constant(self.config.mean_pixel, tf.float32)
        return tf.pad(images - mean_pixel, paddings) + mean_pixel

    def _logits(self, images, scale: float):
        """Returns logits of padded images seen at a scale, at their own size."""
        size = _size(images)
        if scale != 1.0:
            scaled = [scale_dimension(side, scale) for side in size]
            seen = resize_bilinear(images, scaled)
        else:
            seen = images
        network = self.networks[scale]
        logits = network(seen, training=False)
        if self.flip:
            mirrored = network(tf.reverse(seen, [2]), training=False)
            logits = [logits, tf.reverse(mirrored, [2])]
        else:
            logits = [logits]
        if scale < 1.0:
            # The official graph passes by the grid of the unscaled image.
            stride = self.config.logits_stride
            grid = [scale_dimension(side, 1.0 / stride) for side in size]
            logits = [resize_bilinear(x, grid) for x in logits]
        return [resize_bilinear(x, size) for x in logits]

    def _scores(self, images):
        """Returns logits (one view) or mean probabilities, at the images' size."""
        images = tf.cast(images, tf.float32)
        height, width = _size(images)
        padded = self._padded(images)
        views = [view for scale in self.scales for view in self._logits(padded, scale)]
        if len(views) > 1:
            views = [tf.add_n([tf.nn.softmax(view) for view in views]) / len(views)]
        return views[0][:, :height, :width]

    def _through_windows(self, images, finish: Callable):
        """Returns `finish` of what `_scores` gives, rows at a time."""
        batch, classes = tf.shape(images)[0], self.config.num_classes
        height, width = _size(images)
        rows, columns = self._window(images)

        def strip(top):
            seen = images[:, top : top + rows]

            def piece(left):
                return self._scores(seen[:, :, left : left + columns])

            shape = (batch, rows, width, classes)
            return blended(piece, shape, columns, 2, tf.identity)

        shape = (batch, height, width, classes)
        return blended(strip, shape, rows, 1, finish)

    def _finished(self, images, finish: Callable):
        """Returns `finish` of the scores of images."""
        if self.window is None and self.memory_limit is None:
            return finish(self._scores(images))
        return self._through_windows(images, finish)

    def probabilities(self, images):
        """Returns float32 `[batch, height, width, num_classes]`, summing to 1.

        Args:
            images: RGB 0..255 of any real dtype, `[batch, height, width, 3]`.
        """
        one_view = len(self.scales) == 1 and not self.flip
        return self._finished(images, tf.nn.softmax if one_view else tf.identity)

    def labels(self, images):
        """Returns the most probable classes, int32 `[batch, height, width]`.

        Args:
            images: RGB 0..255 of any real dtype, `[batch, height, width, 3]`.
        """
        return self._finished(images, _most_probable)


@contextlib.contextmanager
def readable_limits() -> Iterator[None]:
    """Tells in one line that a memory limit is too small for some images.

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


def _most_probable(scores):
    return tf.argmax(scores, axis=-1, output_type=tf.int32)


def _size(images):
    size = tf.shape(images)
    return size[1], size[2]


def predict_labels(
    model: keras.Model,
    images,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> np.ndarray:
    """Returns the most probable class of every pixel, int32 `[b, h, w]`.

    Args:
        model: A model of `build_model`.
        images: RGB 0..255, `[batch, height, width, 3]`, of any size.
        scales: Scales whose probabilities are averaged; the papers use 0.5 to
            1.75 in steps of 0.25.
        flip: Whether every scale is also seen mirrored.
    """
    predictor = Predictor(model, scales, flip)
    return predictor.labels(tf.convert_to_tensor(images)).numpy()
