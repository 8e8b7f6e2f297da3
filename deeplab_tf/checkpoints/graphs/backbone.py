"""Identifies the backbone of a network by its convolutions."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from deeplab_tf.checkpoints.graphs.convolutions import RELU, RELU6, Convolution
from deeplab_tf.checkpoints.graphs.keras_model import trace_model
from deeplab_tf.checkpoints.graphs.matching import MismatchError, match_convolutions
from deeplab_tf.config import BACKBONES, ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.config.backbones.mobilenet import MobileNet
from deeplab_tf.config.backbones.resnet import ResNet
from deeplab_tf.errors import UserError
from deeplab_tf.models.backbones.mobilenet import make_divisible

# Width multipliers of published MobileNets.
_MULTIPLIERS = (1.0, 0.25, 0.35, 0.5, 0.75, 1.25, 1.3, 1.4, 1.5, 1.75, 2.0)
# Units of a ResNet's last block, and convolutions of an Xception's, from 1.
_MULTI_GRID = re.compile(r"\.block4\.unit_(\d+)\.|\.block2\..*conv(\d)_depthwise$")


class Backbone(NamedTuple):
    """A backbone that was found in a graph.

    Attributes:
        config: Its config, with a single convolution as the head.
        used: Indices of its convolutions.
        features: Indices of those that its high-level features come from.
    """

    config: ModelConfig
    used: frozenset[int]
    features: frozenset[int]


def find_backbone(convolutions: Sequence[Convolution]) -> Backbone:
    """Returns the backbone of a network.

    Raises:
        UserError: if this package has no such backbone.
    """
    if not convolutions:
        raise UserError("it has no convolutions with constant kernels")
    for config in _list_candidates(convolutions):
        *wanted, logits = trace_model(config).convolutions
        try:
            matched = match_convolutions(wanted, convolutions, compare_rates=False)
        except MismatchError:
            continue
        pairs = [
            (a.name, a.rate[0], convolutions[i])
            for a, i in zip(wanted, matched, strict=True)
        ]
        config = dataclasses.replace(config, **_find_options(config, pairs))
        features = frozenset(matched[i] for i in logits.sources)
        return Backbone(config, frozenset(matched), features)
    raise UserError(f"its backbone is none of {', '.join(BACKBONES)}")


def _list_candidates(convolutions: Sequence[Convolution]) -> Iterator[ModelConfig]:
    """Yields configs of backbones whose depths occur in a graph."""
    first, output_stride = convolutions[0], max(c.stride for c in convolutions)
    depths = collections.Counter(c.filters for c in convolutions if not c.is_depthwise)
    for name, row in BACKBONES.items():
        for options in _list_options(row.network, row.options):
            kernel, needed = _summarize_kernels(row.network, **options)
            has_first = first.shape == (*kernel[:2], first.channels, kernel[2])
            if has_first and not collections.Counter(needed) - depths:
                yield from _make_headless_config(name, first, output_stride, options)


def _list_options(network: Any, supported: Sequence[str]) -> list[dict]:
    """Returns the combinations of options that change kernels, in the order to try."""
    if isinstance(network, MobileNet):
        options = [{"depth_multiplier": x} for x in _MULTIPLIERS]
        if "divisible_by" in supported:
            options += [x | {"divisible_by": 8} for x in options]
        return options
    if isinstance(network, ResNet):
        return [{"cascade_blocks": count} for count in (3, 2, 1, 0)]
    return [{}]


def _make_headless_config(
    name: str, first: Convolution, output_stride: int, options: dict
) -> Iterator[ModelConfig]:
    """Yields the config of a backbone without a head, or nothing if it is invalid."""
    try:
        yield ModelConfig(
            name,
            output_stride=output_stride,
            channels=first.channels,
            context=ContextConfig(aspp=False, rates=()),
            decoder=DecoderConfig(output_strides=()),
            **options,
        )
    except UserError:
        return


@functools.singledispatch
def _summarize_kernels(network: Any) -> tuple[tuple[int, ...], list[int]]:
    """Returns the first kernel `(height, width, filters)` and all later filters."""
    depths = [d for block in network.blocks for d in block.units * block.depths]
    return (3, 3, 32), depths


@_summarize_kernels.register
def _summarize_mobilenet(
    network: MobileNet, depth_multiplier: float, divisible_by: int | None = None
) -> tuple[tuple[int, ...], list[int]]:
    divisor = divisible_by or (8 if depth_multiplier == 1.0 else network.divisor)
    first, *depths = (
        make_divisible(depth * depth_multiplier, divisor)
        for depth in (network.first, *(block.filters for block in network.blocks))
    )
    return (3, 3, first), depths


@_summarize_kernels.register
def _summarize_resnet(
    network: ResNet, cascade_blocks: int
) -> tuple[tuple[int, ...], list[int]]:
    first = (3, 3, network.root[0]) if network.root else (7, 7, 64)
    factor = 1 if network.lite else 4
    blocks = list(zip(network.depths, network.units, strict=True))
    blocks += cascade_blocks * blocks[-1:]
    return first, [factor * depth for depth, units in blocks for _ in range(units)]


def _find_options(
    config: ModelConfig, pairs: Sequence[tuple[str, int, Convolution]]
) -> dict:
    """Returns the options that do not change kernels: multi-grid and activations.

    `pairs` has the name and the rate of each convolution of the config, and the
    convolution that matches it.
    """
    options: dict = {"multi_grid": _find_multi_grid(pairs)}
    if "depthwise_activation" in config.traits.options:
        depthwise = next(c for _, _, c in pairs if c.is_depthwise)
        options["depthwise_activation"] = depthwise.activation in (RELU, RELU6)
        options["bounded_activation"] = pairs[0][2].activation == RELU6
    return options


def _find_multi_grid(
    pairs: Sequence[tuple[str, int, Convolution]],
) -> tuple[int, ...]:
    """Returns the rates of the units relative to the config, or () if all are 1."""
    grid = {}
    for name, rate, found in pairs:
        unit = _MULTI_GRID.search(name)
        if unit and found.shape[0] > 1:
            grid[int(unit[1] or unit[2])] = max(found.rate[0] // rate, 1)
    rates = tuple(grid[unit] for unit in sorted(grid))
    return rates if any(rate > 1 for rate in rates) else ()
