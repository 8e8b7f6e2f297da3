"""Frozen configs of model, data, training and evaluation.

Each option is one field with its range, help and flag (see `options`), so the command
line and `experiment.json` share one definition.
"""

from deeplab_tf.config.backbones import BACKBONES
from deeplab_tf.config.cell import RELEASED_CELL, CellBranch
from deeplab_tf.config.conventions import ConventionsConfig
from deeplab_tf.config.data import DataConfig
from deeplab_tf.config.evaluation import EvalConfig
from deeplab_tf.config.experiment import EXPERIMENT_FILE, Experiment
from deeplab_tf.config.heads import ContextConfig, DecoderConfig
from deeplab_tf.config.model import MODEL_FLAGS, ModelConfig
from deeplab_tf.config.parsing import parse, parse_numbers, parse_option, parse_size
from deeplab_tf.config.train import TrainConfig

__all__ = [
    "BACKBONES",
    "EXPERIMENT_FILE",
    "MODEL_FLAGS",
    "RELEASED_CELL",
    "CellBranch",
    "ContextConfig",
    "ConventionsConfig",
    "DataConfig",
    "DecoderConfig",
    "EvalConfig",
    "Experiment",
    "ModelConfig",
    "TrainConfig",
    "parse",
    "parse_numbers",
    "parse_option",
    "parse_size",
]
