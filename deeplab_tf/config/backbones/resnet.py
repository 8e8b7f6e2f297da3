"""ResNet v1 (1512.03385, Table 1).

The "beta" networks start with three 3x3 convolutions instead of a 7x7 one (PSPNet,
1612.01105). "v1c" networks, as in MMSegmentation, also do, with half the depth in the
first two.
"""

from typing import NamedTuple

from deeplab_tf.config.backbones.backbone import Backbone


class ResNet(NamedTuple):
    """A residual network.

    Attributes:
        scope: Official scope.
        units: Number of residual units in block1 to block4.
        root: Depths of the 3x3 convolutions at the start; () means one 7x7 convolution
            to 64 channels.
        lite: Whether units are two 3x3 convolutions instead of a bottleneck.
        depths: Base depth of the units in block1 to block4.

    The other attributes are those of `ConventionsConfig`.
    """

    scope: str
    units: tuple[int, ...]
    root: tuple[int, ...] = ()
    lite: bool = False
    depths: tuple[int, ...] = (64, 128, 256, 512)
    padding: str = "official"
    strided_unit: str = "last"
    strided_convolution: int = 2
    first_unit_rate: str = "previous"
    absolute_multi_grid: bool = False
    low_level: str = "official"


def _make_backbone(
    scope: str, units: tuple[int, ...], root: tuple[int, ...] = (), lite: bool = False
) -> Backbone:
    return Backbone(
        ResNet(scope, units, root, lite),
        options=("multi_grid", "cascade_blocks"),
        multi_grid=units[-1],
        least_output_stride=4,
        subtracts_mean=not root,
    )


_BETA, _LITE_BETA = (64, 64, 128), (16, 16, 32)
_V1C = (32, 32, 64)

RESNETS = {
    "resnet_v1_18": _make_backbone("resnet_v1_18", (2, 2, 2, 2), lite=True),
    "resnet_v1_18_beta": _make_backbone(
        "resnet_v1_18", (2, 2, 2, 2), _LITE_BETA, lite=True
    ),
    "resnet_v1_34": _make_backbone("resnet_v1_34", (3, 4, 6, 3), lite=True),
    "resnet_v1_50": _make_backbone("resnet_v1_50", (3, 4, 6, 3)),
    "resnet_v1_50_beta": _make_backbone("resnet_v1_50", (3, 4, 6, 3), _BETA),
    "resnet_v1_101": _make_backbone("resnet_v1_101", (3, 4, 23, 3)),
    "resnet_v1_101_beta": _make_backbone("resnet_v1_101", (3, 4, 23, 3), _BETA),
    "resnet_v1_152": _make_backbone("resnet_v1_152", (3, 8, 36, 3)),
    "resnet_v1c_50": _make_backbone("resnet_v1c_50", (3, 4, 6, 3), _V1C),
    "resnet_v1c_101": _make_backbone("resnet_v1c_101", (3, 4, 23, 3), _V1C),
}
