"""What a model is."""

import dataclasses
from collections.abc import Mapping

from deeplab_tf.config.backbones import BACKBONE_OPTIONS, BACKBONES, Backbone
from deeplab_tf.config.checks import check_fields, listed, require
from deeplab_tf.config.heads import ContextConfig, DecoderConfig
from deeplab_tf.config.official_flags import collect_flags, parse_model_flags
from deeplab_tf.config.options import (
    FRACTION,
    SCALES,
    Range,
    document_fields,
    flag_default,
    option,
    ours,
)
from deeplab_tf.config.parsing import parse_numbers

_OUTPUT_STRIDES = (8, 16, 32)
_CASCADE_OUTPUT_STRIDES = (64, 128, 256)  # with one, two and three replicas
_ALL_OUTPUT_STRIDES = _OUTPUT_STRIDES + _CASCADE_OUTPUT_STRIDES
# DeepLabv3 (1706.05587) Sec. 3.3: (6, 12, 18) at output stride 16, doubled at 8.
_PAPER_RATES = (6, 12, 18)
_PAPER_RATES_STRIDE = 16
_OUTPUTS_LOGITS = "decoder.outputs_logits"
# 127.5 becomes 0 after the scaling to [-1, 1].
_MEAN_PIXEL = 127.5
_IMAGENET_MEAN_PIXEL = (123.15, 115.90, 103.06)


