"""Bilinear resizing, and means over windows.

Both multiply by a small matrix along each axis, which is exact, differentiable and the
same on every backend, even for sizes known only at run time.
"""

from fractions import Fraction

import keras
from keras import layers, ops


def scale_dimension(size, scale: float):
    """Returns the scaled length of a side of `size` pixels, rounded as in DeepLab.

    This is `int((size - 1) * scale + 1)`; for `scale = 1 / k` it is the output length
    of a SAME convolution of stride k. `size` is an int or an integer tensor.
    """
    if isinstance(size, int):
        return int((size - 1.0) * scale + 1.0)
    ratio = Fraction(scale).limit_denominator(1000)
    return (size - 1) * ratio.numerator // ratio.denominator + 1


def align_size(size, stride: int):
    """Returns the next `k * stride + 1`, where features and pixels align."""
    return (size + stride - 2) // stride * stride + 1


def spatial_size(x):
    """Returns height and width of `[batch, height, width, ...]`."""
    return tuple(ops.shape(x)[1:3])


def _sample_positions(source, target, resizing: str):
    """Returns where the samples of a side lie among the cells of the source."""
    index = ops.cast(ops.arange(target), "float32")
    if resizing == "half_pixel":
        step = ops.cast(source, "float32") / ops.cast(target, "float32")
        last = ops.cast(source - 1, "float32")
        return ops.clip((index + 0.5) * step - 0.5, 0.0, last)
    steps = ops.cast(ops.maximum(target - 1, 1), "float32")
    return index * (ops.cast(source - 1, "float32") / steps)


def _interpolation_matrix(source, target, resizing: str, dtype):
    """Returns `[target, source]`; each row interpolates two neighbours."""
    position = _sample_positions(source, target, resizing)
    cells = ops.cast(ops.arange(source), "float32")
    distance = ops.abs(ops.expand_dims(position, 1) - ops.expand_dims(cells, 0))
    return ops.cast(ops.relu(1.0 - distance), dtype)


def resize_bilinear(x, size, resizing: str = "align_corners"):
    """Resizes features bilinearly, keeping their dtype.

    Args:
        x: `[batch, height, width, channels]`.
        size: Height and width, ints or integer tensors.
        resizing: "align_corners", TF1's `align_corners=True`, which Keras and TF2 lack;
            or "half_pixel", PyTorch's `align_corners=False`.
    """
    height, width = spatial_size(x)
    if _is_equal(height, size[0]) and _is_equal(width, size[1]):
        return x
    batch, channels = ops.shape(x)[0], x.shape[-1]
    rows = _interpolation_matrix(height, size[0], resizing, x.dtype)
    columns = _interpolation_matrix(width, size[1], resizing, x.dtype)
    x = ops.matmul(rows, ops.reshape(x, (batch, height, width * channels)))
    x = ops.matmul(columns, ops.reshape(x, (batch * size[0], width, channels)))
    return ops.reshape(x, (batch, size[0], size[1], channels))


def _is_equal(a, b) -> bool:
    """Returns whether two sizes are known to be equal."""
    return isinstance(a, int) and isinstance(b, int) and a == b


