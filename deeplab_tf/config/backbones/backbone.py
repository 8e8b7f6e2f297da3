"""A backbone: its architecture as data, and what can be asked of it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A row of the table of backbones.

    Attributes:
        network: Architecture: what the family's builder builds.
        options: Fields of `ModelConfig` that the builder takes.
        multi_grid: Number of unit rates in its last block.
        decoder_strides: Strides of the low-level features it offers.
        subtracts_mean: Whether it takes the image less the ImageNet mean instead
            of scaled to [-1, 1].
    """

    network: Any
    options: tuple[str, ...]
    multi_grid: int = 0
    decoder_strides: tuple[int, ...] = (4, 8, 16)
    subtracts_mean: bool = False
