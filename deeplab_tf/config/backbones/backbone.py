"""Describes a backbone."""

import dataclasses
from typing import Any

from deeplab_tf.config.conventions import ConventionsConfig


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A row of the table of backbones.

    Attributes:
        network: Architecture, for the builder of the family.
        options: Fields of `ModelConfig` that the backbone supports.
        multi_grid: Number of units in its last block.
        decoder_strides: Strides of its low-level features.
        least_output_stride: Stride of the layers whose stride cannot become a rate.
        subtracts_mean: Whether the ImageNet mean is subtracted from the image, instead
            of scaling it to [-1, 1].
    """

    network: Any
    options: tuple[str, ...]
    multi_grid: int = 0
    decoder_strides: tuple[int, ...] = (4, 8, 16)
    least_output_stride: int = 2
    subtracts_mean: bool = False

    @property
    def conventions(self) -> tuple[str, ...]:
        """Fields of `ConventionsConfig` that this backbone supports."""
        own = {field.name for field in dataclasses.fields(ConventionsConfig)}
        return tuple(name for name in type(self.network)._fields if name in own)
