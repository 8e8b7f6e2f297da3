"""What can be asked of each backbone."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class BackboneTraits:
    """What can be asked of a backbone.

    Attributes:
        options: Fields of `ModelConfig` that its builder takes.
        multi_grid: Number of unit rates in its last block.
        decoder_strides: Strides of the low-level features it offers.
        subtracts_mean: Whether it sees the image less the ImageNet mean instead
            of scaled to [-1, 1].
    """

    options: tuple[str, ...]
    multi_grid: int = 0
    decoder_strides: tuple[int, ...] = (4, 8, 16)
    subtracts_mean: bool = False


_XCEPTION = BackboneTraits(
    ("multi_grid", "bounded_activation", "depthwise_activation"), multi_grid=3
)
_RESNET = BackboneTraits(("multi_grid", "cascade_blocks"), multi_grid=3)
_RESNET_18 = dataclasses.replace(_RESNET, multi_grid=2)
_MOBILENET = BackboneTraits(("depth_multiplier",))

# Every backbone; `deeplab_tf.models.backbones.BACKBONES` has their builders.
BACKBONES = {
    "mobilenet_v2": BackboneTraits(("depth_multiplier", "divisible_by")),
    "mobilenet_v3_large_seg": _MOBILENET,
    "mobilenet_v3_small_seg": _MOBILENET,
    "mobilenet_edgetpu": dataclasses.replace(_MOBILENET, decoder_strides=()),
    "resnet_v1_18": dataclasses.replace(_RESNET_18, subtracts_mean=True),
    "resnet_v1_18_beta": _RESNET_18,
    "resnet_v1_50": dataclasses.replace(_RESNET, subtracts_mean=True),
    "resnet_v1_50_beta": _RESNET,
    "resnet_v1_101": dataclasses.replace(_RESNET, subtracts_mean=True),
    "resnet_v1_101_beta": _RESNET,
    "xception_41": _XCEPTION,
    "xception_65": _XCEPTION,
    "xception_71": _XCEPTION,
}

# Fields of `ModelConfig` that are refused where the backbone does not take them.
# bounded_activation is none: it is the heads' as well.
BACKBONE_OPTIONS = sorted(
    {option for row in BACKBONES.values() for option in row.options}
    - {"bounded_activation"}
)
