"""Conventions in which frameworks differ."""

import dataclasses

from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.options import Range, document_fields, option

_OFFICIAL = "official"
_PIXELS = Range(at_least=-(2.0**16), at_most=2.0**16)


@document_fields
@dataclasses.dataclass(frozen=True)
class ConventionsConfig:
    """Details that other frameworks compute differently.

    The defaults are those of the official code. `from_pretrained` sets those of the
    project that the weights come from.

    Raises:
        UserError: for an invalid value.
    """

    resizing: str = option(
        "align_corners",
        ("align_corners", "half_pixel"),
        "Coordinates of bilinear resizing: align_corners, or half_pixel (PyTorch's "
        "align_corners=False).",
        flag="",
    )
    padding: str = option(
        _OFFICIAL,
        (_OFFICIAL, "symmetric"),
        "Padding of strided windows: official (TensorFlow's SAME, which depends on the "
        "image size, in MobileNets and in the max pooling of ResNets), or symmetric as "
        "in PyTorch.",
        flag="",
    )
    strided_unit: str = option(
        "last",
        ("last", "first"),
        "Unit of a ResNet block that applies the stride: last or first.",
        flag="",
    )
    strided_convolution: int = option(
        2,
        Range(at_least=1, at_most=2),
        "Convolution of a ResNet unit that applies the stride: 2, or 1 as in the "
        "two-convolution units of PyTorch and in Caffe.",
        flag="",
    )
    first_unit_rate: str = option(
        "previous",
        ("previous", "block"),
        "Atrous rate of a unit whose stride was replaced by a rate: previous (that of "
        "the units before it) or block (that of the units after it).",
        flag="",
    )
    absolute_multi_grid: bool = option(
        False,
        help="Use multi_grid as the rates of the last block, instead of multiplying "
        "the block's rate by it.",
        flag="",
    )
    low_level: str = option(
        _OFFICIAL,
        (_OFFICIAL, "output"),
        "Low-level features for the decoder: official (inside a unit, before its last "
        "sum or convolution) or output (of the last unit with that stride).",
        flag="",
    )
    depthwise_normalization: bool = option(
        True,
        help="Apply batch normalisation and ReLU between the depthwise and pointwise "
        "convolutions of the ASPP and the decoder.",
        flag="",
    )
    batch_norm_epsilon: float | None = option(
        None,
        Range(above=0, at_most=1),
        "Epsilon of all batch normalisation layers. Default: the official value of "
        "each part (1e-3 or 1e-5).",
        flag="",
    )
    pixel_mean: tuple[float, ...] | None = option(
        None,
        _PIXELS,
        "Mean of each channel, 0..255, to subtract from the image. Default: the "
        "official scaling of the backbone.",
        flag="",
    )
    pixel_deviation: tuple[float, ...] | None = option(
        None,
        Range(above=0, at_most=2**16),
        "Standard deviation of each channel, 0..255; the image is divided by it after "
        "pixel_mean is subtracted. Default: 1.",
        flag="",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.pixel_deviation is None or self.pixel_mean is not None,
            "pixel_deviation needs pixel_mean",
        )
