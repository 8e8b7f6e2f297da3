"""Networks of other projects: how they name their variables, and their configs."""

from collections.abc import Mapping

from deeplab_tf.checkpoints.layouts import (
    mmsegmentation,
    segmentation_models,
    torchvision,
    transformers,
)
from deeplab_tf.checkpoints.layouts.layout import Layout
from deeplab_tf.config import ModelConfig

LAYOUTS: tuple[Layout, ...] = (
    *torchvision.LAYOUTS,
    *segmentation_models.LAYOUTS,
    *mmsegmentation.LAYOUTS,
    *transformers.LAYOUTS,
)


def identify(
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[Layout, ModelConfig] | None:
    """Returns the layout and the config of a network by its variables' shapes."""
    for layout in LAYOUTS:
        config = layout.identify(shapes)
        if config is not None:
            return layout, config
    return None
