"""The dense prediction cell (1809.04184), a searched replacement for the ASPP."""

from collections.abc import Sequence

from keras import layers

from deeplab_tf.config import CellBranch
from deeplab_tf.models.layers import conv_bn_act, separable_conv
from deeplab_tf.models.resampling import ResizeLike, WindowMean

_SCOPE = "meta_architecture"
_FILTERS = 256


def _pyramid_pooling(x, branch: CellBranch, window, resizing, scope: str, **style):
    """Averages over a grid, projects the means and resizes them to `x`."""
    mean = WindowMean(grid_size=branch.grid_size, name=f"{scope}.mean", **window)
    pooled = conv_bn_act(mean(x), _FILTERS, 1, scope, **style)
    return ResizeLike(resizing=resizing, name=f"{scope}.resize")(pooled, x)


def _apply_branch(
    x, branch: CellBranch, multiplier: int, window, resizing, scope: str, **style
):
    """Applies pooling or a convolution; `multiplier` scales the atrous rates."""
    if branch.op == "pyramid_pooling":
        return _pyramid_pooling(x, branch, window, resizing, scope, **style)
    if branch.kernel == (1, 1):
        return conv_bn_act(x, _FILTERS, 1, scope, **style)
    rate = tuple(r * multiplier for r in branch.rate)
    return separable_conv(
        x, _FILTERS, scope, kernel_size=branch.kernel, rate=rate, **style
    )


def dense_prediction_cell(
    x,
    branches: Sequence[CellBranch],
    output_stride: int = 16,
    window: dict | None = None,
    dropout: float = 0.1,
    resizing: str = "align_corners",
    **style,
):
    """Returns the branches of a cell, concatenated and projected to 256 channels.

    Args:
        x: High-level features `[batch, height, width, channels]`.
        branches: The cell, with atrous rates for output stride 16.
        output_stride: Output stride of `x`, 8 or 16.
        window: Arguments of the `WindowMean` of pooling branches.
        dropout: Dropout rate before the projection.
        resizing: How to resize pooled features; see `resize_bilinear`.
        **style: `normalize` and `activation` of every convolution.
    """
    outputs = []
    for i, branch in enumerate(branches):
        source = x if branch.input < 0 else outputs[branch.input]
        scope = f"{_SCOPE}.branch{i}"
        options = (16 // output_stride, window or {}, resizing, scope)
        outputs.append(_apply_branch(source, branch, *options, **style))
    if len(outputs) > 1:
        outputs = [layers.Concatenate(name=f"{_SCOPE}.concat")(outputs)]
    name = f"{_SCOPE}.concat_projection"
    x = layers.Dropout(dropout, name=f"{name}_dropout")(outputs[0])
    return conv_bn_act(x, _FILTERS, 1, name, **style)
