"""Images of any size to probabilities and labels: pad, scale, flip, average, slide.

Evaluation, export and prediction all go through `Predictor`, so that they
cannot differ. The protocol is DeepLabv3's (1706.05587, Sec. 4): the mean of the
softmax probabilities over scales and mirrored images. An image that is too large for
the memory is seen through windows that overlap.
"""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from deeplab_tf.errors import UserError
from deeplab_tf.images.resizing import resize_bilinear
from deeplab_tf.models.deeplab import scale_pooling_windows
from deeplab_tf.models.memory import activation_bytes
from deeplab_tf.models.precision import model_precision
from deeplab_tf.models.resampling import align_size, scale_dimension
from deeplab_tf.windows import Budget, slide_window

# What an inference takes beside its activations: 1.3 to 1.7 times as much in all was
# measured for all kinds of backbones (Eigen's and oneDNN's workspaces).
_WORKSPACE = 2.0
# Activations grow with the area; of this size they are computed, in pixels.
_NOMINAL_SIDE = 513
# While rows of windows are blended there are so many copies of their scores.
_COPIES_OF_ROWS = 6


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
            raise UserError("a window and a memory limit are mutually exclusive")
        if min(window or (1,)) < 1:
            raise UserError(f"a window needs positive sides; received {window}")
        self.scales = tuple(float(scale) for scale in scales)
        if not all(scale > 0 for scale in self.scales or (0.0,)):
            raise UserError(f"scales must be positive; received {self.scales}")
        self.flip = flip
        self.crop_size = crop_size
        self.window = window
        self.memory_limit = memory_limit
        logits = model.get_layer("logits").output
        self.network = keras.Model(model.input, logits, name="logits_of_image")
        self.networks = {s: scale_pooling_windows(self.network, s) for s in self.scales}
        if memory_limit is not None:
            self._budget = Budget(memory_limit, *self._bytes_per_pixel())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.config.num_classes

    @property
    def protocol(self) -> dict:
        """What decides about results besides weights and how an image is looked at."""
        return {
            "output_stride": self.config.output_stride,
            "atrous_rates": list(self.config.atrous_rates),
            "precision": model_precision(self.network),
        }

    def _bytes_per_pixel(self) -> tuple[float, float]:
        """What a pixel of a window takes, and one of the rows that it belongs to."""
        size = [side or _NOMINAL_SIDE for side in self.network.input.shape[1:3]]
        largest = max(1.0, *self.scales) ** 2
        features = activation_bytes(self.network, size) / math.prod(size)
        scores = 4 * self.config.num_classes
        views = len(self.scales) * (2 if self.flip else 1)
        # Each view before and after its softmax; sums of blended rows while they grow.
        in_window = _WORKSPACE * features * largest + (2 * views + 2) * scores
        return in_window, _COPIES_OF_ROWS * scores

    def _window(
        self, height: tf.Tensor, width: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns height and width of the windows for an image."""
        if self.window is not None:
            return tf.minimum(self.window[0], height), tf.minimum(self.window[1], width)
        stride = self.config.output_stride
        return self._budget.window(height, width, stride)

    def _align(self, sides: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return [align_size(side, self.config.output_stride) for side in sides]

    def _pad(self, images: tf.Tensor, size: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns images padded to a size at the bottom and the right."""
        missing = [x - side for x, side in zip(size, _size(images), strict=True)]
        return pad_with_mean_pixel(images, missing, self.config.mean_pixel)

    def _to_crop(self, images: tf.Tensor, crop_size: tuple[int, int]) -> tf.Tensor:
        """Returns images padded to the crop size, which larger ones enlarge."""
        sides = zip(crop_size, _size(images), strict=True)
        images = tf.cast(images, tf.float32)
        return self._pad(images, [tf.maximum(*pair) for pair in sides])

    def _logits(self, images: tf.Tensor, scale: float) -> list[tf.Tensor]:
        """Returns logits of padded images seen at a scale, at their own size."""
        size = _size(images)
        if scale != 1.0:
            scaled = [scale_dimension(side, scale) for side in size]
            seen = resize_to(images, scaled)
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
            logits = [resize_to(x, grid) for x in logits]
        return [resize_to(x, size) for x in logits]

    def _scores(self, images: tf.Tensor, size: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns logits (one view) or mean probabilities of images padded to a size.

        They have the images' own size.
        """
        height, width = _size(images)
        padded = self._pad(tf.cast(images, tf.float32), size)
        views = [view for scale in self.scales for view in self._logits(padded, scale)]
        if len(views) > 1:
            views = [tf.add_n([tf.nn.softmax(view) for view in views]) / len(views)]
        return views[0][:, :height, :width]

    def _through_windows(self, images: tf.Tensor, finish: Callable) -> tf.Tensor:
        """Returns `finish` of what `_scores` gives, rows at a time."""
        batch, classes = tf.shape(images)[0], self.config.num_classes
        height, width = _size(images)
        rows, columns = self._window(height, width)
        # A side that is seen whole has the crop size already.
        sides = ((rows, height), (columns, width))
        size = self._align((rows, columns))
        if self.crop_size is not None:
            pairs = zip(size, sides, strict=True)
            size = [tf.where(w == side, side, x) for x, (w, side) in pairs]

        def score(top: tf.Tensor, left: tf.Tensor) -> tf.Tensor:
            seen = images[:, top : top + rows, left : left + columns]
            return self._scores(seen, size)

        shape = (batch, height, width, classes)
        return slide_window(score, shape, (rows, columns), finish)

    def _finished(self, images: tf.Tensor, finish: Callable) -> tf.Tensor:
        """Returns `finish` of the scores of images."""
        height, width = _size(images)
        if self.crop_size is not None:
            images = self._to_crop(images, self.crop_size)
        if self.memory_limit is not None:
            # One by one, so that neither the limit nor the windows depend on a batch.
            kind = finish(tf.zeros([1, 1, 1, self.config.num_classes]))
            results = tf.map_fn(
                lambda image: self._through_windows(image[None], finish)[0],
                images,
                parallel_iterations=1,
                fn_output_signature=tf.TensorSpec(
                    [None, None, *kind.shape[3:]], kind.dtype
                ),
            )
        elif self.window is not None:
            results = self._through_windows(images, finish)
        else:
            aligned = self._align(_size(images))
            size = aligned if self.crop_size is None else _size(images)
            results = finish(self._scores(images, size))
        return results[:, :height, :width]

    def probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Returns float32 `[batch, height, width, num_classes]`, summing to 1.

        Args:
            images: RGB 0..255 of any real dtype, `[batch, height, width, 3]`.
        """
        return self._finished(images, self._as_probabilities)

    def _as_probabilities(self, scores: tf.Tensor) -> tf.Tensor:
        one_view = len(self.scales) == 1 and not self.flip
        return tf.nn.softmax(scores) if one_view else scores

    def labels(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the most probable classes, int32 `[batch, height, width]`.

        Args:
            images: RGB 0..255 of any real dtype, `[batch, height, width, 3]`.
        """
        return self._finished(images, most_probable)

    def labels_and_probabilities(
        self, images: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what `labels` and `probabilities` do, from one look at the images.

        Args:
            images: RGB 0..255 of any real dtype, `[batch, height, width, 3]`.
        """

        def both(scores: tf.Tensor) -> tf.Tensor:
            labels = tf.cast(most_probable(scores), tf.float32)[..., None]
            return tf.concat([labels, self._as_probabilities(scores)], -1)

        results = self._finished(images, both)
        return tf.cast(results[..., 0], tf.int32), results[..., 1:]

    def labels_and_confidences(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what `labels` does, and the probabilities of these, float32.

        Args:
            images: RGB 0..255 of any real dtype, `[batch, height, width, 3]`.
        """

        def both(scores: tf.Tensor) -> tf.Tensor:
            confidences = tf.reduce_max(self._as_probabilities(scores), -1)
            labels = tf.cast(most_probable(scores), tf.float32)
            return tf.stack([labels, confidences], -1)

        labels, confidences = tf.unstack(self._finished(images, both), axis=-1)
        return tf.cast(labels, tf.int32), confidences


def most_probable(scores: tf.Tensor) -> tf.Tensor:
    """Returns the classes of the highest scores, int32 `[batch, height, width]`."""
    return tf.argmax(scores, axis=-1, output_type=tf.int32)


def resize_to(x: tf.Tensor, size: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Returns what `resampling.resize_bilinear` does, by TensorFlow's own operation.

    Args:
        x: `[batch, height, width, channels]`, of any precision.
        size: Target height and width.
    """
    known = [side for side in size if isinstance(side, int)]
    if known == x.shape[1:3].as_list():
        return x
    return tf.cast(resize_bilinear(x, tf.stack(size)), x.dtype)


def pad_with_mean_pixel(
    images: tf.Tensor,
    missing: Sequence[int | tf.Tensor],
    mean_pixel: tuple[float, ...],
) -> tf.Tensor:
    """Returns images padded at the bottom and the right, which the network sees as 0.

    Args:
        images: float32 `[batch, height, width, channels]`.
        missing: Rows and columns to add.
        mean_pixel: Value of each channel in the padding.
    """
    mean = tf.constant(mean_pixel, tf.float32)
    return tf.pad(images - mean, [[0, 0], *([0, n] for n in missing), [0, 0]]) + mean


def _size(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    size = tf.shape(images)
    return size[1], size[2]


def predict_labels(
    model: keras.Model,
    images: ArrayLike,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> np.ndarray:
    """Returns the most probable class of every pixel, int32 `[b, h, w]`.

    Of several views the probabilities are averaged (DeepLabv3, 1706.05587, Sec. 4).

    Args:
        model: A model of `build_model`.
        images: RGB 0..255, `[batch, height, width, 3]`, of any size.
        scales: Scales whose probabilities are averaged; the papers use 0.5 to
            1.75 in steps of 0.25.
        flip: Whether every scale is also seen mirrored.

    Raises:
        UserError: for scales that are not positive.
    """
    predictor = Predictor(model, scales, flip)
    return predictor.labels(tf.convert_to_tensor(images)).numpy()
