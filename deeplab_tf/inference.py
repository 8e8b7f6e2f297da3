"""Predicts images of any size: pads, scales, flips, averages and slides windows.

Evaluation, export and prediction share `Predictor`. The protocol is that of DeepLabv3
(1706.05587, Sec. 4): softmax probabilities are averaged over scales and flips. Images
that need too much memory are predicted in overlapping sliding windows.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config.options import POSITIVE, SCALES, SIDE
from deeplab_tf.errors import UserError
from deeplab_tf.images.resizing import resize_bilinear
from deeplab_tf.models.checks import BUILT
from deeplab_tf.models.memory import activation_bytes
from deeplab_tf.models.network import scale_pooling_windows
from deeplab_tf.models.precision import model_precision
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.models.resampling import align_size, scale_dimension
from deeplab_tf.windows import MemoryBudget, slide_window

# Total memory per byte of activations, including the workspaces of Eigen and oneDNN.
# Measured: 1.3 to 1.7, for all kinds of backbones.
_WORKSPACE = 2.0
# Side of the image for which activations are counted; they grow with its area.
_NOMINAL_SIDE = 513
# Number of copies of the scores of a row of windows while it is being blended.
_COPIES_OF_ROWS = 6


class Predictor:
    """A model with its inference protocol.

    Args:
        model: A model of `build_model`.
        scales: Image scales over which probabilities are averaged.
        flip: Whether to also average over horizontally flipped images.
        crop_size: Height and width to pad images to, as in the official protocol; it
            grows to fit larger images. None pads to the next `k * output_stride + 1`,
            where features and pixels align.
        window: Height and width of the sliding window for larger images. Windows
            overlap by at least a third and are blended there. None turns it off.
        memory_limit: Memory for the inference of an image in bytes, not counting the
            model and the results; determines the window size. None means no limit.

    Raises:
        UserError: if an argument has a wrong type or is out of range, or both a window
            and a limit are given.
    """

    @check_arguments(
        model=BUILT, scales=SCALES, crop_size=SIDE, window=SIDE, memory_limit=POSITIVE
    )
    def __init__(
        self,
        model: keras.Model,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        crop_size: tuple[int, int] | None = None,
        window: tuple[int, int] | None = None,
        memory_limit: float | None = None,
    ):
        self.config = model.model_config
        if window is not None and memory_limit is not None:
            raise UserError("window and memory_limit are mutually exclusive; give one")
        if not scales:
            raise UserError("scales must have at least one scale; received ()")
        self.scales = tuple(scales)
        self.flip = flip
        self.crop_size = crop_size
        self.window = window
        self.memory_limit = memory_limit
        logits = model.get_layer("logits").output
        self.network = keras.Model(model.input, logits, name="logits_of_image")
        self.networks = {s: scale_pooling_windows(self.network, s) for s in self.scales}
        if memory_limit is not None:
            self._budget = MemoryBudget(memory_limit, *self._bytes_per_pixel())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.config.num_classes

    @property
    def protocol(self) -> dict:
        """Settings, apart from the weights, that affect results."""
        return {
            "output_stride": self.config.output_stride,
            "atrous_rates": list(self.config.atrous_rates),
            "precision": "simulated int8"
            if is_quantized(self.network)
            else model_precision(self.network),
        }

    def _bytes_per_pixel(self) -> tuple[float, float]:
        """Returns the bytes per pixel of a window and of a row of windows."""
        size = [side or _NOMINAL_SIDE for side in self.network.input.shape[1:3]]
        largest = max(1.0, *self.scales) ** 2
        features = activation_bytes(self.network, size) / math.prod(size)
        scores = 4 * self.config.num_classes
        passes = len(self.scales) * (2 if self.flip else 1)
        # Scores of each pass before and after softmax, and two sums.
        in_window = _WORKSPACE * features * largest + (2 * passes + 2) * scores
        return in_window, _COPIES_OF_ROWS * scores

    def _window_size(
        self, height: tf.Tensor, width: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if self.window is not None:
            return tf.minimum(self.window[0], height), tf.minimum(self.window[1], width)
        stride = self.config.output_stride
        return self._budget.choose_window(height, width, stride)

    def _round_up_sides(self, sides: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return [align_size(side, self.config.output_stride) for side in sides]

    def _pad(self, images: tf.Tensor, size: Sequence[tf.Tensor]) -> tf.Tensor:
        """Pads images to a size at the bottom and right."""
        missing = [x - side for x, side in zip(size, _size(images), strict=True)]
        return pad_with_mean_pixel(images, missing, self.config.mean_pixel)

    def _pad_to_crop(self, images: tf.Tensor, crop_size: tuple[int, int]) -> tf.Tensor:
        """Pads images to at least the crop size."""
        sides = zip(crop_size, _size(images), strict=True)
        images = tf.cast(images, tf.float32)
        return self._pad(images, [tf.maximum(*pair) for pair in sides])

    def _logits(self, images: tf.Tensor, scale: float) -> list[tf.Tensor]:
        """Returns the logits of each pass at one scale, resized to the images."""
        size = _size(images)
        scaled = images
        if scale != 1.0:
            scaled = resize_to(images, [scale_dimension(side, scale) for side in size])
        network = self.networks[scale]
        logits = [_apply(network, scaled)]
        if self.flip:
            flipped = _apply(network, tf.reverse(scaled, [2]))
            logits.append(tf.reverse(flipped, [2]))
        if scale < 1.0:
            # The official graph first resizes to the feature grid at scale 1.
            stride = self.config.logits_stride
            grid = [scale_dimension(side, 1.0 / stride) for side in size]
            logits = [resize_to(x, grid) for x in logits]
        return [resize_to(x, size) for x in logits]

    def _scores(self, images: tf.Tensor, size: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns logits (for a single pass) or mean probabilities of images.

        The images are padded to `size` and the scores cropped back.
        """
        height, width = _size(images)
        padded = self._pad(tf.cast(images, tf.float32), size)
        scores = [x for scale in self.scales for x in self._logits(padded, scale)]
        if len(scores) > 1:
            scores = [tf.add_n([tf.nn.softmax(x) for x in scores]) / len(scores)]
        return scores[0][:, :height, :width]

    def _predict_in_windows(self, images: tf.Tensor, finish: Callable) -> tf.Tensor:
        """Applies `finish` to the blended scores of sliding windows."""
        batch, classes = tf.shape(images)[0], self.config.num_classes
        height, width = _size(images)
        rows, columns = self._window_size(height, width)
        # Sides that fit into one window are already padded to the crop size.
        sides = ((rows, height), (columns, width))
        size = self._round_up_sides((rows, columns))
        if self.crop_size is not None:
            pairs = zip(size, sides, strict=True)
            size = [tf.where(w == side, side, x) for x, (w, side) in pairs]

        def score(top: tf.Tensor, left: tf.Tensor) -> tf.Tensor:
            window = images[:, top : top + rows, left : left + columns]
            return self._scores(window, size)

        shape = (batch, height, width, classes)
        return slide_window(score, shape, (rows, columns), finish)

    def _predict(self, images: tf.Tensor, finish: Callable) -> tf.Tensor:
        height, width = _size(images)
        if self.crop_size is not None:
            images = self._pad_to_crop(images, self.crop_size)
        if self.memory_limit is not None:
            # Per image, so that the windows do not depend on the batch size.
            result = finish(tf.zeros([1, 1, 1, self.config.num_classes]))
            results = tf.map_fn(
                lambda image: self._predict_in_windows(image[None], finish)[0],
                images,
                parallel_iterations=1,
                fn_output_signature=tf.TensorSpec(
                    [None, None, *result.shape[3:]], result.dtype
                ),
            )
        elif self.window is not None:
            results = self._predict_in_windows(images, finish)
        else:
            aligned = self._round_up_sides(_size(images))
            size = aligned if self.crop_size is None else _size(images)
            results = finish(self._scores(images, size))
        return results[:, :height, :width]

    def probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Returns float32 `[batch, height, width, num_classes]`, summing to 1.

        Args:
            images: RGB 0..255 of any real dtype, `[batch, height, width, 3]`.
        """
        return self._predict(images, self._to_probabilities)

    def _to_probabilities(self, scores: tf.Tensor) -> tf.Tensor:
        is_logits = len(self.scales) == 1 and not self.flip
        return tf.nn.softmax(scores) if is_logits else scores

    def labels(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the most probable classes, int32 `[batch, height, width]`."""
        return self._predict(images, most_probable)

    def labels_and_probabilities(
        self, images: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `labels` and `probabilities`, computed together."""

        def both(scores: tf.Tensor) -> tf.Tensor:
            labels = tf.cast(most_probable(scores), tf.float32)[..., None]
            return tf.concat([labels, self._to_probabilities(scores)], -1)

        results = self._predict(images, both)
        return tf.cast(results[..., 0], tf.int32), results[..., 1:]

    def labels_and_confidences(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `labels` and their probabilities."""

        def both(scores: tf.Tensor) -> tf.Tensor:
            confidences = tf.reduce_max(self._to_probabilities(scores), -1)
            labels = tf.cast(most_probable(scores), tf.float32)
            return tf.stack([labels, confidences], -1)

        labels, confidences = tf.unstack(self._predict(images, both), axis=-1)
        return tf.cast(labels, tf.int32), confidences


def compile_graph(function: Callable, **options: Any) -> Callable:
    """Returns a function compiled without AutoGraph if TensorFlow runs the model.

    With a different backend, Keras compiles the network, and TensorFlow runs the
    protocol around it eagerly.
    """
    if keras.backend.backend() == "tensorflow":
        return tf.function(function, autograph=False, **options)
    return function


def _apply(network: Any, images: tf.Tensor) -> tf.Tensor:
    # Exports replace the model with a function for any size.
    fixed, size = getattr(network, "input", images).shape[1:3], images.shape[1:3]
    if not size.is_compatible_with(fixed):
        raise UserError(
            f"the model takes images of {fixed[0]}x{fixed[1]} pixels only; with this "
            f"image and protocol it would get {size[0]}x{size[1]}; build it without "
            "image_size"
        )
    if keras.backend.backend() == "tensorflow":
        return network(images, training=False)
    return tf.constant(network.predict_on_batch(images.numpy()))


def most_probable(scores: tf.Tensor) -> tf.Tensor:
    """Returns the class with the highest score, int32 `[batch, height, width]`."""
    return tf.argmax(scores, axis=-1, output_type=tf.int32)


def resize_to(x: tf.Tensor, size: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Resizes like `resampling.resize_bilinear`, with TensorFlow's own operation.

    `x` is `[batch, height, width, channels]`, of any precision; `size` is height and
    width.
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
    """Pads images at the bottom and right with the value that normalises to 0.

    Images are float32 `[batch, height, width, channels]`; `missing` are the rows and
    columns to add; `mean_pixel` has a value per channel.
    """
    mean = tf.constant(mean_pixel, tf.float32)
    return tf.pad(images - mean, [[0, 0], *([0, n] for n in missing), [0, 0]]) + mean


def _size(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    size = tf.shape(images)
    return size[1], size[2]
