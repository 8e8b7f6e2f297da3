"""An exported model, whatever its form, as evaluation and prediction look at it."""

import tensorflow as tf

from deeplab_tf.serving.saved_model import SavedModelPredictor, is_saved_model
from deeplab_tf.serving.tflite import TFLitePredictor


def is_artefact(path: str) -> bool:
    """Whether a path is an exported model: a SavedModel or a TFLite file, by name."""
    return is_saved_model(path) or _is_tflite(path)


def _is_tflite(path: str) -> bool:
    return path.endswith(".tflite") and not tf.io.gfile.isdir(path)


def load_artefact(path: str) -> SavedModelPredictor | TFLitePredictor:
    """Returns an exported model as a predictor, which `Evaluator` takes too.

    Args:
        path: Folder of a SavedModel, or a file that ends with `.tflite`.

    Raises:
        UserError: if the model is broken, or has other inputs or outputs than those
            that label images.
    """
    return TFLitePredictor(path) if _is_tflite(path) else SavedModelPredictor(path)
