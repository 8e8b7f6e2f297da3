"""Images of any size to probabilities and labels: pad, scale, flip, average.

Evaluation, export and prediction all go through `Predictor`, so that they
cannot differ. The protocol is DeepLabv3's (1706.05587, Sec. 4): the mean of the
softmax probabilities over scales and mirrored images.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import at_image_scale
from deeplab_tf.models.resampling import resize_bilinear, scale_dimension


class Predictor:
    """A model together with how it looks at an image.

    Args:
        model: A model of `build_model`.
        scales: Scales of the image; the probabilities are averaged.
        flip: Whether every scale is also seen mirrored left to right.
        crop_size: Height and width to which images are padded, as the official
            protocol does; larger images are not cut. None pads to the next
            `k * output_stride + 1`, where features and pixels align.

    Raises:
        UserError: for scales that are not positive.
    """

    def __init__(
        self,
        model: keras.Model,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        crop_size: tuple[int, int] | None = None,
    ):
        self.config = model.model_config
        self.scales = tuple(float(scale) for scale in scales)
        if not all(scale > 0 for scale in self.scales or (0.0,)):
            raise UserError(f"scales must be positive; received {self.scales}")
        self.flip = flip
        self.crop_size = crop_size
        logits = model.get_layer("logits").output
        self.network = keras.Model(model.input, logits, name="logits_of_image")
        self.networks = {s: at_image_scale(self.network, s) for s in self.scales}

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
            views = [tf.nn.softmax(view) for view in views]
        return (tf.add_n(views) / len(views))[:, :height, :width]

    def probabilities(self, images):
        """Returns float32 `[batch, height, width, num_classes]`, summing to 1.

        Args:
            images: RGB 0..255 of any real dtype, `[batch, height, width, 3]`.
        """
        scores = self._scores(images)
        one_view = len(self.scales) == 1 and not self.flip
        return tf.nn.softmax(scores) if one_view else scores

    def labels(self, images):
        """Returns the most probable classes, int32 `[batch, height, width]`.

        Args:
            images: RGB 0..255 of any real dtype, `[batch, height, width, 3]`.
        """
        return tf.argmax(self._scores(images), axis=-1, output_type=tf.int32)


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
