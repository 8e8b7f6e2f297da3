"""The forms in which models leave the project, told by the names of their files."""

from collections.abc import Callable

import tensorflow as tf

from deeplab_tf.serving.artefact import Artefact
from deeplab_tf.serving.onnx_file import OnnxPredictor
from deeplab_tf.serving.publication import ONNX, TFLITE, ending_of, is_saved_model
from deeplab_tf.serving.saved_model import SavedModelPredictor
from deeplab_tf.serving.tflite import TFLitePredictor

_READERS: dict[str, Callable[[str], Artefact]] = {
    TFLITE: TFLitePredictor,
    ONNX: OnnxPredictor,
}


def _is_file(path: str) -> bool:
    return bool(ending_of(path)) and not tf.io.gfile.isdir(path)


def is_artefact(path: str) -> bool:
    """Whether a path is an exported model: a SavedModel, else by its name."""
    return is_saved_model(path) or _is_file(path)


def load_artefact(path: str) -> Artefact:
    """Returns an exported model as a predictor, which `Evaluator` takes too.

    Args:
        path: Folder of a SavedModel, or a file that ends with `.tflite` or `.onnx`.

    Raises:
        UserError: if the model is broken, or has other inputs or outputs than those
            that label images.
    """
    reader = _READERS[ending_of(path)] if _is_file(path) else SavedModelPredictor
    return reader(path)
