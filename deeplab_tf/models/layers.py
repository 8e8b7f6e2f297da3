"""The primitives of every DeepLab network.

Layers are called by their scope in the official graph, with `.` for `/` (which
Keras refuses), so the layer `aspp0.BatchNorm` owns `aspp0/BatchNorm/gamma`.
"""

import functools
from fractions import Fraction

import keras
from keras import layers, ops

# Every fused batch normalisation of TF1 ran with at least this epsilon, so an
# official "1e-5" is in truth this.
_FUSED_EPSILON = 1.001e-5


def scale_dimension(size, scale: float):
    """Returns the length that DeepLab gives to `size` pixels at a scale.

    `int((size - 1) * scale + 1)`; for `scale = 1 / k` the number of cells of a
    SAME convolution of stride k.

    Args:
        size: Length in pixels, an int or an integer tensor.
        scale: Positive factor.
    """
    if isinstance(size, int):
        return int((size - 1.0) * scale + 1.0)
    ratio = Fraction(scale).limit_denominator(1000)
    return (size - 1) * ratio.numerator // ratio.denominator + 1


def spatial_size(x):
    """Returns height and width of `[batch, height, width, channels]`."""
    return tuple(ops.shape(x)[1:3])


def _interpolation_matrix(source, target, dtype):
    """Returns `[target, source]`: each row blends two neighbours linearly."""
    steps = ops.cast(ops.maximum(target - 1, 1), "float32")
    step = ops.cast(source - 1, "float32") / steps
    position = ops.cast(ops.arange(target), "float32") * step
    cells = ops.cast(ops.arange(source), "float32")
    distance = ops.abs(ops.expand_dims(position, 1) - ops.expand_dims(cells, 0))
    return ops.cast(ops.relu(1.0 - distance), dtype)


def resize_bilinear(x, size):
    """Returns `x` at another size, corner pixels staying on corner pixels.

    TF1's `align_corners=True`, which no resize of Keras or TF2 offers; two
    products with interpolation matrices are exact, differentiable and fast on
    every backend.

    Args:
        x: `[batch, height, width, channels]`.
        size: Target height and width, ints or integer tensors.

    Returns:
        `[batch, size[0], size[1], channels]` of the dtype of `x`.
    """
    height, width = spatial_size(x)
    if _equal(height, size[0]) and _equal(width, size[1]):
        return x
    batch, channels = ops.shape(x)[0], x.shape[-1]
    rows = _interpolation_matrix(height, size[0], x.dtype)
    columns = _interpolation_matrix(width, size[1], x.dtype)
    x = ops.matmul(rows, ops.reshape(x, (batch, height, width * channels)))
    x = ops.matmul(columns, ops.reshape(x, (batch * size[0], width, channels)))
    return ops.reshape(x, (batch, size[0], size[1], channels))


def _equal(a, b) -> bool:
    """Whether two sizes are known to be the same."""
    return isinstance(a, int) and isinstance(b, int) and a == b


