"""Context and decoder of a model."""

import dataclasses

from deeplab_tf.config.checks import (
    FRACTION,
    LONGEST_SIDE,
    Range,
    check_fields,
    require,
    setting,
)

# Channels of a layer: far more than any network has, and few enough to be built.
_CHANNELS = Range(at_least=1, at_most=2**16)
# Rates, strides and kernels, in feature cells.
_CELLS = Range(at_least=1, at_most=LONGEST_SIDE)


@dataclasses.dataclass(frozen=True)
class CellBranch:
    """One branch of a dense prediction cell (1809.04184).

    Attributes:
        op: "conv" or "pyramid_pooling".
        input: Index of the branch it continues; -1 is the backbone.
        kernel: Height and width of a convolution's kernel, 1x1 or 3x3.
        rate: Atrous rates of a 3x3 convolution, vertical and horizontal, at
            output stride 16.
        grid_size: Rows and columns into which pooling divides the image.

    Raises:
        UserError: for a value that cannot be.
    """

    op: str = setting(choices=("conv", "pyramid_pooling"))
    input: int = -1
    kernel: tuple[int, int] = (1, 1)
    rate: tuple[int, int] = setting((1, 1), _CELLS)
    grid_size: tuple[int, int] = setting((1, 1), _CELLS)

    def __post_init__(self) -> None:
        check_fields(self, " of a cell")
        require(
            self.kernel in ((1, 1), (3, 3)),
            f"kernel of a cell must be 1 or 3; received {self.kernel}",
        )


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """Atrous spatial pyramid pooling (DeepLabv3, Sec. 3.3), or what replaces it.

    Attributes:
        rates: Atrous rates of the 3x3 branches, at the model's output stride.
            None takes the papers' (6, 12, 18) at output stride 16, scaled to
            the model's; () leaves the 1x1 branch and the image-level features.
        aspp: Whether there is a context at all. Without it the logits look at
            the backbone, through one convolution for each of `rates` (DeepLabv2)
            or a single one.
        filters: Depth of every branch and of the projection.
        separable: Whether the 3x3 branches are depthwise separable.
        image_level: Whether image-level features take part (Fig. 5b).
        image_pooling_crop_size: Height and width in image pixels of the window
            that image-level pooling averages; None averages the whole image.
        image_pooling_stride: Steps of that window, in feature cells.
        projection: Whether a 1x1 convolution projects the branches.
        dropout: Fraction dropped after the projection, in training only.
        squeeze_and_excitation: Whether the image-level features gate the others
            instead of joining them (LR-ASPP, 1905.02244, Fig. 10).
        hard_sigmoid: Whether that gate is made of straight pieces.
        dense_prediction_cell: The branches that replace the ASPP, of the depth
            256 (1809.04184); () is the ASPP.

    Raises:
        UserError: for a value or a combination that cannot be; names the flag.
    """

    rates: tuple[int, ...] | None = setting(None, _CELLS, flag="--atrous_rates")
    aspp: bool = True
    filters: int = setting(256, _CHANNELS, flag="--aspp_convs_filters")
    separable: bool = True
    image_level: bool = True
    image_pooling_crop_size: tuple[int, int] | None = setting(None, _CELLS)
    image_pooling_stride: tuple[int, int] = setting((1, 1), _CELLS)
    projection: bool = True
    dropout: float = setting(0.1, FRACTION)
    squeeze_and_excitation: bool = False
    hard_sigmoid: bool = False
    dense_prediction_cell: tuple[CellBranch, ...] = ()

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


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The decoder of DeepLabv3+ (1802.02611, Sec. 3.1 and 4.1).

    Attributes:
        output_strides: Strides of the low-level features taken up, descending.
            None takes the papers' (4,), or nothing of a backbone that offers
            nothing; () is DeepLabv3, without a decoder.
        filters: Depth of the 3x3 convolutions. Where the decoder gives the
            logits it is the number of classes, whatever is said here.
        projection_filters: Depth to which low-level features are reduced
            (Table 1).
        convolutions: Number of 3x3 convolutions at each stride (Table 2).
        kernel_size: Side of their kernels (Table 2).
        separable: Whether the 3x3 convolutions are depthwise separable.
        sum_merge: Whether low-level features are added to the context, after one
            convolution, instead of joined (1905.02244, Fig. 10).
        outputs_logits: Whether the decoder gives the logits: its convolutions
            are linear then, and the logits layer is left out.

    Raises:
        UserError: for a value or a combination that cannot be; names the flag.
    """

    output_strides: tuple[int, ...] | None = setting(
        None, flag="--decoder_output_stride"
    )
    filters: int = setting(256, _CHANNELS, flag="--decoder_filters")
    projection_filters: int = setting(
        48, _CHANNELS, flag="--decoder_projection_filters"
    )
    convolutions: int = setting(
        2, Range(at_least=1, at_most=100), flag="--decoder_convolutions"
    )
    kernel_size: int = setting(
        3, Range(at_least=1, at_most=99), flag="--decoder_kernel_size"
    )
    separable: bool = True
    sum_merge: bool = False
    outputs_logits: bool = False

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


# The cell of the zoo's Xception-71 (1809.04184, Fig. 4).
RELEASED_CELL = tuple(
    CellBranch("conv", source, (3, 3), rate)
    for rate, source in (
        *(((1, 6), -1), ((18, 15), 0), ((6, 3), 1)),
        *(((1, 1), 0), ((6, 21), 0)),
    )
)
