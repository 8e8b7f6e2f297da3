"""Configuration of a DeepLab model."""

import dataclasses
from collections.abc import Mapping

from deeplab_tf.arguments import check_arguments, join_choices
from deeplab_tf.config.backbones import BACKBONE_OPTIONS, BACKBONES, Backbone
from deeplab_tf.config.checks import check_fields, name_option, require
from deeplab_tf.config.conventions import ConventionsConfig
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
from deeplab_tf.errors import UserError, suggest_similar

_OUTPUT_STRIDES = (2, 4, 8, 16, 32)
_CASCADE_OUTPUT_STRIDES = (64, 128, 256)  # with 1, 2 and 3 cascade blocks
_ALL_OUTPUT_STRIDES = _OUTPUT_STRIDES + _CASCADE_OUTPUT_STRIDES
# DeepLabv3 (1706.05587) Sec. 3.3: (6, 12, 18) at output stride 16, doubled at 8.
_PAPER_RATES = (6, 12, 18)
_PAPER_RATES_STRIDE = 16
_OUTPUTS_LOGITS = "decoder.outputs_logits"
# 127.5 becomes 0 when scaled to [-1, 1].
_MEAN_PIXEL = 127.5
_IMAGENET_MEAN_PIXEL = (123.15, 115.90, 103.06)