@keras.saving.register_keras_serializable("deeplab_tf")
class ResizeLike(layers.Layer):
    """Resizes bilinearly, corners aligned, to the size of another tensor.

    Args:
        scale: The target is `scale_dimension` of the other tensor's size.
    """

    def __init__(self, scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def _target(self, size):
        return tuple(s and scale_dimension(s, self.scale) for s in size)

    def call(self, x, like):
        """Returns `x` at the scaled size of `like`, both `[b, h, w, channels]`."""
        size = tuple(scale_dimension(s, self.scale) for s in spatial_size(like))
        return resize_bilinear(x, size)

    def compute_output_spec(self, x, like):
        """Returns the symbolic result; sizes that are open stay open."""
        size = self._target(like.shape[1:3])
        shape = (x.shape[0], *size, x.shape[-1])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        """Returns the arguments, for saving."""
        return {**super().get_config(), "scale": self.scale}


def _averaging_matrix(source, window, stride: int):
    """Returns `[target, source]`: each row averages `window` neighbours."""
    target = (source - window) // stride + 1
    start = ops.expand_dims(ops.arange(target) * stride, 1)
    cells = ops.expand_dims(ops.arange(source), 0)
    inside = ops.logical_and(cells >= start, cells < start + window)
    return ops.cast(inside, "float32") / ops.cast(window, "float32")


@keras.saving.register_keras_serializable("deeplab_tf")
class WindowMean(layers.Layer):
    """Averages features over a window: image-level pooling (DeepLabv3, Fig. 5b).

    A window larger than the features is cut to them.

    Args:
        crop_size: Height and width of the window in image pixels; None is the
            whole image.
        output_stride: Image pixels per feature cell.
        grid_size: The window is split into so many rows and columns, and each
            part of that size is averaged on its own.
        strides: Steps of the window, in cells.
        image_scale: Scale at which the network sees the image; the window keeps
            its share of it.
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

    def window(self, size):
        """Returns the cells averaged into one, of features of `size` cells."""
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
        window = self.window((height, width))
        rows = _averaging_matrix(height, window[0], self.strides[0])
        columns = _averaging_matrix(width, window[1], self.strides[1])
        means = ops.reshape(ops.cast(x, "float32"), (batch, height, width * channels))
        means = ops.matmul(rows, means)
        means = ops.reshape(means, (-1, width, channels))
        means = ops.matmul(columns, means)
        size = (ops.shape(rows)[0], ops.shape(columns)[0])
        return ops.cast(ops.reshape(means, (batch, *size, channels)), x.dtype)

    def compute_output_spec(self, x):
        """Returns the symbolic result; sizes that are open stay open."""
        size = x.shape[1:3]
        if self.crop_size is None and self.grid_size == (1, 1):
            size = (1, 1)
        elif None in size:
            size = (None, None)
        else:
            window, strides = self.window(size), self.strides
            size = [
                (n - w) // s + 1 for n, w, s in zip(size, window, strides, strict=True)
            ]
        shape = (x.shape[0], *size, x.shape[-1])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        """Returns the arguments, for saving."""
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


@keras.saving.register_keras_serializable("deeplab_tf")
class PixelScaling(layers.Layer):
    """Scales pixels: `x * scale + offset`.

    Keras' own Rescaling loads TensorFlow on every backend where it is installed.

    Args:
        scale: Factor.
        offset: One for all channels, or one for each.
    """

    def __init__(self, scale: float = 1.0, offset=0.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.offset = offset

    def call(self, x):
        """Returns the scaled `[b, h, w, channels]`."""
        return x * self.scale + ops.convert_to_tensor(self.offset, x.dtype)

    def compute_output_shape(self, input_shape):
        """Returns the shape of the input."""
        return input_shape

    def get_config(self):
        """Returns the arguments, for saving."""
        own = {"scale": self.scale, "offset": self.offset}
        return {**super().get_config(), **own}


def normalize_batch(x, gamma, beta, epsilon: float):
    """Returns `x` normalised by its own moments, these being differentiated too.

    Args:
        x: `[batch, height, width, channels]`.
        gamma: Scale per channel.
        beta: Offset per channel.
        epsilon: Added to the variance.

    Returns:
        The normalised features, the mean and the unbiased variance per channel.
    """
    mean, variance = ops.moments(x, axes=(0, 1, 2))
    batch, height, width, _ = ops.shape(x)
    count = ops.cast(batch * height * width, x.dtype)
    scale = gamma * ops.rsqrt(variance + epsilon)
    unbiased = variance * (count / ops.maximum(count - 1.0, 1.0))
    return x * scale + (beta - mean * scale), mean, unbiased


@keras.saving.register_keras_serializable("deeplab_tf")
class BatchNormalization(layers.BatchNormalization):
    """Batch normalisation with the semantics of the official graph.

    The moving variance takes the unbiased batch variance (n / (n - 1)), as the
    fused op of TF1 does. `frozen` normalises with the moving statistics in
    training too while gamma and beta keep learning: the official
    `fine_tune_batch_norm=False`, where Keras' `trainable=False` would stop them.

    `normalize_batch` may be set to another implementation of the function of
    that name, as the trainer does.
    """

    def __init__(self, frozen: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.frozen = frozen
        self.normalize_batch = normalize_batch

    def call(self, inputs, training=None):
        """Returns the normalised `[b, h, w, channels]`; training uses the batch."""
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        if training and not self.frozen:
            x, *moments = self.normalize_batch(x, self.gamma, self.beta, self.epsilon)
            moving_moments = (self.moving_mean, self.moving_variance)
            for moving, value in zip(moving_moments, moments, strict=True):
                moving.assign(moving + (1.0 - self.momentum) * (value - moving))
        else:
            scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
            x = x * scale + (self.beta - self.moving_mean * scale)
        return ops.cast(x, self.compute_dtype)

    def get_config(self):
        """Returns the arguments, for saving."""
        return {**super().get_config(), "frozen": self.frozen}


def truncated_normal(stddev: float):
    """Returns the initialiser that the official code names in most places."""
    return keras.initializers.TruncatedNormal(stddev=stddev)


def batch_norm(x, scope: str, *, momentum: float, epsilon: float):
    """Returns `x` normalised, by the layer `<scope>.BatchNorm`."""
    return BatchNormalization(
        momentum=momentum,
        epsilon=max(epsilon, _FUSED_EPSILON),
        name=f"{scope}.BatchNorm",
    )(x)


def conv(
    x,
    filters: int,
    kernel_size: int,
    scope: str,
    *,
    strides: int = 1,
    rate: int = 1,
    initializer=None,
    padding: str = "same",
    **layer_options,
):
    """Returns a convolution of `x`, by the layer `scope`, without a bias.

    Args:
        x: `[batch, height, width, channels]`.
        filters: Depth of the output.
        kernel_size: Side of the kernel.
        scope: Official scope with `.` for `/`.
        strides: Step of the kernel.
        rate: Atrous rate, one for both axes or one for each.
        initializer: Of the kernel; None is slim's default, Xavier uniform.
        padding: "same", or "fixed" as in `pad_fixed`.
        **layer_options: Passed to the layer.
    """
    if strides > 1 and rate != 1:
        # No backend has both at once: a multi-grid in the last unit of a cascade's
        # block needs it. The dense convolution is sampled instead.
        dense = {"rate": rate, "initializer": initializer, **layer_options}
        return subsample(conv(x, filters, kernel_size, scope, **dense), strides, scope)
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        dilation_rate=rate,
        kernel_initializer=initializer or "glorot_uniform",
        data_format="channels_last",
        name=scope,
        **{"use_bias": False} | _padded(padding, strides) | layer_options,
    )(pad_fixed(x, kernel_size, scope) if _is_fixed(padding, strides) else x)


def depthwise_conv(
    x,
    kernel_size: int,
    scope: str,
    *,
    strides: int = 1,
    rate: int = 1,
    initializer=None,
    padding: str = "same",
):
    """Returns a depthwise convolution of `x`, by the layer `scope`; see `conv`."""
    return layers.DepthwiseConv2D(
        kernel_size,
        strides=strides,
        dilation_rate=rate,
        use_bias=False,
        depthwise_initializer=initializer or "glorot_uniform",
        data_format="channels_last",
        name=scope,
        **_padded(padding, strides),
    )(pad_fixed(x, kernel_size, scope) if _is_fixed(padding, strides) else x)


def subsample(x, strides: int, scope: str):
    """Returns every `strides`-th row and column of `x`, the first ones included."""
    pool = layers.MaxPooling2D(
        1, strides, data_format="channels_last", name=f"{scope}.subsample"
    )
    return pool(x)


def _is_fixed(padding: str, strides: int) -> bool:
    return padding == "fixed" and strides > 1


def _padded(padding: str, strides: int) -> dict[str, str]:
    return {"padding": "valid" if _is_fixed(padding, strides) else "same"}


def pad_fixed(x, kernel_size: int, scope: str):
    """Returns `x` with as many zeros around it whatever its size.

    A strided convolution of it is the dense one, sampled at even positions; the
    SAME padding of TensorFlow shifts images of even size by a pixel instead.
    """
    before = (kernel_size - 1) // 2
    sides = (before, kernel_size - 1 - before)
    pad = layers.ZeroPadding2D(
        (sides, sides), data_format="channels_last", name=f"{scope}.pad"
    )
    return pad(x)


@keras.saving.register_keras_serializable("deeplab_tf")
def q_sigmoid(x):
    """Returns the sigmoid of three straight pieces, with the official constant."""
    return ops.relu6(x + 3.0) * 0.16667


@keras.saving.register_keras_serializable("deeplab_tf")
def clip(x):
    """Returns `x` in [-6, 6], for quantised inference."""
    return ops.clip(x, -6.0, 6.0)


_ACTIVATIONS = {"q_sigmoid": q_sigmoid, "clip": clip}


def activate(x, activation: str | None, scope: str):
    """Returns `activation` of `x`; None returns `x` itself."""
    if activation is None:
        return x
    function = _ACTIVATIONS.get(activation, activation)
    return layers.Activation(function, name=f"{scope}.{activation}")(x)


def conv_bn_act(
    x,
    filters: int,
    kernel_size: int,
    scope: str,
    *,
    normalize,
    activation: str | None = "relu",
    **conv_options,
):
    """Returns convolution, batch normalisation and activation of `x`.

    Args:
        x: `[batch, height, width, channels]`.
        filters: Depth of the output.
        kernel_size: Side of the kernel.
        scope: Official scope with `.` for `/`.
        normalize: `(x, scope) -> x`, `batch_norm` with its constants bound; None
            adds a bias instead.
        activation: Name of the activation; None is linear.
        **conv_options: Passed to `conv`.
    """
    use_bias = normalize is None
    x = conv(x, filters, kernel_size, scope, use_bias=use_bias, **conv_options)
    if normalize is not None:
        x = normalize(x, scope)
    return activate(x, activation, scope)


def depthwise_bn_act(
    x,
    kernel_size: int,
    scope: str,
    *,
    normalize,
    activation: str | None = "relu",
    **conv_options,
):
    """Returns depthwise convolution, batch normalisation and activation of `x`."""
    x = normalize(depthwise_conv(x, kernel_size, scope, **conv_options), scope)
    return activate(x, activation, scope)


def separable_conv(
    x, filters: int, scope: str, *, kernel_size: int = 3, rate: int = 1, **style
):
    """Returns an atrous separable convolution of a head (DeepLabv3+, Sec. 3.1).

    Args:
        x: `[batch, height, width, channels]`.
        filters: Depth of the output.
        scope: Official scope; the halves are `<scope>_depthwise` and
            `<scope>_pointwise`.
        kernel_size: Side of the kernel.
        rate: Atrous rate, one for both axes or one for each.
        **style: `normalize` and `activation` that follow both halves.
    """
    depthwise = {"rate": rate, "initializer": truncated_normal(0.33)}
    x = depthwise_bn_act(x, kernel_size, f"{scope}_depthwise", **depthwise, **style)
    pointwise = truncated_normal(0.06)
    return conv_bn_act(
        x, filters, 1, f"{scope}_pointwise", initializer=pointwise, **style
    )


def head_style(momentum: float | None = None, bounded: bool = False) -> dict:
    """Returns `normalize` and `activation` of everything behind the backbone.

    Args:
        momentum: Decay of the moving statistics, None for 0.9997.
        bounded: Whether ReLU6 stands for ReLU.
    """
    if momentum is None:
        momentum = 0.9997
    normalize = functools.partial(batch_norm, momentum=momentum, epsilon=1e-5)
    return {"normalize": normalize, "activation": "relu6" if bounded else "relu"}
