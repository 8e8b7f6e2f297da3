"""Translates our models to PyTorch: the same layers, weights and multiply-adds."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import torch
from keras import layers, tree
from torch import nn
from torch.nn import functional

from deeplab_tf.models.calls import Call, trace_calls
from deeplab_tf.models.normalization import PixelScaling
from deeplab_tf.models.resampling import ResizeLike, WindowMean


class TorchDeepLab(nn.Module):
    """A DeepLab for images of one size, equal to the Keras model up to rounding.

    Takes RGB 0..255 `[batch, 3, height, width]` and returns float32 logits `[batch,
    num_classes, height, width]`, in training too.

    Args:
        model: A model of `build_model`.
        size: Height and width of the images.
        is_upsampled: Whether to resize the logits to the image, or keep the decoder's.
    """

    def __init__(
        self, model: keras.Model, size: tuple[int, int], is_upsampled: bool = True
    ):
        super().__init__()
        if not is_upsampled:
            model = keras.Model(model.input, model.get_layer("logits").output)
        shape = (1, *size, model.input.shape[-1])
        image = keras.Input(batch_shape=shape, dtype="float32")
        calls, (output,) = _trace_leaf_calls(model, [image])
        self._operations = nn.ModuleList()
        self._steps: list[tuple[list[int], int]] = []
        names = {id(image): 0}
        for call in calls:
            (given,) = call.outputs
            taken = [names[id(x)] for x in call.inputs]
            if call.layer is None:
                names[id(given)] = taken[0]
                continue
            names[id(given)] = len(self._steps) + 1
            self._operations.append(_translate(call))
            self._steps.append((taken, names[id(given)]))
        self._output = names[id(output)]
        last: dict[int, int] = {}
        for i, (taken, _) in enumerate(self._steps):
            last |= dict.fromkeys(taken, i)
        self._spent = [
            [name for name, at in last.items() if at == i and name != self._output]
            for i in range(len(self._steps))
        ]

    def forward(self, images):
        """Returns logits; see the class for shapes."""
        values = {0: images}
        steps = zip(self._steps, self._operations, self._spent, strict=True)
        for (taken, given), operation, spent in steps:
            values[given] = operation(*(values[name] for name in taken))
            for name in spent:
                del values[name]
        return values[self._output]


def _trace_leaf_calls(model: keras.Model, inputs: list) -> tuple[list[Call], list]:
    """Returns the calls of all layers, including nested models, and the outputs.

    Calls of None alias tensors across the boundary of a nested model.
    """
    calls, outputs = trace_calls(model, tree.pack_sequence_as(model.input, inputs))
    leaves = []
    for call in calls:
        if isinstance(call.layer, keras.Model):
            inner_inputs = [keras.Input(batch_shape=x.shape) for x in call.inputs]
            inner, inner_outputs = _trace_leaf_calls(call.layer, inner_inputs)
            leaves += [*_make_alias_calls(call.inputs, inner_inputs), *inner]
            leaves += _make_alias_calls(inner_outputs, call.outputs)
        else:
            leaves.append(call)
    return leaves, outputs


def _make_alias_calls(tensors: list, names: list) -> list[Call]:
    """Returns calls without a layer, which give tensors a second name."""
    return [Call(None, [x], [y]) for x, y in zip(tensors, names, strict=True)]


class _Lambda(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable):
        super().__init__()
        self._function = function

    def forward(self, *inputs):
        return self._function(*inputs)


class _Rescaling(nn.Module):
    """Scales pixels as the first layer of our models does."""

    def __init__(self, layer: PixelScaling):
        super().__init__()
        self._scale = layer.scale
        offset = np.reshape(np.asarray(layer.offset, np.float32), (1, -1, 1, 1))
        self.register_buffer("_offset", torch.tensor(offset))

    def forward(self, x):
        return x * self._scale + self._offset


def _translate(call: Call) -> nn.Module:
    """Returns the PyTorch module of a layer call; ValueError for other layers."""
    for kind, translate in _TRANSLATIONS:
        if isinstance(call.layer, kind):
            return translate(call)
    kind = type(call.layer).__name__
    raise ValueError(f"no PyTorch module for {call.layer.name}, a {kind}")


def _translate_activation(call: Call) -> nn.Module:
    name = call.layer.get_config()["activation"]
    return {"relu": nn.ReLU, "relu6": nn.ReLU6}[name]()


def _translate_zero_padding(call: Call) -> nn.Module:
    (top, bottom), (left, right) = call.layer.padding
    return nn.ZeroPad2d((left, right, top, bottom))


def _translate_max_pooling(call: Call) -> nn.Module:
    layer = call.layer
    pool = nn.MaxPool2d(layer.pool_size, layer.strides)
    size = call.inputs[0].shape[1:3]
    margins = _compute_same_padding(size, layer.pool_size, layer.strides, (1, 1))
    if layer.padding == "valid" or not any(margins):
        return pool
    return nn.Sequential(nn.ConstantPad2d(margins, -torch.inf), pool)


def _translate_resize(call: Call) -> nn.Module:
    size = tuple(call.outputs[0].shape[1:3])
    options = {"size": size, "mode": "bilinear", "align_corners": True}
    return _Lambda(lambda x, like: functional.interpolate(x, **options))


def _translate_window_mean(call: Call) -> nn.Module:
    layer = call.layer
    if layer.crop_size is None:
        return nn.AdaptiveAvgPool2d(1)
    return nn.AvgPool2d(layer.window(call.inputs[0].shape[1:3]), layer.strides)


def _compute_same_padding(size, kernel, strides, rates) -> tuple[int, int, int, int]:
    """Returns SAME padding in PyTorch's order: left, right, top, bottom."""
    sides = []
    for n, k, stride, rate in zip(size, kernel, strides, rates, strict=True):
        extent = (k - 1) * rate + 1
        total = max(0, (-(-n // stride) - 1) * stride + extent - n)
        sides.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = sides
    return left, right, top, bottom


def _translate_convolution(call: Call) -> nn.Module:
    """Returns a convolution with the same weights.

    A padding layer comes first if the padding is asymmetric.
    """
    layer, margins = call.layer, (0, 0, 0, 0)
    if layer.padding == "same":
        size = call.inputs[0].shape[1:3]
        margins = _compute_same_padding(
            size, layer.kernel_size, layer.strides, layer.dilation_rate
        )
    left, right, top, bottom = margins
    is_even = left == right and top == bottom
    is_depthwise = isinstance(layer, layers.DepthwiseConv2D)
    # Kernels are [height, width, channels, 1] if depthwise, else [.., in, out].
    order = (2, 3, 0, 1) if is_depthwise else (3, 2, 0, 1)
    kernel = np.ascontiguousarray(layer.kernel.numpy().transpose(order))
    filters, depth = kernel.shape[:2]
    convolution = nn.Conv2d(
        filters if is_depthwise else depth,
        filters,
        layer.kernel_size,
        stride=layer.strides,
        padding=(top, left) if is_even else 0,
        dilation=layer.dilation_rate,
        groups=filters if is_depthwise else 1,
        bias=layer.use_bias,
    )
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor(kernel))
        if layer.use_bias:
            convolution.bias.copy_(torch.tensor(layer.bias.numpy()))
    if is_even:
        return convolution
    return nn.Sequential(nn.ZeroPad2d(margins), convolution)


def _translate_batch_norm(call: Call) -> nn.Module:
    """Returns a batch normalisation with the same statistics and weights."""
    layer = call.layer
    norm = nn.BatchNorm2d(
        layer.gamma.shape[0], eps=layer.epsilon, momentum=1.0 - layer.momentum
    )
    pairs = (
        (norm.weight, layer.gamma),
        (norm.bias, layer.beta),
        (norm.running_mean, layer.moving_mean),
        (norm.running_var, layer.moving_variance),
    )
    with torch.no_grad():
        for tensor, variable in pairs:
            tensor.copy_(torch.tensor(variable.numpy()))
    return norm


_TRANSLATIONS: tuple[tuple[type, Callable[[Call], nn.Module]], ...] = (
    (layers.DepthwiseConv2D | layers.Conv2D, _translate_convolution),
    (layers.BatchNormalization, _translate_batch_norm),
    (layers.Activation, _translate_activation),
    (layers.Add, lambda call: _Lambda(lambda *x: functools.reduce(torch.add, x))),
    (layers.Concatenate, lambda call: _Lambda(lambda *x: torch.cat(x, 1))),
    (layers.ZeroPadding2D, _translate_zero_padding),
    (layers.MaxPooling2D, _translate_max_pooling),
    (ResizeLike, _translate_resize),
    (WindowMean, _translate_window_mean),
    (PixelScaling, lambda call: _Rescaling(call.layer)),
    (layers.Dropout, lambda call: nn.Dropout(call.layer.rate)),
    (layers.Identity | layers.InputLayer, lambda call: nn.Identity()),
)
