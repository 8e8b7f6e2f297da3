"""Predicts images of any size: pads, scales, flips, averages and slides windows.

Evaluation, export and prediction share `Predictor`. The protocol is that of DeepLabv3
(1706.05587, Sec. 4): softmax probabilities are averaged over scales and flips. Images
that need too much memory are predicted in overlapping sliding windows.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config.options import POSITIVE, SCALES, SIDE
from deeplab_tf.errors import UserError
from deeplab_tf.images.resizing import resize_bilinear, resize_nearest
from deeplab_tf.models.checks import BUILT
from deeplab_tf.models.memory import activation_bytes
from deeplab_tf.models.network import (
    find_single_scale_network,
    scale_pooling_windows,
)
from deeplab_tf.models.precision import model_precision
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.models.resampling import align_size, scale_dimension
from deeplab_tf.windows import (
    MemoryBudget,
    pack_results,
    slide_window,
    unpack_results,
)

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
        upsampled_logits: Whether logits are resized to the image before the most
            probable class is chosen. False resizes labels and probabilities instead,
            which is faster and makes blocks; as in the official code, this only
            applies to a single pass at scale 1.

    Raises:
        UserError: if an argument has a wrong type or is out of range, or a window is
            combined with a limit or with `upsampled_logits=False`.
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
        upsampled_logits: bool = True,
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
        self.upsampled_logits = upsampled_logits
        if self._has_windows and not upsampled_logits:
            raise UserError("windows need upsampled_logits=True; received False")
        # As in the official code, several scales replace those of an image pyramid.
        network = None if self.scales == (1.0,) else find_single_scale_network(model)
        if network is None:
            logits = model.get_layer("logits").output
            network = keras.Model(model.input, logits, name="logits_of_image")
        self.network = network
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

    def _choose_window(
        self, height: tf.Tensor, width: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns height and width of the windows for an image of this size."""
        if self.window is not None:
            return tf.minimum(self.window[0], height), tf.minimum(self.window[1], width)
        stride = self.config.output_stride
        return self._budget.choose_window(height, width, stride)

    @property
    def _has_windows(self) -> bool:
        return self.window is not None or self.memory_limit is not None

    def _round_up_sides(self, sides: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Rounds sides up to `k * output_stride + 1` if features align there."""
        if not self.config.aligns_features:
            return list(sides)
        return [align_size(side, self.config.output_stride) for side in sides]

    def _pad_to(self, images: tf.Tensor, size: Sequence[tf.Tensor]) -> tf.Tensor:
        """Pads images to a size at the bottom and right."""
        missing = [x - side for x, side in zip(size, _image_size(images), strict=True)]
        return pad_with_mean_pixel(images, missing, self.config.mean_pixel)

    def pad(self, images: tf.Tensor) -> tf.Tensor:
        """Returns float32 images, padded to at least the crop size.

        Without a crop size, pads to the next `k * output_stride + 1`, or not at all if
        windows are cut from the images, because these are padded themselves.
        """
        images, size = tf.cast(images, tf.float32), _image_size(images)
        if self.crop_size is not None:
            pairs = zip(self.crop_size, size, strict=True)
            return self._pad_to(images, [tf.maximum(*pair) for pair in pairs])
        return (
            images
            if self._has_windows
            else self._pad_to(images, self._round_up_sides(size))
        )

    def _logits(self, images: tf.Tensor, scale: float) -> list[tf.Tensor]:
        """Returns the logits of each pass at one scale, resized to the images."""
        size, resizing = _image_size(images), self.config.conventions.resizing
        scaled = images
        if scale != 1.0:
            scaled = resize_to(images, [scale_dimension(side, scale) for side in size])
        network = self.networks[scale]
        logits = [_run_network(network, scaled)]
        if self.flip:
            flipped = _run_network(network, tf.reverse(scaled, [2]))
            logits.append(tf.reverse(flipped, [2]))
        if scale < 1.0:
            # The official graph first resizes to the feature grid at scale 1.
            stride = self.config.logits_stride
            grid = [scale_dimension(side, 1.0 / stride) for side in size]
            logits = [resize_to(x, grid, resizing) for x in logits]
        return [resize_to(x, size, resizing) for x in logits]

    def _score(self, images: tf.Tensor) -> "_Scores":
        """Returns the scores of padded images."""
        if (
            not self.upsampled_logits
            and self._has_single_pass
            and self.scales == (1.0,)
        ):
            logits = _run_network(self.networks[1.0], images)
            return _Scores(logits, True, _image_size(images))
        scores = [x for scale in self.scales for x in self._logits(images, scale)]
        if not self._has_single_pass:
            scores = [tf.add_n([tf.nn.softmax(x) for x in scores]) / len(scores)]
        return _Scores(scores[0], self._has_single_pass)

    @property
    def _has_single_pass(self) -> bool:
        return len(self.scales) == 1 and not self.flip

    def _predict_in_windows(self, images: tf.Tensor, finish: Callable) -> tf.Tensor:
        """Applies `finish` to the blended scores of sliding windows."""
        batch, classes = tf.shape(images)[0], self.config.num_classes
        height, width = _image_size(images)
        rows, columns = self._choose_window(height, width)
        # Sides that fit into one window are already padded to the crop size.
        sides = ((rows, height), (columns, width))
        size = self._round_up_sides((rows, columns))
        if self.crop_size is not None:
            pairs = zip(size, sides, strict=True)
            size = [tf.where(w == side, side, x) for x, (w, side) in pairs]

        def score(top: tf.Tensor, left: tf.Tensor) -> tf.Tensor:
            window = images[:, top : top + rows, left : left + columns]
            scores = self._score(self._pad_to(window, size))
            return scores.values[:, :rows, :columns]

        shape = (batch, height, width, classes)
        return slide_window(score, shape, (rows, columns), finish)

    def _slide(self, images: tf.Tensor, parts: Sequence[Callable]) -> list[tf.Tensor]:
        """Returns each part of the results from sliding windows."""

        def finish(values: tf.Tensor) -> tf.Tensor:
            scores = _Scores(values, self._has_single_pass)
            return pack_results([part(scores) for part in parts])

        nothing = tf.zeros([1, 1, 1, self.config.num_classes])
        samples = [part(_Scores(nothing, self._has_single_pass)) for part in parts]
        if self.memory_limit is None:
            return unpack_results(self._predict_in_windows(images, finish), samples)
        result = finish(nothing)
        # Per image, so that the windows do not depend on the batch size.
        results = tf.map_fn(
            lambda image: self._predict_in_windows(image[None], finish)[0],
            images,
            parallel_iterations=1,
            fn_output_signature=tf.TensorSpec(
                [None, None, *result.shape[3:]], result.dtype
            ),
        )
        return unpack_results(results, samples)

    def _predict(self, images: tf.Tensor, *parts: Callable) -> list[tf.Tensor]:
        """Returns each part of the results; `parts` are methods of `_Scores`."""
        padded = self.pad(images)
        if self._has_windows:
            results = self._slide(padded, parts)
        else:
            scores = self._score(padded)
            results = [part(scores) for part in parts]
        return [self.crop(x, images) for x in results]

    def crop(self, results: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns the results, `[batch, height, width, ...]`, without the padding."""
        height, width = _image_size(images)
        return results[:, :height, :width]

    def probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Returns float32 `[batch, height, width, num_classes]`, summing to 1.

        Args:
            images: RGB 0..255 of any real dtype, `[batch, height, width, 3]`.
        """
        return self._predict(images, _Scores.probabilities)[0]

    def labels(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the most probable classes, int32 `[batch, height, width]`."""
        return self._predict(images, _Scores.labels)[0]

    def labels_and_probabilities(
        self, images: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `labels` and `probabilities`, computed together."""
        labels, scores = self._predict(images, _Scores.labels, _Scores.probabilities)
        return labels, scores

    def labels_and_confidences(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `labels` and their probabilities."""
        labels, scores = self._predict(images, _Scores.labels, _Scores.confidences)
        return labels, scores

    def raw_labels_and_probabilities(
        self, images: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `labels` and `probabilities` of the padded images, before `crop`.

        In a graph, the operations of results that are not fetched can be removed.
        """
        padded = self.pad(images)
        if self._has_windows:
            # In separate loops, since each loop holds all that it computes.
            return self.labels(padded), self.probabilities(padded)
        return self.labels_and_probabilities(padded)


class _Scores(NamedTuple):
    """Scores of the classes, and the results that follow from them.

    Attributes:
        values: Logits or probabilities `[batch, height, width, num_classes]`.
        is_logits: Whether they are logits.
        size: Height and width to which the results are resized; None if `values` were.
    """

    values: tf.Tensor
    is_logits: bool
    size: Sequence[tf.Tensor] | None = None

    def labels(self) -> tf.Tensor:
        """Returns the most probable classes, int32 `[batch, height, width]`."""
        labels = most_probable(self.values)
        if self.size is None:
            return labels
        return resize_nearest(labels[..., None], tf.stack(self.size))[..., 0]

    def probabilities(self) -> tf.Tensor:
        """Returns float32 `[batch, height, width, num_classes]`."""
        found = tf.nn.softmax(self.values) if self.is_logits else self.values
        return found if self.size is None else resize_to(found, self.size)

    def confidences(self) -> tf.Tensor:
        """Returns the largest probabilities, `[batch, height, width]`."""
        return tf.reduce_max(self.probabilities(), -1)


def compile_graph(function: Callable, **options: Any) -> Callable:
    """Returns a function compiled without AutoGraph if TensorFlow runs the model.

    With a different backend, Keras compiles the network, and TensorFlow runs the
    protocol around it eagerly. `options` are those of `tf.function`.
    """
    if keras.backend.backend() == "tensorflow":
        return tf.function(function, autograph=False, **options)
    return function


def _run_network(network: Any, images: tf.Tensor) -> tf.Tensor:
    """Runs a network on any backend; refuses images of a size it does not take."""
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


def resize_to(
    x: tf.Tensor, size: Sequence[int | tf.Tensor], resizing: str = "align_corners"
) -> tf.Tensor:
    """Resizes like `resampling.resize_bilinear`, with TensorFlow's own operation.

    `x` is `[batch, height, width, channels]`, of any precision; `size` is height and
    width.
    """
    known = [side for side in size if isinstance(side, int)]
    if known == x.shape[1:3].as_list():
        return x
    return tf.cast(resize_bilinear(x, tf.stack(size), resizing), x.dtype)


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


def _image_size(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns height and width of a batch of images."""
    size = tf.shape(images)
    return size[1], size[2]