def _scaled_rates(rates: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
    """Returns atrous rates that cover the same pixels at another output stride."""
    require(
        all(rate * old % new == 0 for rate in rates),
        f"atrous rates {list(rates)} of output_stride {old} have no whole "
        f"counterpart at output_stride {new}; give atrous_rates",
    )
    return tuple(rate * old // new for rate in rates)


def _parse_pyramid(value: object) -> tuple[float, ...]:
    return parse_numbers(value, float) or (1.0,)


@document_fields
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A DeepLab model.

    Raises:
        UserError: for an impossible combination; names the choices.
    """

    backbone: str = option(
        "mobilenet_v2",
        help="Backbone, a name in config.BACKBONES.",
        flag="model_variant",
    )
    num_classes: int = option(
        21, Range(at_least=1, at_most=2**16), "Classes, without the ignored label."
    )
    output_stride: int = option(
        16,
        help="Image pixels per feature cell of the backbone: 8, 16, 32, and one "
        "doubling more for each of cascade_blocks.",
    )
    channels: int = option(
        3,
        Range(at_least=1, at_most=2**12),
        "Channels of the image; RGB weights are inflated to others.",
        flag="",
    )
    multi_grid: tuple[int, ...] = option(
        (),
        help="Unit rates of the last block of an Xception or a ResNet, such as 1,2,4 "
        "(DeepLabv3, Sec. 3.2.1), multiplied by the block's; () is all 1.",
    )
    cascade_blocks: int = ours(
        0,
        help="Replicas of a ResNet's block4 in cascade (DeepLabv3, Sec. 3.2): 3 adds "
        "block5, block6 and block7.",
    )
    depthwise_activation: bool = ours(
        False,
        help="Whether an Xception has the ReLU after each depthwise convolution that "
        "DeepLabv3+ (Sec. 3.2) describes; the released code and checkpoints have it "
        "in the last block only.",
    )
    bounded_activation: bool = option(
        False,
        help="Whether heads and Xception have ReLU6 instead of ReLU, and clip linear "
        "features to [-6, 6]: for quantisation.",
        flag="use_bounded_activation",
    )
    depth_multiplier: float = option(
        1.0, Range(above=0, at_most=16), "Width of a MobileNet relative to the paper's."
    )
    divisible_by: int | None = option(
        None,
        Range(at_least=1, at_most=2**10),
        "Channel counts of a MobileNetV2 are rounded to a multiple of this; None "
        "is the official rule (8 at depth_multiplier 1, else 1).",
    )
    logits_kernel_size: int = option(
        1, Range(at_least=1, at_most=99), "Kernel of the logits without ASPP."
    )
    image_pyramid: tuple[float, ...] = option(
        (1.0,),
        SCALES,
        "Scales of the image at which the network computes logits, to be merged. "
        "The papers use 1.0 alone.",
        flag_default=(),
        parse=_parse_pyramid,
    )
    merge_method: str = option(
        "max", ("max", "avg"), "max or avg of the logits over image_pyramid."
    )
    batch_norm_momentum: float | None = ours(
        None,
        FRACTION,
        "Decay of all moving statistics; None takes the official constant of each "
        "part (0.9997, 0.997, 0.95), which is far too slow for runs of some hundred "
        "steps from scratch.",
    )
    context: ContextConfig = option(
        ContextConfig(), help="The ASPP, or what replaces it."
    )
    decoder: DecoderConfig = option(DecoderConfig(), help="The decoder.")

    def __post_init__(self) -> None:
        check_fields(self)
        scales = self.image_pyramid
        require(
            bool(scales) and len(set(scales)) == len(scales),
            f"image_pyramid takes at least one scale, each once; received {scales}",
        )
        self._check_backbone()
        self._require_output_stride(self.output_stride)
        if self.context.rates is None:
            self._derive("context", rates=self._paper_rates())
        if self.decoder.output_strides is None:
            offered = self.traits.decoder_strides
            self._derive("decoder", output_strides=tuple({4} & set(offered)))
        self._check_heads()
        if self.decoder.outputs_logits:
            self._derive("decoder", filters=self.num_classes)

    def _derive(self, part: str, **fields: object) -> None:
        derived = dataclasses.replace(getattr(self, part), **fields)
        object.__setattr__(self, part, derived)

    def _paper_rates(self) -> tuple[int, ...]:
        if not self.context.aspp or self.context.dense_prediction_cell:
            return ()
        return _scaled_rates(_PAPER_RATES, _PAPER_RATES_STRIDE, self.output_stride)

    @property
    def traits(self) -> Backbone:
        """What can be asked of the backbone."""
        return BACKBONES[self.backbone]

    def _check_backbone(self) -> None:
        name = self.backbone
        require(
            not name.startswith("nas_"),
            f"model_variant {name} is not offered: no checkpoint of it is public; "
            f"it must be one of {', '.join(BACKBONES)}",
        )
        require(
            name in BACKBONES,
            f"model_variant must be one of {', '.join(BACKBONES)}; received {name!r}",
        )
        for field in BACKBONE_OPTIONS:
            value, default = getattr(self, field), getattr(type(self), field)
            takers = [n for n, row in BACKBONES.items() if field in row.options]
            require(
                value == default or name in takers,
                f"{field} is not of {name}; it must be {default!r} there (received "
                f"{value!r}), or model_variant one of {', '.join(takers)}",
            )
        require(
            len(self.multi_grid) in (0, self.traits.multi_grid)
            and all(rate > 0 for rate in self.multi_grid),
            f"multi_grid of {name} takes {self.traits.multi_grid} positive rates, one "
            f"for each unit of its last block; received {list(self.multi_grid)}",
        )
        require(
            0 <= self.cascade_blocks <= 3,
            "cascade_blocks must be 0, 1, 2 or 3 (block5 to block7); received "
            f"{self.cascade_blocks}",
        )

    def _require_output_stride(self, output_stride: int) -> None:
        cascaded = _CASCADE_OUTPUT_STRIDES
        needed = cascaded.index(output_stride) + 1 if output_stride in cascaded else 0
        hint = f"; {output_stride} needs cascade_blocks={needed}" if needed else ""
        choices = _OUTPUT_STRIDES + cascaded[: self.cascade_blocks]
        require(
            output_stride in choices,
            f"output_stride must be {listed(choices)}; received {output_stride}{hint}",
        )

    def _check_heads(self) -> None:
        strides, rates = self.decoder_output_strides, self.atrous_rates
        offered = self.traits.decoder_strides
        require(
            set(strides) <= set(offered),
            f"{self.backbone} offers low-level features of the strides "
            f"{list(offered)}; received decoder_output_stride {list(strides)}",
        )
        require(
            max(strides, default=0) <= self.output_stride,
            f"decoder_output_stride {list(strides)} must not exceed output_stride "
            f"{self.output_stride}",
        )
        context = self.context
        require(
            context.projection or not (context.squeeze_and_excitation and rates),
            "aspp_with_squeeze_and_excitation needs aspp_with_concat_projection or no "
            f"atrous_rates, so that depths agree; received {list(rates)}",
        )
        require(
            self.logits_kernel_size == 1 or (not context.aspp and bool(rates)),
            "logits_kernel_size must be 1, or aspp_with_batch_norm false and "
            f"atrous_rates given; received {self.logits_kernel_size}",
        )
        require(
            not context.dense_prediction_cell or self.output_stride <= 16,
            "a dense prediction cell needs output_stride 8 or 16; received "
            f"{self.output_stride}",
        )

    @property
    def atrous_rates(self) -> tuple[int, ...]:
        """Rates of the context's 3x3 branches, those that were left open included."""
        return self.context.rates or ()

    @property
    def decoder_output_strides(self) -> tuple[int, ...]:
        """Strides of the decoder, those that were left open included."""
        return self.decoder.output_strides or ()

    @property
    def logits_stride(self) -> int:
        """Image pixels per cell of the logits before they are resized."""
        return min((self.output_stride, *self.decoder_output_strides))

    @property
    def mean_pixel(self) -> tuple[float, ...]:
        """Value of each channel, 0..255, that the network sees as 0: the padding."""
        if not self.traits.subtracts_mean:
            return self.channels * (_MEAN_PIXEL,)
        if self.channels < 3:
            return self.channels * (sum(_IMAGENET_MEAN_PIXEL) / 3,)
        return _IMAGENET_MEAN_PIXEL + (self.channels - 3) * (0.0,)

    def at_output_stride(self, output_stride: int) -> "ModelConfig":
        """Returns the same weights computing features at another stride.

        Args:
            output_stride: 8, 16 or 32, or a larger one of a cascade; atrous rates
                scale along.

        Raises:
            UserError: for another stride, or rates without a whole counterpart.
        """
        self._require_output_stride(output_stride)
        rates = _scaled_rates(self.atrous_rates, self.output_stride, output_stride)
        context = dataclasses.replace(self.context, rates=rates)
        return dataclasses.replace(self, output_stride=output_stride, context=context)

    @classmethod
    def from_official_flags(cls, flags: Mapping[str, object]) -> "ModelConfig":
        """Returns the config that the official code builds from these flags.

        Flags that are absent have the official defaults: no atrous rates (only
        the 1x1 branch and image-level features) and no decoder.

        Args:
            flags: Official names to values; numbers may be strings and lists.

        Raises:
            UserError: for a name or value that is not known.
        """
        defaults = {
            name: flag_default(field)
            for name, (_, field) in MODEL_FLAGS.items()
            if flag_default(field) != field.default
        }
        return cls().with_official_flags(defaults | dict(flags))

    def with_official_flags(self, flags: Mapping[str, object]) -> "ModelConfig":
        """Returns this config with the given official flags laid over it.

        A new output stride scales the atrous rates along unless they are given.

        Args:
            flags: As in `from_official_flags`.

        Raises:
            UserError: for a name or value that is not known.
        """
        fields = parse_model_flags(flags, MODEL_FLAGS)
        stride = fields.get("output_stride", self.output_stride)
        if stride in _ALL_OUTPUT_STRIDES and "context.rates" not in fields:
            fields["context.rates"] = _scaled_rates(
                self.atrous_rates, self.output_stride, stride
            )
        if self.decoder.outputs_logits and not fields.get(_OUTPUTS_LOGITS, True):
            fields.setdefault("decoder.filters", DecoderConfig.filters)
        config = self._with_fields(fields)
        filters = fields.get("decoder.filters", config.decoder.filters)
        require(
            not config.decoder.outputs_logits or filters == config.num_classes,
            "with decoder_output_is_logits decoder_filters must be the number of "
            f"classes, {config.num_classes}; received {filters}",
        )
        return config

    def _with_fields(self, fields: dict) -> "ModelConfig":
        """Returns a copy with dotted field names replaced all at once."""
        own = {k: v for k, v in fields.items() if "." not in k}
        for part in ("context", "decoder"):
            inner = {
                k.removeprefix(part + "."): v
                for k, v in fields.items()
                if k.startswith(part + ".")
            }
            own[part] = dataclasses.replace(getattr(self, part), **inner)
        return dataclasses.replace(self, **own)


MODEL_FLAGS = collect_flags(ModelConfig)
