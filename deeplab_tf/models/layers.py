"""The primitives of every DeepLab network, and the names of their variables.

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
_LEAVES = {"kernel": "weights", "bias": "biases"}


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


@keras.saving.register_keras_serializable("deeplab_tf")
class WindowMean(layers.Layer):
    """Averages features over a window: image-level pooling (DeepLabv3, Fig. 5b).

    Args:
        window: Height and width of the window in feature cells; None is the
            whole map, whose mean is one cell.
        strides: Steps of the window.
    """

    def __init__(self, window=None, strides=(1, 1), **kwargs):
        super().__init__(**kwargs)
        self.window = window and tuple(window)
        self.strides = tuple(strides)

    def call(self, x):
        """Returns the means of `x`, `[b, h, w, channels]`."""
        if self.window is None:
            return ops.mean(x, axis=(1, 2), keepdims=True)
        return ops.average_pool(
            x, self.window, self.strides, "valid", data_format="channels_last"
        )

    def get_config(self):
        """Returns the arguments, for saving."""
        own = {"window": self.window, "strides": self.strides}
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
):
    """Returns a SAME convolution of `x`, by the layer `scope`."""
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        dilation_rate=rate,
        padding="same",
        use_bias=False,
        # Without a word from the caller, slim's default: Xavier uniform.
        kernel_initializer=initializer or "glorot_uniform",
        data_format="channels_last",
        name=scope,
    )(x)


def depthwise_conv(
    x, kernel_size: int, scope: str, *, strides: int = 1, rate: int = 1, initializer
):
    """Returns a SAME depthwise convolution of `x`, by the layer `scope`."""
    return layers.DepthwiseConv2D(
        kernel_size,
        strides=strides,
        dilation_rate=rate,
        padding="same",
        use_bias=False,
        depthwise_initializer=initializer,
        data_format="channels_last",
        name=scope,
    )(x)


def activate(x, activation: str | None, scope: str):
    """Returns `activation` of `x`; None returns `x` itself."""
    if activation is None:
        return x
    return layers.Activation(activation, name=f"{scope}.{activation}")(x)


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
        normalize: `(x, scope) -> x`; `batch_norm` with its constants bound.
        activation: Name of the activation; None is linear.
        **conv_options: Passed to `conv`.
    """
    x = normalize(conv(x, filters, kernel_size, scope, **conv_options), scope)
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
    x, filters: int, scope: str, *, normalize, rate: int = 1, stddevs=(0.33, 0.06)
):
    """Returns a 3x3 atrous separable convolution (DeepLabv3+, Sec. 3.1).

    Batch normalisation and ReLU follow both halves, `<scope>_depthwise` and
    `<scope>_pointwise`; both are initialised as the official heads are.
    """
    x = depthwise_bn_act(
        x,
        3,
        f"{scope}_depthwise",
        normalize=normalize,
        rate=rate,
        initializer=truncated_normal(stddevs[0]),
    )
    return conv_bn_act(
        x,
        filters,
        1,
        f"{scope}_pointwise",
        normalize=normalize,
        initializer=truncated_normal(stddevs[1]),
    )


def head_batch_norm(momentum: float | None):
    """Returns the normaliser of ASPP, decoder and projections (0.9997, 1e-5)."""
    return functools.partial(
        batch_norm, momentum=0.9997 if momentum is None else momentum, epsilon=1e-5
    )


def leaf_layers(model):
    """Yields every layer of a model, those of nested models included."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaf_layers(layer)
        else:
            yield layer


def official_variables(model) -> dict:
    """Returns `{official name: keras.Variable}` of a DeepLab model, in order."""
    variables = {}
    for layer in leaf_layers(model):
        for variable in layer.variables:
            leaf = _LEAVES.get(variable.name, variable.name)
            if isinstance(layer, layers.DepthwiseConv2D):
                leaf = "depthwise_weights"
            if not isinstance(layer, layers.Dropout):  # the state of its seed
                variables[f"{layer.name.replace('.', '/')}/{leaf}"] = variable
    return variables


def dropout_seeds(model) -> dict:
    """Returns `{layer name: keras.Variable}`, which the next dropouts follow from."""
    return {
        layer.name: layer.seed_generator.state
        for layer in leaf_layers(model)
        if isinstance(layer, layers.Dropout) and layer.rate > 0
    }


def batch_normalizations(model) -> list[BatchNormalization]:
    """Returns every batch normalisation of a model."""
    return [x for x in leaf_layers(model) if isinstance(x, BatchNormalization)]
