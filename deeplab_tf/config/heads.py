"""Configuration of the context module and the decoder."""

import dataclasses

from deeplab_tf.config.cell import CellBranch, parse_cell
from deeplab_tf.config.checks import check_fields, name_option, require
from deeplab_tf.config.options import (
    FRACTION,
    SIDE,
    Range,
    document_fields,
    option,
    ours,
)
from deeplab_tf.config.parsing import parse_size

# Channels of a layer: more than any network has, but few enough to build.
_CHANNELS = Range(at_least=1, at_most=2**16)


def _parse_strides(value: object) -> tuple[int, int]:
    return parse_size(value) or (1, 1)


@document_fields
@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """Atrous spatial pyramid pooling (DeepLabv3, Sec. 3.3) or its replacement.

    Raises:
        UserError: for an impossible value or combination; names the flag.
    """

    rates: tuple[int, ...] | None = option(
        None,
        SIDE,
        "Atrous rates of the 3x3 ASPP branches at the model's output stride. An empty "
        "list, the default of the flag, leaves only the 1x1 branch and image-level "
        "features. None, the default in Python, means 6,12,18 at output stride 16 (as "
        "in the papers), scaled for other strides.",
        flag="atrous_rates",
        flag_default=(),
    )
    aspp: bool = option(
        True,
        help="Use the ASPP. Without it, the logits are computed directly from the "
        "backbone, by one convolution per atrous rate (DeepLabv2) or a single one.",
        flag="aspp_with_batch_norm",
    )
    filters: int = option(
        256,
        _CHANNELS,
        "Depth of each ASPP branch and of the projection.",
        flag="aspp_convs_filters",
    )
    separable: bool = option(
        True,
        help="Use depthwise separable convolutions in the 3x3 ASPP branches.",
        flag="aspp_with_separable_conv",
    )
    image_level: bool = option(
        True,
        help="Add image-level features to the ASPP (DeepLabv3, Fig. 5b).",
        flag="add_image_level_feature",
    )
    image_pooling_crop_size: tuple[int, int] | None = option(
        None,
        SIDE,
        "Height and width, in image pixels, of the window of image-level pooling. "
        "Default: the entire image.",
    )
    image_pooling_stride: tuple[int, int] = option(
        (1, 1),
        SIDE,
        "Vertical and horizontal stride of image-level pooling, in feature cells.",
        parse=_parse_strides,
    )
    projection: bool = option(
        True,
        help="Project the concatenated ASPP branches with a 1x1 convolution.",
        flag="aspp_with_concat_projection",
    )
    projection_kernel_size: int = option(
        1,
        Range(at_least=1, at_most=99),
        "Kernel size of the projection; MMSegmentation's is 3.",
        flag="",
    )
    convolutions: int = option(
        0,
        Range(at_least=0, at_most=100),
        "Number of 3x3 convolutions after the projection, separable like the branches; "
        "torchvision has 1.",
        flag="",
    )
    dropout: float = option(
        0.1,
        FRACTION,
        "Dropout rate after the projection, during training.",
        flag="",
    )
    squeeze_and_excitation: bool = option(
        False,
        help="Use the image-level features, if any, to gate the other branches instead "
        "of concatenating them (LR-ASPP, 1905.02244, Fig. 10).",
        flag="aspp_with_squeeze_and_excitation",
    )
    hard_sigmoid: bool = option(
        False,
        help="Use a piecewise linear (hard) sigmoid as the gate of LR-ASPP.",
        flag="image_se_uses_qsigmoid",
    )
    gate_bias: bool = option(
        True, help="Use a bias in the gate of LR-ASPP; torchvision has none.", flag=""
    )
    dense_prediction_cell: tuple[CellBranch, ...] = option(
        (),
        help="Dense prediction cell that replaces the ASPP (1809.04184). The flag "
        "takes a JSON file or the name of the released one. Default: the ASPP.",
        flag="dense_prediction_cell_json",
        flag_default="",
        parse=parse_cell,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.aspp or not self.dense_prediction_cell,
            "a dense prediction cell replaces the ASPP, so it needs "
            f"{name_option(self, 'aspp')} to be True; received False",
        )
        for i, branch in enumerate(self.dense_prediction_cell):
            require(
                -1 <= branch.input < i,
                f"branch {i} of the dense prediction cell needs an input of -1"
                f"{f' to {i - 1}' if i else ''}; received {branch.input}",
            )

    @property
    def has_gate(self) -> bool:
        """Whether image-level features gate the other branches (LR-ASPP)."""
        return self.image_level and self.squeeze_and_excitation


@document_fields
@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The decoder of DeepLabv3+ (1802.02611, Sec. 3.1 and 4.1).

    Raises:
        UserError: for an impossible value or combination; names the flag.
    """

    output_strides: tuple[int, ...] | None = option(
        None,
        help="Strides of the decoder's low-level features, in descending order; the "
        "papers use 4. An empty list, the default of the flag, means no decoder "
        "(DeepLabv3). None, the default in Python, means 4 if the backbone has "
        "features of that stride.",
        flag="decoder_output_stride",
        flag_default=(),
    )
    filters: int = option(
        256,
        _CHANNELS,
        "Depth of the decoder's convolutions; the number of classes if the decoder "
        "outputs the logits.",
        flag="decoder_filters",
    )
    projection_filters: int = ours(
        48,
        _CHANNELS,
        "Depth that low-level features are reduced to (DeepLabv3+, Table 1).",
        flag="decoder_projection_filters",
    )
    convolutions: int = ours(
        2,
        Range(at_least=1, at_most=100),
        "Number of decoder convolutions at each stride (DeepLabv3+, Table 2).",
        flag="decoder_convolutions",
    )
    kernel_size: int = ours(
        3,
        Range(at_least=1, at_most=99),
        "Kernel size of the decoder's convolutions (DeepLabv3+, Table 2).",
        flag="decoder_kernel_size",
    )
    separable: bool = option(
        True,
        help="Use depthwise separable convolutions in the decoder.",
        flag="decoder_use_separable_conv",
    )
    sum_merge: bool = option(
        False,
        help="Add low-level features to the context after one convolution, instead of "
        "concatenating them (1905.02244, Fig. 10).",
        flag="decoder_use_sum_merge",
    )
    outputs_logits: bool = option(
        False,
        help="Output the logits directly from the decoder, with linear convolutions "
        "and no logits layer.",
        flag="decoder_output_is_logits",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        strides = [4] if self.output_strides is None else list(self.output_strides)
        require(
            strides == sorted(set(strides), reverse=True)
            and set(strides) <= {4, 8, 16},
            f"{name_option(self, 'output_strides')} must be a subset of 4, 8 and 16 in "
            f"descending order; received {strides}",
        )
        for name in ("projection_filters", "convolutions"):
            value, default = getattr(self, name), getattr(DecoderConfig, name)
            require(
                not self.sum_merge or value == default,
                f"{name_option(self, name)} is not supported with "
                f"{name_option(self, 'sum_merge')}; leave it at {default} (received "
                f"{value})",
            )
        require(
            self.kernel_size == DecoderConfig.kernel_size
            or not (self.sum_merge and self.outputs_logits),
            f"{name_option(self, 'kernel_size')} is not supported with "
            f"{name_option(self, 'sum_merge')} and "
            f"{name_option(self, 'outputs_logits')}, which use 1x1 convolutions; leave "
            f"it at {DecoderConfig.kernel_size} (received {self.kernel_size})",
        )
        require(
            bool(strides) or not self.outputs_logits,
            f"{name_option(self, 'outputs_logits')} needs "
            f"{name_option(self, 'output_strides')}",
        )
