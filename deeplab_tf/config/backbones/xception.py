"""The modified aligned Xception (DeepLabv3+, 1802.02611, Sec. 3.2, Fig. 4)."""

from typing import NamedTuple

from deeplab_tf.config.backbones.backbone import Backbone


class Block(NamedTuple):
    """A sequence of equal modules.

    Attributes:
        scope: Official scope, relative to the network.
        depths: Depths of the three separable convolutions of a module.
        shortcut: "conv", "sum" or "none".
        stride: Nominal stride of the last convolution.
        units: Number of modules.
        low_level: Stride of the low-level features taken from the block, if any.
    """

    scope: str
    depths: tuple[int, int, int]
    shortcut: str
    stride: int
    units: int = 1
    low_level: int | None = None


class Xception(NamedTuple):
    """An Xception: blocks after the two convolutions of the root."""

    scope: str
    blocks: tuple[Block, ...]


def _make_entry_block(
    index: int, depth: int, stride: int = 2, low_level: int | None = None
) -> Block:
    return Block(f"entry_flow.block{index}", 3 * (depth,), "conv", stride, 1, low_level)


def _make_middle_block(units: int) -> Block:
    return Block("middle_flow.block1", 3 * (728,), "sum", 1, units)


_EXIT_FLOW = (
    Block("exit_flow.block1", (728, 1024, 1024), "conv", 2, 1, 16),
    Block("exit_flow.block2", (1536, 1536, 2048), "none", 1),
)
_ENTRY_FLOW = (
    _make_entry_block(1, 128),
    _make_entry_block(2, 256, 2, 4),
    _make_entry_block(3, 728, 2, 8),
)
_ENTRY_FLOW_71 = (
    _make_entry_block(1, 128),
    *(_make_entry_block(2, 256, 1), _make_entry_block(3, 256, 2, 4)),
    *(_make_entry_block(4, 728, 1), _make_entry_block(5, 728, 2, 8)),
)

XCEPTIONS = {
    name: Backbone(
        Xception(name, (*entry_flow, _make_middle_block(units), *_EXIT_FLOW)),
        options=("multi_grid", "bounded_activation", "depthwise_activation"),
        multi_grid=3,
    )
    for name, entry_flow, units in (
        ("xception_41", _ENTRY_FLOW, 8),
        ("xception_65", _ENTRY_FLOW, 16),
        ("xception_71", _ENTRY_FLOW_71, 16),
    )
}
