"""DeepLabv3 and DeepLabv3+ for TensorFlow 2 and Keras 3.

Names are imported on first use, so that `deeplab_tf.models` works without TensorFlow.
The Keras classes are registered as soon as Keras is imported, so that
`keras.saving.load_model` finds them.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ContextConfig": "config",
    "DataConfig": "config",
    "DatasetInfo": "data.info",
    "DecoderConfig": "config",
    "DeepLab": "models.deeplab",
    "EvalConfig": "config",
    "Experiment": "config",
    "MeanIoU": "evaluation.mean_iou",
    "ModelConfig": "config",
    "Momentum": "training.momentum",
    "PolySchedule": "training.learning_rate",
    "PredictionImages": "training.callbacks",
    "SegmentationLoss": "training.losses",
    "TrainConfig": "config",
    "Trainer": "training.trainer",
    "UserError": "errors",
    "build_model": "models.deeplab",
    "dataset_info": "data.info",
    "evaluate": "evaluation.evaluator",
    "export_onnx": "serving.onnx_file",
    "export_frozen_graph": "serving.frozen_graph",
    "export_openvino": "serving.openvino_file",
    "export_saved_model": "serving.saved_model",
    "export_tflite": "serving.tflite_export",
    "from_pretrained": "checkpoints.pretrained",
    "load_artefact": "serving.formats",
    "load_dataset": "data.pipeline",
    "load_tf1_checkpoint": "checkpoints.tf1",
    "load_tf1_variables": "checkpoints.restore",
    "multiply_adds": "models.complexity",
    "overlay": "visualize",
    "predict_labels": "labelling.prediction",
    "push_to_hub": "checkpoints.hub",
    "save_tf1_checkpoint": "checkpoints.tf1",
    "tf1_variables": "checkpoints.restore",
    "torch_state_dict": "checkpoints.pytorch.layouts",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    # Repeats `_HOME` for type checkers, which cannot follow `__getattr__`.
    from deeplab_tf.checkpoints.hub import push_to_hub as push_to_hub
    from deeplab_tf.checkpoints.pretrained import from_pretrained as from_pretrained
    from deeplab_tf.checkpoints.pytorch.layouts import (
        torch_state_dict as torch_state_dict,
    )
    from deeplab_tf.checkpoints.restore import (
        load_tf1_variables as load_tf1_variables,
        tf1_variables as tf1_variables,
    )
    from deeplab_tf.checkpoints.tf1 import (
        load_tf1_checkpoint as load_tf1_checkpoint,
        save_tf1_checkpoint as save_tf1_checkpoint,
    )
    from deeplab_tf.config import (
        ContextConfig as ContextConfig,
        DataConfig as DataConfig,
        DecoderConfig as DecoderConfig,
        EvalConfig as EvalConfig,
        Experiment as Experiment,
        ModelConfig as ModelConfig,
        TrainConfig as TrainConfig,
    )
    from deeplab_tf.data.info import (
        DatasetInfo as DatasetInfo,
        dataset_info as dataset_info,
    )
    from deeplab_tf.data.pipeline import load_dataset as load_dataset
    from deeplab_tf.errors import UserError as UserError
    from deeplab_tf.evaluation.evaluator import evaluate as evaluate
    from deeplab_tf.evaluation.mean_iou import MeanIoU as MeanIoU
    from deeplab_tf.labelling.prediction import predict_labels as predict_labels
    from deeplab_tf.models.complexity import multiply_adds as multiply_adds
    from deeplab_tf.models.deeplab import (
        DeepLab as DeepLab,
        build_model as build_model,
    )
    from deeplab_tf.serving.formats import load_artefact as load_artefact
    from deeplab_tf.serving.frozen_graph import (
        export_frozen_graph as export_frozen_graph,
    )
    from deeplab_tf.serving.onnx_file import export_onnx as export_onnx
    from deeplab_tf.serving.openvino_file import export_openvino as export_openvino
    from deeplab_tf.serving.saved_model import export_saved_model as export_saved_model
    from deeplab_tf.serving.tflite_export import export_tflite as export_tflite
    from deeplab_tf.training.callbacks import PredictionImages as PredictionImages
    from deeplab_tf.training.learning_rate import PolySchedule as PolySchedule
    from deeplab_tf.training.losses import SegmentationLoss as SegmentationLoss
    from deeplab_tf.training.momentum import Momentum as Momentum
    from deeplab_tf.training.trainer import Trainer as Trainer
    from deeplab_tf.visualize import overlay as overlay
else:

    def __getattr__(name: str) -> object:
        """Returns a public name from the module that defines it."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
        return getattr(module, name)


def __dir__() -> list[str]:
    """Returns the public names and the names of the module."""
    return [*__all__, *globals()]


# The modules whose classes Keras may find in a saved model; none needs TensorFlow.
_KERAS_CLASSES = (
    "models.deeplab",
    "training.learning_rate",
    "training.losses",
    "training.momentum",
    "evaluation.mean_iou",
)


def _register_keras_classes() -> None:
    for module in _KERAS_CLASSES:
        importlib.import_module(f"{__name__}.{module}")


class _AfterKeras:
    """Registers the Keras classes right after the first import of Keras.

    Importing Keras here instead would take seconds where nobody needs it.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Finds Keras as usual, but extends its loader."""
        if fullname != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        # TensorFlow looks for Keras without importing it.
        sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                execute(module)
                _register_keras_classes()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "keras" in sys.modules:
    _register_keras_classes()
else:
    sys.meta_path.insert(0, _AfterKeras())
