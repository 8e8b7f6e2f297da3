"""Counts the multiply-adds and parameters of a model, following the papers.

`python -m deeplab_tf.models.complexity` compares them with the published figures, as
described in docs/complexity.md.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import keras
from keras import layers

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config import ModelConfig
from deeplab_tf.config.options import SCALES, SIDE
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.normalization import PixelScaling
from deeplab_tf.models.resampling import WindowMean, scale_dimension
from deeplab_tf.models.variables import leaf_layers
from deeplab_tf.presets import PRESETS

CONVENTIONS = ("exact", "tf1", "profiler")


def build_uninitialized(build: Callable[[], keras.Model]) -> keras.Model:
    """Returns the model that a function builds, without allocating its variables."""

    def build_in_scope() -> keras.Model:
        with keras.StatelessScope(initialize_variables=False):
            return build()

    # In its own thread: otherwise Keras initialises the variables when the next
    # StatelessScope of this thread ends, gigabytes for a few models.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(build_in_scope).result()


def _build_for_one_image(config: ModelConfig, size: tuple[int, int]) -> keras.Model:
    return build_uninitialized(
        lambda: build_model(config, image_size=size, batch_size=1)
    )


def _count_tf1_positions(cells: int, kernel_size: int, rate: int) -> int:
    """Counts the positions at which TF1 applied an atrous kernel along an axis.

    SpaceToBatch gathered the pixels of each phase and padded all phases to one length.
    """
    if rate == 1:
        return cells
    margin = kernel_size - 1
    return rate * (-(-(cells + margin * rate) // rate) - margin)


def _count_convolution(layer: layers.Layer, convention: str) -> int:
    """Counts the multiply-adds of a layer in a convention of `multiply_adds`."""
    _, *size, filters = layer.output.shape
    if convention != "exact":
        sides = zip(size, layer.kernel_size, layer.dilation_rate, strict=True)
        size = [_count_tf1_positions(*side) for side in sides]
    # Each filter of a depthwise kernel reads a single channel.
    depth = 1 if isinstance(layer, layers.DepthwiseConv2D) else layer.kernel.shape[2]
    return prod(size) * prod(layer.kernel_size) * depth * filters


def _count_other_operations(layer: layers.Layer) -> int:
    """Counts the operations that the profiler counted in addition to convolutions."""
    elements = prod(layer.output.shape)
    if isinstance(layer, PixelScaling):
        # Scaling is a product and a sum; subtracting the mean is a single operation.
        return elements * (1 if layer.scale == 1.0 else 2)
    if isinstance(layer, layers.Add):
        return elements * (len(layer.input) - 1)
    if isinstance(layer, layers.MaxPooling2D):
        return elements * prod(layer.pool_size)
    if isinstance(layer, WindowMean):
        return elements * prod(layer.window_size(layer.input.shape[1:3]))
    return 0


def _count_weight_operations(layer: layers.Layer) -> int:
    """Counts the operations that the profiler counted for weights.

    These are two per weight for random initialisation and three for the L2 loss, which
    depthwise kernels do not have.
    """
    per_weight = 2 if isinstance(layer, layers.DepthwiseConv2D) else 5
    return per_weight * prod(layer.kernel.shape)


class _Counts(NamedTuple):
    """Multiply-adds of one pass, and the profiler's other operations."""

    exact: int
    tf1: int
    other: int
    weights: int


def _find_convolutions(model: keras.Model) -> list[layers.Layer]:
    kinds = layers.Conv2D | layers.DepthwiseConv2D
    return [layer for layer in leaf_layers(model) if isinstance(layer, kinds)]


def convolution_multiply_adds(model: keras.Model) -> int:
    """Counts the exact multiply-adds of the convolutions in any functional model.

    The input of the model must be one image of known size.
    """
    return sum(
        _count_convolution(layer, "exact") for layer in _find_convolutions(model)
    )


@functools.lru_cache(maxsize=512)
def _count_operations(config: ModelConfig, size: tuple[int, int]) -> _Counts:
    """Counts the operations of one pass over an image, in each convention."""
    model = _build_for_one_image(config, size)
    convolutions = _find_convolutions(model)
    return _Counts(
        exact=convolution_multiply_adds(model),
        tf1=sum(_count_convolution(layer, "tf1") for layer in convolutions),
        other=sum(_count_other_operations(layer) for layer in leaf_layers(model)),
        weights=sum(_count_weight_operations(layer) for layer in convolutions),
    )


@check_arguments(crop_size=SIDE, convention=CONVENTIONS, scales=SCALES)
def multiply_adds(
    config: ModelConfig,
    crop_size: tuple[int, int] = (513, 513),
    convention: str = "exact",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> int:
    """Counts the multiply-adds of predicting one image.

    Tables 3 and 5 of DeepLabv3+ (1802.02611) list them in billions.

    Args:
        config: The model configuration, at the output stride of the evaluation.
        crop_size: Height and width of the image, in pixels.
        convention: "exact" counts every product of a kernel once; "tf1" counts what TF1
            computed, including the padding of each phase in atrous convolutions;
            "profiler", as in the papers, adds half of the other operations that TF1's
            profiler counted (sums, pooling, scaling, initialisers, L2 losses) to "tf1".
        scales: Scales of multi-scale inference.
        flip: Whether to also run each scale on the mirrored image.

    Raises:
        UserError: if the convention is unknown, or the model has an `image_pyramid`,
            for which no count was published.
    """
    if config.image_pyramid != (1.0,):
        raise UserError(
            "multiply_adds counts networks without an image pyramid; received "
            f"image_pyramid {config.image_pyramid}; pass its scales as `scales`"
        )
    height, width = crop_size
    counts = [
        _count_operations(
            config, (scale_dimension(height, s), scale_dimension(width, s))
        )
        for s in scales
    ]
    passes = 2 if flip else 1
    if convention == "exact":
        return passes * sum(count.exact for count in counts)
    total = passes * sum(count.tf1 for count in counts)
    if convention == "profiler":
        other = passes * sum(count.other for count in counts)
        # All passes share the weights.
        total += (other + counts[0].weights) // 2
    return total


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """Returns the number of trainable and of all parameters.

    The latter include the moving statistics.
    """
    model = _build_for_one_image(config, (65, 65))
    counts = [
        (prod(v.shape), v.trainable) for x in leaf_layers(model) for v in x.weights
    ]
    # `weights` omits the seeds of dropout, which are variables in Keras.
    return sum(n for n, trainable in counts if trainable), sum(n for n, _ in counts)


def format_table() -> str:
    """Returns a table of the published multiply-adds and ours, in billions."""
    lines = [
        f"{'preset':<52}{'M params':>9}{'published':>11}"
        + "".join(f"{name:>11}" for name in CONVENTIONS)
        + f"{'error':>9}"
    ]
    for preset in PRESETS.values():
        evaluation, model = preset.evaluation, preset.eval_model
        published, size = preset.published.multiply_adds, evaluation.eval_crop_size
        if published is None or size is None:
            continue
        passes = (evaluation.eval_scales, evaluation.add_flipped_images)
        counts = [
            multiply_adds(model, size, convention, *passes) / 1e9
            for convention in CONVENTIONS
        ]
        trained, _ = count_parameters(model)
        lines.append(
            f"{preset.name:<52}{trained / 1e6:>9.3f}{published:>11.2f}"
            + "".join(f"{count:>11.3f}" for count in counts)
            + f"{100 * (counts[-1] / published - 1):>+8.3f}%"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    from deeplab_tf.programs import run_program

    run_program("deeplab_tf.programs.complexity")
