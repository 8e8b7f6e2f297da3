"""Atrous convolutions in cascade (DeepLabv3, 1706.05587, Sec. 3.2, Fig. 3)."""

from typing import NamedTuple


class Block(NamedTuple):
    """Residual units at one resolution; the last unit has the `stride`."""

    depth: int
    units: int
    stride: int


def replicate_last_block(blocks: tuple[Block, ...], replicas: int) -> tuple[Block, ...]:
    """Appends replicas of the last block (block5 to block7).

    All but the last end with stride 2, so without atrous convolution each replica
    halves the resolution (Fig. 3a). With it, the rate doubles from block to block
    instead (Fig. 3b).
    """
    *first, last = blocks
    return (*first, *replicas * (last._replace(stride=2),), last)
