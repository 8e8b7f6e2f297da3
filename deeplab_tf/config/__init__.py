"""What an experiment is: model, data, training and evaluation, as frozen values.

The official flag names are spelled once (`official_flags`), so that a command
line, a golden case and an `experiment.json` describe a model in the same words.
"""

from deeplab_tf.config.backbones import BACKBONES
from deeplab_tf.config.experiment import (
    EXPERIMENT_FILE,
    DataConfig,
    EvalConfig,
    Experiment,
    TrainConfig,
)
from deeplab_tf.config.heads import (
    RELEASED_CELL,
    CellBranch,
    ContextConfig,
    DecoderConfig,
)
from deeplab_tf.config.model import ModelConfig
from deeplab_tf.config.official_flags import (
    MODEL_FLAGS,
    parse_numbers,
    parse_size,
    parsed,
)

__all__ = [
    "BACKBONES",
    "EXPERIMENT_FILE",
    "MODEL_FLAGS",
    "RELEASED_CELL",
    "CellBranch",
    "ContextConfig",
    "DataConfig",
    "DecoderConfig",
    "EvalConfig",
    "Experiment",
    "ModelConfig",
    "TrainConfig",
    "parse_numbers",
    "parse_size",
    "parsed",
]
