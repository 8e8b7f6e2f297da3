"""Candidate losses, which `benchmarks.tricks` measures."""

import keras
import tensorflow as tf
from keras import ops

from deeplab_tf.config import TrainConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.resampling import align_size, resize_bilinear
from deeplab_tf.models.tensors import Tensor
from deeplab_tf.training.losses import encode_labels, shrink_labels

_BINS = 1024
_RMI_STRIDE, _RMI_SIDE = 4, 3


def lovasz_softmax(labels: Tensor, logits: Tensor, ignore_label: int) -> Tensor:
    """Returns the Lovász-Softmax loss of the classes in a batch (1705.08790).

    Errors are sorted into bins of equal width instead of individually.
    """
    classes = logits.shape[-1]
    hot, mask = encode_labels(labels, classes, ignore_label)
    errors = ops.reshape(ops.abs(hot - ops.softmax(logits)) * mask, (-1, classes))
    hot, mask = ops.reshape(hot, (-1, classes)), ops.reshape(mask, (-1, 1))
    # The largest errors come first.
    place = ops.cast(ops.stop_gradient(errors) * _BINS, "int32")
    place = _BINS - 1 - ops.minimum(place, _BINS - 1) + ops.arange(classes) * _BINS
    place = ops.reshape(place, (-1,))

    def count(values: Tensor) -> Tensor:
        values = ops.reshape(values, (-1,))
        sums = ops.segment_sum(values, place, num_segments=classes * _BINS)
        return ops.reshape(sums, (classes, _BINS))

    inside, outside = count(hot), count(mask - hot)
    total = ops.sum(inside, 1, keepdims=True)
    intersection = total - ops.cumsum(inside, 1)
    loss = 1.0 - intersection / ops.maximum(total + ops.cumsum(outside, 1), 1.0)
    steps = loss - ops.pad(loss[:, :-1], ((0, 0), (1, 0)))
    steps = steps / ops.maximum(inside + outside, 1.0)
    weights = ops.stop_gradient(ops.take(ops.reshape(steps, (-1,)), place))
    losses = ops.sum(errors * ops.reshape(weights, ops.shape(errors)), 0)
    return _average_present(losses, total[:, 0])


def dice(labels: Tensor, logits: Tensor, ignore_label: int) -> Tensor:
    """Returns one minus the Dice score of the classes in a batch (1606.04797)."""
    hot, mask = encode_labels(labels, logits.shape[-1], ignore_label)
    probabilities = ops.softmax(logits) * mask
    axes = (0, 1, 2)
    both, size = ops.sum(probabilities * hot, axes), ops.sum(hot, axes)
    sizes = ops.sum(probabilities, axes) + size
    return _average_present(1.0 - 2.0 * both / ops.maximum(sizes, 1.0), size)


def _average_present(losses: Tensor, pixels: Tensor) -> Tensor:
    """Returns the mean over the classes that have pixels."""
    present = ops.cast(pixels > 0, "float32")
    return ops.sum(losses * present) / ops.maximum(ops.sum(present), 1.0)


def rmi(labels: Tensor, logits: Tensor, ignore_label: int) -> Tensor:
    """Returns the loss of region mutual information (1910.12037, Eq. 13).

    Regions of 3x3 cells come from features that are pooled by 4.
    """
    classes = logits.shape[-1]
    hot, mask = encode_labels(labels, classes, ignore_label)
    probabilities = ops.sigmoid(logits) * mask + 1e-6
    truth, predicted = (_find_regions(x) for x in (hot, probabilities))
    transposed = ops.swapaxes(truth, 2, 3), ops.swapaxes(predicted, 2, 3)
    side = _RMI_SIDE**2
    noise = 5e-4 * ops.eye(side, dtype="float64")
    factor = ops.cholesky(predicted @ transposed[1] + noise)
    across = truth @ transposed[1]
    solved = tf.linalg.cholesky_solve(factor, ops.swapaxes(across, 2, 3))
    conditional = truth @ transposed[0] - across @ solved
    factor = ops.cholesky(conditional + noise)
    half_log_determinant = ops.sum(ops.log(tf.linalg.diag_part(factor) + 1e-8), -1)
    return ops.cast(ops.mean(half_log_determinant) / side, "float32")


def _find_regions(x: Tensor) -> Tensor:
    """Returns the centred regions of each class, `[batch, classes, 9, regions]`."""
    x = ops.average_pool(x, _RMI_STRIDE, _RMI_STRIDE, "same")
    height, width = (side - _RMI_SIDE + 1 for side in x.shape[1:3])
    parts = [
        ops.reshape(
            x[:, row : row + height, column : column + width],
            (-1, height * width, x.shape[-1]),
        )
        for row in range(_RMI_SIDE)
        for column in range(_RMI_SIDE)
    ]
    x = ops.cast(ops.transpose(ops.stack(parts, 1), (0, 3, 1, 2)), "float64")
    return x - ops.mean(x, 3, keepdims=True)


_REGION_LOSSES = {"lovasz": lovasz_softmax, "dice": dice, "rmi": rmi}


def region_loss(labels: Tensor, logits: Tensor, config: TrainConfig) -> Tensor | float:
    """Returns the weighted region loss of a config; 0 without one."""
    if config.region_loss == "none":
        return 0.0
    loss = _REGION_LOSSES[config.region_loss](labels, logits, config.ignore_label)
    return config.region_loss_weight * loss


class Teacher:
    """Soft labels of a trained model, averaged over scales and mirrors."""

    def __init__(self, model: keras.Model, config: TrainConfig):
        from deeplab_tf.checkpoints import tf1

        teacher = build_model(model.model_config)
        print(f"{config.teacher}: {tf1.load_tf1_checkpoint(teacher, config.teacher)}")
        teacher.trainable = False
        self._network = keras.Model(
            teacher.input, teacher.get_layer("logits").output, trainable=False
        )
        self._scales = config.teacher_scales
        self._ignore_label = config.ignore_label
        self._stride = model.model_config.output_stride

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross-entropy to the soft labels at the logits' size."""
        size = tuple(logits.shape[1:3])
        soft = ops.stop_gradient(
            sum(
                self._probabilities(images, size, scale, is_mirrored)
                for scale in self._scales
                for is_mirrored in (False, True)
            )
        ) / (2 * len(self._scales))
        # Padding has no soft label.
        known = ops.cast(shrink_labels(labels, size) != self._ignore_label, "float32")
        losses = -ops.sum(soft * ops.log_softmax(logits), -1)
        return ops.sum(losses * known) / ops.maximum(ops.sum(known), 1.0)

    def _probabilities(
        self, images: Tensor, size: tuple, scale: float, is_mirrored: bool
    ) -> Tensor:
        sides = (
            align_size(int(side * scale), self._stride) for side in images.shape[1:3]
        )
        images = resize_bilinear(images, tuple(sides))
        images = images[:, :, ::-1] if is_mirrored else images
        logits = self._network(images, training=False)
        logits = logits[:, :, ::-1] if is_mirrored else logits
        return ops.softmax(resize_bilinear(logits, size))
