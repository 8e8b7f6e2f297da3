"""Identifies the head of a network: context, decoder and logits."""

import dataclasses
from collections.abc import Iterable, Sequence

from deeplab_tf.checkpoints.graphs.backbone import Backbone
from deeplab_tf.checkpoints.graphs.convolutions import (
    HARD_SIGMOID,
    RELU6,
    SIGMOID,
    Convolution,
)
from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.config.cell import RELEASED_CELL
from deeplab_tf.errors import UserError


def find_config(convolutions: Sequence[Convolution], backbone: Backbone) -> ModelConfig:
    """Returns the config of a network whose backbone is known.

    Raises:
        UserError: if this package has no such head.
    """
    head = _Head(convolutions, backbone)
    if not head.last:
        raise UserError("it has a backbone, but no layer with a score for each class")
    context = head.find_context()
    options: dict = {}
    last = convolutions[head.last[0]]
    if not context.aspp and not head.low_level:
        options["logits_kernel_size"] = last.shape[0]
    if any(convolutions[i].activation == RELU6 for i in head.branches):
        options["bounded_activation"] = True
    return dataclasses.replace(
        backbone.config,
        num_classes=last.filters,
        context=context,
        decoder=head.find_decoder(),
        **options,
    )


class _Head:
    """The convolutions of a head, as indices in `convolutions`.

    Attributes:
        last: Convolutions whose output no other convolution reads.
        branches: Convolutions that read the high-level features.
        low_level: Convolutions that read low-level features, coarse to fine.
    """

    def __init__(self, convolutions: Sequence[Convolution], backbone: Backbone):
        self._convolutions = convolutions
        self._output_stride = backbone.config.output_stride
        inner = [i for i in range(len(convolutions)) if i not in backbone.used]
        followed = {source for i in inner for source in convolutions[i].sources}
        self.last = [i for i in inner if i not in followed]
        self.branches: list[int] = []
        self.low_level: list[int] = []
        self._others: list[int] = []
        for i in inner:
            sources = set(convolutions[i].sources)
            if sources == backbone.features:
                self.branches.append(i)
            elif sources <= backbone.used:
                self.low_level.append(i)
            else:
                self._others.append(i)
        self.low_level.sort(key=lambda i: -convolutions[i].stride)

    def _find_consumers(self, indices: Iterable[int]) -> list[int]:
        """Returns the convolutions that read all of these."""
        wanted = set(indices)
        return [i for i in self._others if wanted <= set(self._convolutions[i].sources)]

    def find_context(self) -> ContextConfig:
        """Returns the config of the ASPP or its replacement."""
        convolutions = self._convolutions
        if any(
            convolutions[i].rate[0] != convolutions[i].rate[1] for i in self.branches
        ):
            return ContextConfig(rates=(), dense_prediction_cell=RELEASED_CELL)
        if set(self.branches) <= set(self.last):
            rates = tuple(convolutions[i].rate[0] for i in self.branches)
            is_single = len(rates) < 2 and set(rates) <= {1}
            return ContextConfig(aspp=False, rates=() if is_single else rates)
        return self._find_aspp()

    def _find_aspp(self) -> ContextConfig:
        """Returns the config of an ASPP or LR-ASPP; refuses unknown branches."""
        convolutions = self._convolutions
        pooled = [i for i in self.branches if convolutions[i].pool]
        direct = [i for i in self.branches if not convolutions[i].pool]
        points = [i for i in direct if convolutions[i].shape[:2] == (1, 1)]
        wide = [i for i in direct if i not in points]
        separable = all(convolutions[i].is_depthwise for i in wide)
        ends = [self._find_pointwise(i) for i in wide] if separable else wide
        if len(points) != 1 or len(pooled) > 1 or None in ends:
            raise UserError("its ASPP has other branches than 1x1, 3x3 and pooling")
        gate = convolutions[pooled[0]].activation if pooled else ""
        is_gated = gate in (SIGMOID, HARD_SIGMOID)
        merged = [*points, *ends, *(() if is_gated else pooled)]
        filters = convolutions[points[0]].filters
        return ContextConfig(
            rates=self._sort_rates(merged, dict(zip(ends, wide, strict=True))),
            filters=filters,
            separable=separable,
            image_level=bool(pooled),
            projection=self._is_projected(merged, filters),
            squeeze_and_excitation=is_gated,
            hard_sigmoid=gate == HARD_SIGMOID,
            **(self._make_pooling_fields(convolutions[pooled[0]]) if pooled else {}),
        )

    def _find_pointwise(self, depthwise: int) -> int | None:
        """Returns the second convolution of a separable one."""
        return next(iter(self._find_sole_input_consumers(depthwise)), None)

    def _sort_rates(self, merged: Sequence[int], wide: dict) -> tuple[int, ...]:
        """Returns the rates of branches in the order of their concatenation.

        `wide` maps the end of each branch to its atrous convolution.
        """
        consumers = self._find_consumers(merged)
        order = self._convolutions[consumers[0]].sources if consumers else merged
        return tuple(self._convolutions[wide[i]].rate[0] for i in order if i in wide)

    def _is_projected(self, merged: Sequence[int], filters: int) -> bool:
        """Returns whether a 1x1 convolution projects the merged branches."""
        return any(
            set(self._convolutions[i].sources) == set(merged)
            and self._convolutions[i].shape[:2] == (1, 1)
            and self._convolutions[i].filters == filters
            and i not in self.last
            for i in self._find_consumers(merged)
        )

    def _make_pooling_fields(self, convolution: Convolution) -> dict:
        """Returns the `ContextConfig` fields for the window of image-level pooling."""
        window, strides = convolution.pool or (None, (1, 1))
        # A window of the size of the features covers the entire image.
        if window is None or window == convolution.resized:
            return {}
        sides = tuple((side - 1) * self._output_stride + 1 for side in window)
        return {"image_pooling_crop_size": sides, "image_pooling_stride": strides}

    def find_decoder(self) -> DecoderConfig:
        """Returns the config of the decoder."""
        if not self.low_level:
            return DecoderConfig(output_strides=())
        convolutions, first = self._convolutions, self.low_level[0]
        strides = tuple(convolutions[i].stride for i in self.low_level)
        outputs_logits = not convolutions[first].activation
        consumers = self._find_consumers([first])
        filters = convolutions[first].filters
        # A sum has as many channels as the projection; a concatenation has more.
        if not consumers or convolutions[consumers[0]].channels == filters:
            options = {"separable": False}
            if not outputs_logits:
                options = self._make_sum_fields(first, consumers)
            return DecoderConfig(
                strides,
                filters,
                sum_merge=True,
                outputs_logits=outputs_logits,
                **options,
            )
        chain = self._find_refining_convolutions(consumers[0])
        depthwise = [i for i in chain if convolutions[i].is_depthwise]
        dense = [i for i in chain if not convolutions[i].is_depthwise]
        return DecoderConfig(
            strides,
            convolutions[dense[0]].filters,
            filters,
            convolutions=len(depthwise or dense),
            kernel_size=convolutions[chain[0]].shape[0],
            separable=bool(depthwise),
            outputs_logits=outputs_logits,
        )

    def _make_sum_fields(self, first: int, consumers: Sequence[int]) -> dict:
        """Returns the `DecoderConfig` fields for the context's convolution in a sum."""
        sources = set(self._convolutions[consumers[0]].sources) - {first}
        dense = self._convolutions[min(sources)]
        inner = [
            self._convolutions[i]
            for i in dense.sources
            if self._convolutions[i].is_depthwise
        ]
        separable = dense.shape[0] == 1 and bool(inner)
        kernel = (inner[0] if separable else dense).shape[0]
        return {"separable": separable, "kernel_size": kernel}

    def _find_refining_convolutions(self, first: int) -> list[int]:
        """Returns the refining convolutions of a decoder level, starting at `first`."""
        chain, consumers = [first], self._find_sole_input_consumers(first)
        while consumers:
            chain.append(consumers[0])
            consumers = self._find_sole_input_consumers(consumers[0])
        is_logits = not self._convolutions[chain[-1]].activation
        # If the decoder outputs the logits, all its convolutions are linear.
        if is_logits and self._convolutions[first].activation:
            return chain[:-1]
        return chain

    def _find_sole_input_consumers(self, index: int) -> list[int]:
        """Returns the convolutions that read only this one."""
        return [i for i in self._others if self._convolutions[i].sources == (index,)]
