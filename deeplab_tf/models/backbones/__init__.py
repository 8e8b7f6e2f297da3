"""The backbones: one file and one row each."""

import dataclasses
from collections.abc import Callable

from deeplab_tf.models.backbones.mobilenet_v2 import mobilenet_v2


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A row of `BACKBONES`.

    Attributes:
        build: `(image, output_stride, batch_norm_momentum, **options)` -> features
            by name: "high_level" and, by stride, the low-level ones.
        options: Fields of `ModelConfig` that `build` takes besides.
    """

    build: Callable
    options: tuple[str, ...] = ()


BACKBONES = {
    "mobilenet_v2": Backbone(mobilenet_v2, ("depth_multiplier", "divisible_by")),
}