@keras.saving.register_keras_serializable("deeplab_tf")
class ResizeLike(layers.Layer):
    """Resizes to the scaled size of another tensor; see `resize_bilinear`."""

    def __init__(self, scale: float = 1.0, resizing: str = "align_corners", **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.resizing = resizing

    def _target_size(self, size):
        return tuple(s and scale_dimension(s, self.scale) for s in size)

    def call(self, x, like):
        """Returns `x` at the scaled size of `like`, both `[b, h, w, channels]`."""
        size = tuple(scale_dimension(s, self.scale) for s in spatial_size(like))
        return resize_bilinear(x, size, self.resizing)

    def compute_output_spec(self, x, like):
        """Returns the symbolic output; open sizes stay open."""
        size = self._target_size(like.shape[1:3])
        shape = (x.shape[0], *size, x.shape[-1])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        """Returns the constructor arguments."""
        own = {"scale": self.scale, "resizing": self.resizing}
        return {**super().get_config(), **own}


def _averaging_matrix(source, window, stride: int):
    """Returns `[target, source]`; each row averages `window` neighbours."""
    target = (source - window) // stride + 1
    start = ops.expand_dims(ops.arange(target) * stride, 1)
    cells = ops.expand_dims(ops.arange(source), 0)
    inside = ops.logical_and(cells >= start, cells < start + window)
    return ops.cast(inside, "float32") / ops.cast(window, "float32")


@keras.saving.register_keras_serializable("deeplab_tf")
class WindowMean(layers.Layer):
    """Averages features over a window: image-level pooling (DeepLabv3, Fig. 5b).

    Windows are clipped to the size of the features.

    Args:
        crop_size: Height and width of the window in image pixels; None means the entire
            image.
        output_stride: Image pixels per feature cell.
        grid_size: Rows and columns into which the window is split; each part is
            averaged.
        strides: Strides of the window, in cells.
        image_scale: Scale of the image in multi-scale inference; the window is scaled
            by it.
    """

    def __init__(
        self,
        crop_size=None,
        output_stride: int = 1,
        grid_size=(1, 1),
        strides=(1, 1),
        image_scale: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.crop_size = crop_size and tuple(crop_size)
        self.output_stride = output_stride
        self.grid_size = tuple(grid_size)
        self.strides = tuple(strides)
        self.image_scale = image_scale

    def window_size(self, size):
        """Returns the window's height and width in cells of features of `size`."""
        if self.crop_size is None:
            cells = size
        else:
            pixels = [scale_dimension(c, self.image_scale) for c in self.crop_size]
            cells = [scale_dimension(c, 1.0 / self.output_stride) for c in pixels]
        parts = [-(-c // grid) for c, grid in zip(cells, self.grid_size, strict=True)]
        return [_minimum(p, s) for p, s in zip(parts, size, strict=True)]

    def call(self, x):
        """Returns the means of `x`, `[b, h, w, channels]`."""
        if self.crop_size is None and self.grid_size == (1, 1):
            return ops.mean(x, axis=(1, 2), keepdims=True)
        batch, (height, width), channels = ops.shape(x)[0], spatial_size(x), x.shape[-1]
        window = self.window_size((height, width))
        rows = _averaging_matrix(height, window[0], self.strides[0])
        columns = _averaging_matrix(width, window[1], self.strides[1])
        means = ops.reshape(ops.cast(x, "float32"), (batch, height, width * channels))
        means = ops.matmul(rows, means)
        means = ops.reshape(means, (-1, width, channels))
        means = ops.matmul(columns, means)
        size = (ops.shape(rows)[0], ops.shape(columns)[0])
        return ops.cast(ops.reshape(means, (batch, *size, channels)), x.dtype)

    def compute_output_spec(self, x):
        """Returns the symbolic output; open sizes stay open."""
        size = x.shape[1:3]
        if self.crop_size is None and self.grid_size == (1, 1):
            size = (1, 1)
        elif None in size:
            size = (None, None)
        else:
            window, strides = self.window_size(size), self.strides
            size = [
                (n - w) // s + 1 for n, w, s in zip(size, window, strides, strict=True)
            ]
        shape = (x.shape[0], *size, x.shape[-1])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        """Returns the constructor arguments."""
        own = {
            "crop_size": self.crop_size,
            "output_stride": self.output_stride,
            "grid_size": self.grid_size,
            "strides": self.strides,
            "image_scale": self.image_scale,
        }
        return {**super().get_config(), **own}


def _minimum(a, b):
    """Returns the smaller of two sizes, ints or integer tensors."""
    known = isinstance(a, int) and isinstance(b, int)
    return min(a, b) if known else ops.minimum(a, b)
