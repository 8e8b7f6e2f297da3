"""Networks of other projects: their variable names and configs."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np

from deeplab_tf.arguments import check_arguments
from deeplab_tf.checkpoints.pytorch.layouts import (
    classifiers,
    mmsegmentation,
    segmentation_models,
    torchvision,
    transformers,
)
from deeplab_tf.checkpoints.pytorch.layouts.layout import Layout
from deeplab_tf.checkpoints.restore import is_model_variable, tf1_variables
from deeplab_tf.config import ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models.checks import BUILT

SEGMENTATION_LAYOUTS: tuple[Layout, ...] = (
    *torchvision.LAYOUTS,
    *segmentation_models.LAYOUTS,
    *mmsegmentation.LAYOUTS,
    *transformers.LAYOUTS,
)
LAYOUTS = (*SEGMENTATION_LAYOUTS, *classifiers.LAYOUTS)
_PROJECTS = (
    "DeepLabv3 or LR-ASPP of torchvision, DeepLabV3 or DeepLabV3Plus of "
    "segmentation_models_pytorch or MMSegmentation, MobileNetV2 of transformers, or an "
    "ImageNet classifier of torchvision or timm"
)


class Network(NamedTuple):
    """A network of another project, converted.

    Attributes:
        layout: Its layout.
        config: Its config.
        arrays: Its variables by official name.
        unused: Names of variables that the model does not have.
    """

    layout: Layout
    config: ModelConfig
    arrays: dict[str, np.ndarray]
    unused: list[str]


def convert_state_dict(
    state: Mapping[str, np.ndarray], description: Mapping, source: str
) -> Network:
    """Returns the network of a state dict.

    Args:
        state: Maps names to values.
        description: Content of a `config.json` next to it; may be empty.
        source: Name of the file, for errors.

    Raises:
        UserError: if no supported network has such variables.
    """
    shapes = {name: np.shape(array) for name, array in state.items()}
    found = identify_network(shapes, description)
    if found is not None:
        layout, config = found
        return Network(layout, config, *layout.read_variables(config, state))
    first = ", ".join(list(state)[:3])
    raise UserError(
        f"{source} has variables of no supported network ({first}, ...); supported: "
        f"{_PROJECTS}"
    )


def identify_network(
    shapes: Mapping[str, tuple[int, ...]], description: Mapping
) -> tuple[Layout, ModelConfig] | None:
    """Returns the layout and the config of a network, or None if it is unknown."""
    for layout in LAYOUTS:
        try:
            config = layout.identify(shapes, description)
        except UserError:
            raise
        except (LookupError, ValueError):
            continue  # a variable is missing or has a different number of axes
        if config is not None:
            return layout, config
    return None


@check_arguments(model=BUILT)
def torch_state_dict(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns a model's weights under the variable names of the matching project.

    The inverse of `from_pretrained` for PyTorch files: convert the values with
    `torch.from_numpy` and pass them to `load_state_dict` of torchvision's DeepLabv3 and
    LR-ASPP (without auxiliary head), DeepLabV3 and DeepLabV3Plus of
    segmentation_models_pytorch and MMSegmentation, or
    `MobileNetV2ForSemanticSegmentation`.

    Raises:
        UserError: if no network of these projects computes the same function.
    """
    config = model.model_config
    arrays = {n: a for n, a in tf1_variables(model).items() if is_model_variable(n)}
    for layout in SEGMENTATION_LAYOUTS:
        state, unused = layout.write_variables(config, arrays)
        if unused:
            continue
        shapes = {name: array.shape for name, array in state.items()}
        theirs = layout.identify(shapes, {})
        if theirs is not None and _is_equivalent(config, theirs):
            return state
    raise UserError(
        f"no network of a PyTorch project computes the same as this {config.backbone} "
        "model; start from weights of one (from_pretrained), or build the model with "
        f"its config: {_PROJECTS}"
    )


def _is_equivalent(ours: ModelConfig, theirs: ModelConfig) -> bool:
    """Returns whether configs with the same variables compute the same function.

    The projects choose the output stride, the rates, the multi-grid and the scaling of
    pixels when they build a network.
    """
    free: dict = {
        "pixel_mean": None,
        "pixel_deviation": None,
        "absolute_multi_grid": False,
    }

    def reset_free_fields(config: ModelConfig) -> ModelConfig:
        rates = tuple(1 for _ in config.atrous_rates)
        return dataclasses.replace(
            config,
            output_stride=16,
            multi_grid=(),
            batch_norm_momentum=None,
            context=dataclasses.replace(config.context, rates=rates, dropout=0.0),
            conventions=dataclasses.replace(config.conventions, **free),
        )

    return reset_free_fields(ours) == reset_free_fields(theirs)
