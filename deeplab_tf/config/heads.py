"""Context and decoder of a model."""

import dataclasses

from deeplab_tf.config.cell import CellBranch, parse_cell
from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.options import (
    FRACTION,
    SIDE,
    Range,
    document_fields,
    option,
    ours,
)
from deeplab_tf.config.parsing import parse_size

# Channels of a layer: far more than any network has, and few enough to be built.
_CHANNELS = Range(at_least=1, at_most=2**16)


def _parse_strides(value: object) -> tuple[int, int]:
    return parse_size(value) or (1, 1)


@document_fields
@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """Atrous spatial pyramid pooling (DeepLabv3, Sec. 3.3), or what replaces it.

    Raises:
        UserError: for an impossible value or combination; names the flag.
    """

    rates: tuple[int, ...] | None = option(
        None,
        SIDE,
        "Atrous rates of the 3x3 branches of the ASPP, at the model's output stride. "
        "(), the flag's default, leaves the 1x1 branch and the image-level features. "
        "None is the papers' (6, 12, 18) at output stride 16, scaled to the model's.",
        flag="atrous_rates",
        flag_default=(),
    )
    aspp: bool = option(
        True,
        help="Whether there is a context at all. Without it the logits come from the "
        "backbone, by one convolution for each of the atrous rates (DeepLabv2) or a "
        "single one.",
        flag="aspp_with_batch_norm",
    )
    filters: int = option(
        256,
        _CHANNELS,
        "Depth of every branch of the ASPP and of the projection.",
        flag="aspp_convs_filters",
    )
    separable: bool = option(
        True,
        help="Whether the 3x3 branches of the ASPP are depthwise separable.",
        flag="aspp_with_separable_conv",
    )
    image_level: bool = option(
        True,
        help="Whether the ASPP has image-level features (DeepLabv3, Fig. 5b).",
        flag="add_image_level_feature",
    )
    image_pooling_crop_size: tuple[int, int] | None = option(
        None,
        SIDE,
        "Height and width in image pixels of the window that image-level pooling "
        "averages; None averages the entire image.",
    )
    image_pooling_stride: tuple[int, int] = option(
        (1, 1),
        SIDE,
        "Steps of the window of image-level pooling, in feature cells.",
        parse=_parse_strides,
    )
    projection: bool = option(
        True,
        help="Whether a 1x1 convolution projects the branches of the ASPP.",
        flag="aspp_with_concat_projection",
    )
    dropout: float = option(
        0.1,
        FRACTION,
        "Fraction dropped after the projection, in training only.",
        flag="",
    )
    squeeze_and_excitation: bool = option(
        False,
        help="Whether the image-level features gate the other branches instead of "
        "joining them (LR-ASPP, 1905.02244, Fig. 10).",
        flag="aspp_with_squeeze_and_excitation",
    )
    hard_sigmoid: bool = option(
        False,
        help="Whether the gate of LR-ASPP is a hard sigmoid, piecewise linear.",
        flag="image_se_uses_qsigmoid",
    )
    dense_prediction_cell: tuple[CellBranch, ...] = option(
        (),
        help="Branches that replace the ASPP, of depth 256 (1809.04184); () is the "
        "ASPP. On a command line a JSON file, or the name of the released one.",
        flag="dense_prediction_cell_json",
        flag_default="",
        parse=parse_cell,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.image_level or not self.squeeze_and_excitation,
            "aspp_with_squeeze_and_excitation needs add_image_level_feature",
        )
        require(
            self.aspp or not self.dense_prediction_cell,
            "a dense prediction cell stands in the place of the ASPP; received one "
            "with aspp_with_batch_norm false",
        )
        for i, branch in enumerate(self.dense_prediction_cell):
            require(
                -1 <= branch.input < i,
                f"branch {i} of the dense prediction cell takes input -1"
                f"{f' to {i - 1}' if i else ''}; received {branch.input}",
            )


@document_fields
@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The decoder of DeepLabv3+ (1802.02611, Sec. 3.1 and 4.1).

    Raises:
        UserError: for an impossible value or combination; names the flag.
    """

    output_strides: tuple[int, ...] | None = option(
        None,
        help="Strides of the decoder's low-level features, descending. (), the flag's "
        "default, is DeepLabv3, without a decoder; None takes the papers' (4,), or () "
        "for a backbone without low-level features.",
        flag="decoder_output_stride",
        flag_default=(),
    )
    filters: int = option(
        256,
        _CHANNELS,
        "Depth of the decoder's convolutions. Ignored where the decoder gives the "
        "logits: it is the number of classes then.",
        flag="decoder_filters",
    )
    projection_filters: int = ours(
        48,
        _CHANNELS,
        "Depth to which the decoder reduces low-level features (DeepLabv3+, Table 1).",
        flag="decoder_projection_filters",
    )
    convolutions: int = ours(
        2,
        Range(at_least=1, at_most=100),
        "Number of 3x3 convolutions of the decoder at each stride (DeepLabv3+, "
        "Table 2).",
        flag="decoder_convolutions",
    )
    kernel_size: int = ours(
        3,
        Range(at_least=1, at_most=99),
        "Side of the kernels of the decoder (DeepLabv3+, Table 2).",
        flag="decoder_kernel_size",
    )
    separable: bool = option(
        True,
        help="Whether the decoder's convolutions are depthwise separable.",
        flag="decoder_use_separable_conv",
    )
    sum_merge: bool = option(
        False,
        help="Whether the decoder adds low-level features to the context, after one "
        "convolution, instead of concatenating them (1905.02244, Fig. 10).",
        flag="decoder_use_sum_merge",
    )
    outputs_logits: bool = option(
        False,
        help="Whether the decoder gives the logits: its convolutions are linear then, "
        "and there is no logits layer.",
        flag="decoder_output_is_logits",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        strides = [4] if self.output_strides is None else list(self.output_strides)
        require(
            strides == sorted(set(strides), reverse=True)
            and set(strides) <= {4, 8, 16},
            "decoder_output_stride takes 4, 8 and 16 in descending order; "
            f"received {strides}",
        )
        for name in ("projection_filters", "convolutions"):
            value, default = getattr(self, name), getattr(DecoderConfig, name)
            require(
                not self.sum_merge or value == default,
                f"a decoder that adds has one convolution and no other depth: {name} "
                f"must be left at {default}; received {value}",
            )
        require(
            self.kernel_size == DecoderConfig.kernel_size
            or not (self.sum_merge and self.outputs_logits),
            "a decoder that adds and gives the logits has 1x1 convolutions: "
            f"kernel_size must be left at {DecoderConfig.kernel_size}; received "
            f"{self.kernel_size}",
        )
        require(
            bool(strides) or not self.outputs_logits,
            "decoder_output_is_logits needs a decoder_output_stride",
        )
