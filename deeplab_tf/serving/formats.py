"""Loads exported models of any format, recognised by file name."""

from collections.abc import Callable

import tensorflow as tf

from deeplab_tf.arguments import check_arguments
from deeplab_tf.checkpoints.exported_graph import has_official_weights
from deeplab_tf.checkpoints.keras_file import KERAS
from deeplab_tf.serving.artefact import Artefact
from deeplab_tf.serving.choices import FROZEN, ONNX, OPENVINO, TFLITE, ending_of
from deeplab_tf.serving.frozen_graph import FrozenGraphPredictor
from deeplab_tf.serving.keras_predictor import KerasPredictor
from deeplab_tf.serving.onnx_file import OnnxPredictor
from deeplab_tf.serving.openvino_file import OpenVinoPredictor
from deeplab_tf.serving.publication import is_saved_model
from deeplab_tf.serving.saved_model import SavedModelPredictor
from deeplab_tf.serving.tflite import TFLitePredictor

_READERS: dict[str, Callable[[str], Artefact]] = {
    TFLITE: TFLitePredictor,
    ONNX: OnnxPredictor,
    OPENVINO: OpenVinoPredictor,
    FROZEN: FrozenGraphPredictor,
    KERAS: KerasPredictor,
}


def _is_export_file(path: str) -> bool:
    """Returns whether a path ends like an exported file and is not a folder."""
    return bool(ending_of(path)) and not tf.io.gfile.isdir(path)


def is_artefact(path: str) -> bool:
    """Returns whether a path is an exported model: a SavedModel, or a file by its name.

    A `.keras` file counts as a checkpoint, to which all options of a model apply, and
    so does a frozen graph with the variables of the official code.
    """
    if is_saved_model(path) or not _is_export_file(path):
        return is_saved_model(path)
    if ending_of(path) == FROZEN:
        return not has_official_weights(path)
    return ending_of(path) != KERAS


@check_arguments()
def load_artefact(path: str) -> Artefact:
    """Loads an exported model, to predict with or to pass to `Evaluator`.

    Args:
        path: Folder of a SavedModel, or a file that ends with `.tflite`, `.onnx`,
            `.xml` (OpenVINO), `.pb` (frozen graph) or `.keras`.

    Raises:
        UserError: if the model is damaged, or has other inputs or outputs than a model
            that labels images.
    """
    reader = _READERS[ending_of(path)] if _is_export_file(path) else SavedModelPredictor
    return reader(path)
