"""Matches the convolutions of a graph with those of a model of this package."""

from collections.abc import Sequence

import numpy as np

from deeplab_tf.checkpoints.graphs.convolutions import Convolution
from deeplab_tf.checkpoints.graphs.keras_model import ModelGraph
from deeplab_tf.errors import UserError


class MismatchError(UserError):
    """A graph lacks a convolution of a model."""


def match_convolutions(
    wanted: Sequence[Convolution],
    convolutions: Sequence[Convolution],
    compare_rates: bool = True,
) -> list[int]:
    """Returns the index in `convolutions` of each convolution in `wanted`.

    Two convolutions match if they have the same kernel shape, strides and rates, and
    their inputs come from convolutions that match.

    Raises:
        MismatchError: names the first one without a match.
    """
    found: list[int] = []
    free = list(range(len(convolutions)))
    for convolution in wanted:
        sources = [found[i] for i in convolution.sources]
        similar = [
            i
            for i in free
            if _is_similar(convolution, convolutions[i], compare_rates)
            and _has_sources(convolutions[i], sources, convolution.is_concatenated)
        ]
        if not similar:
            raise MismatchError(_describe_missing(convolution))
        # Only pooling distinguishes image-level features from the 1x1 branch.
        pooled = [
            i for i in similar if bool(convolutions[i].pool) == bool(convolution.pool)
        ]
        found.append((pooled or similar)[0])
        free.remove(found[-1])
    return found


def _is_similar(a: Convolution, b: Convolution, compare_rates: bool) -> bool:
    """Returns whether kernel shapes, strides and, optionally, rates are equal."""
    return (
        (a.is_depthwise, a.shape, a.strides, a.stride)
        == (b.is_depthwise, b.shape, b.strides, b.stride)
    ) and (not compare_rates or a.rate == b.rate)


def _has_sources(
    convolution: Convolution, sources: Sequence[int], is_concatenated: bool
) -> bool:
    if is_concatenated and convolution.is_concatenated:
        return list(convolution.sources) == list(sources)
    return set(convolution.sources) == set(sources)


def _describe_missing(convolution: Convolution) -> str:
    kind = "a depthwise convolution" if convolution.is_depthwise else "a convolution"
    shape = "x".join(map(str, convolution.shape))
    return (
        f"{convolution.name.replace('.', '/')}, {kind} with a {shape} kernel, stride "
        f"{convolution.strides[0]} and rate {convolution.rate[0]}"
    )


def extract_weights(
    model: ModelGraph, convolutions: Sequence[Convolution]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns `{official name: array}` of a graph, and the names of unused layers.

    Batch normalisation is folded into the graph's convolutions; here, it only adds
    their biases: gamma is 1, the moving mean 0, and the moving variance 1 minus the
    epsilon, so that it divides by 1.

    Raises:
        MismatchError: if the graph lacks a convolution of the model.
    """
    arrays = {}
    matched = match_convolutions(model.convolutions, convolutions)
    for convolution, index in zip(model.convolutions, matched, strict=True):
        scope = convolution.name.replace(".", "/")
        kernel, bias = convolutions[index].fold()
        leaf = "depthwise_weights" if convolution.is_depthwise else "weights"
        arrays[f"{scope}/{leaf}"] = kernel
        if convolution.name not in model.epsilons:
            arrays[f"{scope}/biases"] = bias
            continue
        epsilon = model.epsilons[convolution.name]
        arrays |= {
            f"{scope}/BatchNorm/gamma": np.ones_like(bias),
            f"{scope}/BatchNorm/beta": bias,
            f"{scope}/BatchNorm/moving_mean": np.zeros_like(bias),
            f"{scope}/BatchNorm/moving_variance": np.full_like(bias, 1 - epsilon),
        }
    unused = sorted(set(range(len(convolutions))) - set(matched))
    return arrays, [convolutions[i].name for i in unused]
