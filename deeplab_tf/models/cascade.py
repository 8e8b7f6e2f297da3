"""Atrous convolutions in cascade (DeepLabv3, 1706.05587, Sec. 3.2, Fig. 3)."""

from typing import NamedTuple


class Block(NamedTuple):
    """Residual units of one resolution.

    Attributes:
        depth: Base depth of its units.
        units: Number of units.
        stride: Stride of the last unit.
    """

    depth: int
    units: int
    stride: int


def replicate_last_block(blocks: tuple[Block, ...], replicas: int) -> tuple[Block, ...]:
    """Returns the blocks with replicas of the last one in cascade after it.

    Every block but the new last one ends with a stride of 2, so that without
    atrous convolution each replica halves the resolution (Fig. 3a); with it the
    rates double from block to block instead (Fig. 3b).

    Args:
        blocks: Blocks of a classification network.
        replicas: Number of replicas: the paper adds block5 to block7.
    """
    *first, last = blocks
    return (*first, *replicas * (last._replace(stride=2),), last)
