"""DeepLabv3 and DeepLabv3+ for TensorFlow 2 and Keras 3.

Names are loaded when they are first used, so that `deeplab_tf.models` imports
where TensorFlow is absent.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "ContextConfig": "config",
    "DataConfig": "config",
    "DatasetInfo": "data.info",
    "DecoderConfig": "config",
    "EvalConfig": "config",
    "Experiment": "config",
    "MeanIoU": "evaluation.confusion",
    "ModelConfig": "config",
    "SegmentationLoss": "training.losses",
    "TrainConfig": "config",
    "Trainer": "training.trainer",
    "UserError": "errors",
    "build_model": "models.deeplab",
    "dataset_info": "data.info",
    "evaluate": "evaluation.evaluator",
    "export_onnx": "serving.onnx_file",
    "export_saved_model": "serving.saved_model",
    "export_tflite": "serving.tflite_export",
    "from_pretrained": "checkpoints.pretrained",
    "load_artefact": "serving.formats",
    "load_dataset": "data.pipeline",
    "load_tf1_checkpoint": "checkpoints.tf1",
    "load_tf1_variables": "checkpoints.restore",
    "multiply_adds": "models.complexity",
    "overlay": "visualize",
    "predict_labels": "inference",
    "save_tf1_checkpoint": "checkpoints.tf1",
    "tf1_variables": "checkpoints.restore",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Returns a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    """Returns the public names and those of the module itself."""
    return [*__all__, *globals()]