def _scale_rates(rates: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
    """Scales atrous rates so that they cover the same pixels at a new output stride."""
    require(
        all(rate * old % new == 0 for rate in rates),
        f"atrous rates {list(rates)} of output_stride {old} are not integers at "
        f"output_stride {new}; give {name_option(ContextConfig, 'rates')}",
    )
    return tuple(rate * old // new for rate in rates)


def _parse_pyramid(value: object) -> tuple[float, ...]:
    return parse_numbers(value, float) or (1.0,)


@document_fields
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Configuration of a DeepLab model.

    Raises:
        UserError: for an invalid value or combination; names the choices.
    """

    backbone: str = option(
        "mobilenet_v2",
        help=f"Backbone: {', '.join(BACKBONES)}.",
        flag="model_variant",
    )
    num_classes: int = option(
        21,
        Range(at_least=1, at_most=2**16),
        "Number of classes, without the ignored label.",
    )
    output_stride: int = option(
        16,
        help="Image size over backbone feature size: 8, 16 or 32; 2 (not a ResNet) and "
        "4 also work, except with mobilenet_edgetpu; each cascade block allows one "
        "more doubling.",
    )
    channels: int = option(
        3,
        Range(at_least=1, at_most=2**12),
        "Image channels; pretrained RGB weights are adapted to other numbers.",
        flag="",
    )
    multi_grid: tuple[int, ...] = option(
        (),
        help="Unit rates of the last block of an Xception or a ResNet, such as 1,2,4; "
        "they multiply the block's rate (DeepLabv3, Sec. 3.2.1). Default: all 1.",
    )
    cascade_blocks: int = ours(
        0,
        help="Number of copies of a ResNet's block4 to append in cascade; 3 adds "
        "block5, block6 and block7 (DeepLabv3, Sec. 3.2).",
    )
    depthwise_activation: bool = ours(
        False,
        help="Add a ReLU after each depthwise convolution of an Xception, as "
        "described in DeepLabv3+ (Sec. 3.2). The released code and checkpoints have "
        "it in the last block only.",
    )
    bounded_activation: bool = option(
        False,
        help="Use ReLU6 instead of ReLU in the heads and in Xception, and clip linear "
        "features to [-6, 6], for quantisation.",
        flag="use_bounded_activation",
    )
    depth_multiplier: float = option(
        1.0, Range(above=0, at_most=16), "Width multiplier of a MobileNet."
    )
    divisible_by: int | None = option(
        None,
        Range(at_least=1, at_most=2**10),
        "Round the channel counts of a MobileNetV2 to a multiple of this. Default: "
        "the official rule, 8 at depth_multiplier 1, else 1.",
    )
    logits_kernel_size: int = option(
        1,
        Range(at_least=1, at_most=99),
        "Kernel size of the logits layer; must be 1 with the ASPP.",
    )
    image_pyramid: tuple[float, ...] = option(
        (1.0,),
        SCALES,
        "Image scales at which the network computes logits before merging them. The "
        "papers use 1.0 only.",
        flag_default=(),
        parse=_parse_pyramid,
    )
    merge_method: str = option(
        "max", ("max", "avg"), "How to merge the logits over image_pyramid: max or avg."
    )
    batch_norm_momentum: float | None = ours(
        None,
        FRACTION,
        "Decay of all batch normalisation statistics. Default: the official value of "
        "each part (0.9997, 0.997 or 0.95); too slow for short runs from scratch, so "
        "lower it if you train for a few hundred steps.",
    )
    context: ContextConfig = option(
        ContextConfig(), help="The ASPP or its replacement."
    )
    decoder: DecoderConfig = option(DecoderConfig(), help="The decoder.")
    conventions: ConventionsConfig = option(
        ConventionsConfig(), help="Details in which other frameworks differ."
    )

    def __post_init__(self) -> None:
        check_fields(self)
        scales = self.image_pyramid
        require(
            bool(scales) and len(set(scales)) == len(scales),
            "image_pyramid needs at least one scale and no duplicates; received "
            f"{scales}",
        )
        self._check_backbone()
        self._require_output_stride(self.output_stride)
        if self.context.rates is None:
            self._replace_in("context", rates=self._paper_rates())
        if self.decoder.output_strides is None:
            offered = self.traits.decoder_strides
            self._replace_in("decoder", output_strides=tuple({4} & set(offered)))
        self._check_heads()
        self._check_conventions()
        if self.decoder.outputs_logits:
            self._replace_in("decoder", filters=self.num_classes)

    def _replace_in(self, part: str, **fields: object) -> None:
        """Replaces fields of the context or the decoder, in this frozen config."""
        derived = dataclasses.replace(getattr(self, part), **fields)
        object.__setattr__(self, part, derived)

    def _paper_rates(self) -> tuple[int, ...]:
        """Returns default atrous rates for the output stride; () without ASPP."""
        if not self.context.aspp or self.context.dense_prediction_cell:
            return ()
        return _scale_rates(_PAPER_RATES, _PAPER_RATES_STRIDE, self.output_stride)

    @property
    def traits(self) -> Backbone:
        """Properties of the backbone."""
        return BACKBONES[self.backbone]

    def _check_backbone(self) -> None:
        """Raises UserError for an unknown backbone or an option it does not support."""
        name, option_name = self.backbone, name_option(self, "backbone")
        require(
            not name.startswith("nas_"),
            f"{option_name} {name!r} is not supported because it has no public "
            f"checkpoint; it must be one of {', '.join(BACKBONES)}",
        )
        if name not in BACKBONES:
            raise UserError(
                f"there is no {option_name} {name!r}; "
                f"{suggest_similar(name, BACKBONES)}it must be one of "
                f"{', '.join(BACKBONES)}"
            )
        for field in BACKBONE_OPTIONS:
            value, default = getattr(self, field), getattr(type(self), field)
            supported = [n for n, row in BACKBONES.items() if field in row.options]
            require(
                value == default or name in supported,
                f"{field} is not supported by {name}; leave it at {default!r} "
                f"(received {value!r}), or set {option_name} to one of "
                f"{', '.join(supported)}",
            )
        require(
            len(self.multi_grid) in (0, self.traits.multi_grid)
            and all(rate > 0 for rate in self.multi_grid),
            f"multi_grid of {name} needs {self.traits.multi_grid} positive rates, one "
            f"per unit of its last block; received {list(self.multi_grid)}",
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
        choices = tuple(s for s in choices if s >= self.traits.least_output_stride)
        require(
            output_stride in choices,
            f"output_stride must be {join_choices(choices)}; received "
            f"{output_stride!r}{hint}",
        )

    def _check_heads(self) -> None:
        """Raises UserError for contradictory options of context, decoder and logits."""
        strides, rates = self.decoder_output_strides, self.atrous_rates
        offered = self.traits.decoder_strides
        decoder_strides = name_option(DecoderConfig, "output_strides")
        aspp_rates = name_option(ContextConfig, "rates")
        require(
            set(strides) <= set(offered),
            f"{self.backbone} has low-level features at the strides {list(offered)}; "
            f"received {decoder_strides} {list(strides)}",
        )
        context = self.context
        require(
            context.projection or not (context.has_gate and rates),
            f"{name_option(context, 'squeeze_and_excitation')} needs "
            f"{name_option(context, 'projection')} or no {aspp_rates}, so that the "
            f"depths match; received {list(rates)}",
        )
        require(
            self.logits_kernel_size == 1 or (not context.aspp and bool(rates)),
            f"logits_kernel_size must be 1 unless {name_option(context, 'aspp')} is "
            f"False and {aspp_rates} are given; received {self.logits_kernel_size}",
        )
        require(
            not context.dense_prediction_cell or self.output_stride <= 16,
            "a dense prediction cell needs an output_stride of at most 16; received "
            f"{self.output_stride}",
        )

    def _check_conventions(self) -> None:
        """Raises UserError for conventions that the backbone does not support."""
        for field in dataclasses.fields(ConventionsConfig):
            value = getattr(self.conventions, field.name)
            if value == field.default or field.name in self.traits.conventions:
                continue
            supported = [n for n, x in BACKBONES.items() if field.name in x.conventions]
            require(
                not supported,
                f"conventions.{field.name} is not supported by {self.backbone}; leave "
                f"it at {field.default!r} (received {value!r}), or use one of "
                f"{', '.join(supported)}",
            )
        for name in ("pixel_mean", "pixel_deviation"):
            values = getattr(self.conventions, name)
            require(
                values is None or len(values) == self.channels,
                f"conventions.{name} needs one value for each of {self.channels} "
                f"channels; received {values}",
            )

    @property
    def aligns_features(self) -> bool:
        """Whether features and pixels align at sides of `k * output_stride + 1`.

        If so, inference pads images to such sides.
        """
        conventions = self.conventions
        return (
            conventions.padding == "official"
            and conventions.resizing == "align_corners"
        )

    @property
    def atrous_rates(self) -> tuple[int, ...]:
        """Resolved atrous rates of the 3x3 branches of the context."""
        return self.context.rates or ()

    @property
    def decoder_output_strides(self) -> tuple[int, ...]:
        """Resolved strides of the decoder's low-level features."""
        return self.decoder.output_strides or ()

    @property
    def logits_stride(self) -> int:
        """Stride of the logits before they are resized to the image."""
        return min(self.decoder_output_strides, default=self.output_stride)

    @property
    def mean_pixel(self) -> tuple[float, ...]:
        """Value of each channel, 0..255, that normalises to 0; used as padding."""
        if self.conventions.pixel_mean is not None:
            return self.conventions.pixel_mean
        if not self.traits.subtracts_mean:
            return self.channels * (_MEAN_PIXEL,)
        if self.channels < 3:
            return self.channels * (sum(_IMAGENET_MEAN_PIXEL) / 3,)
        return _IMAGENET_MEAN_PIXEL + (self.channels - 3) * (0.0,)

    @check_arguments()
    def at_output_stride(self, output_stride: int) -> "ModelConfig":
        """Returns the config for the same weights at a different output stride.

        Args:
            output_stride: See `output_stride`. Atrous rates are scaled to match.

        Raises:
            UserError: for an unsupported stride, or if scaled rates are not integers.
        """
        self._require_output_stride(output_stride)
        rates = _scale_rates(self.atrous_rates, self.output_stride, output_stride)
        context = dataclasses.replace(self.context, rates=rates)
        return dataclasses.replace(self, output_stride=output_stride, context=context)

    @classmethod
    @check_arguments()
    def from_official_flags(cls, flags: Mapping[str, object]) -> "ModelConfig":
        """Returns the config that the official code builds from these flags.

        Missing flags have the official defaults: no atrous rates (only the 1x1 branch
        and image-level features) and no decoder.

        Args:
            flags: Official flag names to values; numbers may be strings or lists.

        Raises:
            UserError: for an unknown name or an invalid value.
        """
        defaults = {
            name: flag_default(field)
            for name, (_, field) in MODEL_FLAGS.items()
            if flag_default(field) != field.default
        }
        return cls().with_official_flags(defaults | dict(flags))

    @check_arguments()
    def with_official_flags(self, flags: Mapping[str, object]) -> "ModelConfig":
        """Returns a copy of this config with some official flags replaced.

        A new output stride scales the atrous rates unless they are given. For the flags
        and errors, see `from_official_flags`.
        """
        fields = parse_model_flags(flags, MODEL_FLAGS)
        stride = fields.get("output_stride", self.output_stride)
        if stride in _ALL_OUTPUT_STRIDES and "context.rates" not in fields:
            fields["context.rates"] = _scale_rates(
                self.atrous_rates, self.output_stride, stride
            )
        if self.decoder.outputs_logits and not fields.get(_OUTPUTS_LOGITS, True):
            fields.setdefault("decoder.filters", DecoderConfig.filters)
        config = self._with_fields(fields)
        filters = fields.get("decoder.filters", config.decoder.filters)
        require(
            not config.decoder.outputs_logits or filters == config.num_classes,
            f"with {name_option(DecoderConfig, 'outputs_logits')}, "
            f"{name_option(DecoderConfig, 'filters')} must be the number of classes, "
            f"{config.num_classes}; received {filters}",
        )
        return config

    def _with_fields(self, fields: dict) -> "ModelConfig":
        """Returns a copy with the fields at some dotted paths replaced at once."""
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
