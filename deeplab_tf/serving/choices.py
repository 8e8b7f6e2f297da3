"""Formats and options of exports, which are checked before TensorFlow starts."""

from deeplab_tf.arguments import join_choices
from deeplab_tf.errors import UserError, require_extra

# Endings of files; a SavedModel is a folder, so it has any ending.
TFLITE, ONNX, OPENVINO, FROZEN, KERAS = ".tflite", ".onnx", ".xml", ".pb", ".keras"
SAVED_MODEL = ""
# Package that runs a format, and the name of the format in errors.
_ENGINES = {
    ONNX: ("onnxruntime", "ONNX"),
    OPENVINO: ("openvino", "OpenVINO"),
    TFLITE: ("ai_edge_litert", "TFLite"),
}
_FILES = (TFLITE, ONNX, OPENVINO, FROZEN, KERAS)
# Endings of files that we do not write; a SavedModel would be a folder of that name.
_OTHER_FILES = (
    *(".h5", ".hdf5", ".pt", ".pth", ".safetensors", ".npz", ".pkl", ".json"),
    *(".pbtxt", ".lite", ".engine", ".mlmodel", ".mlpackage", ".bin"),
    *(".zip", ".tar", ".gz", ".tgz"),
)

TFLITE_PRECISIONS = ("float32", "float16", "dynamic", "int8")
ONNX_PRECISIONS = ("float32", "float16", "int8")
OPENVINO_PRECISIONS = ("float32", "float16", "bfloat16", "int8")
PRECISIONS = (*TFLITE_PRECISIONS, "bfloat16")
TFLITE_INPUTS = ("float32", "uint8")
LABEL_OUTPUTS = ("labels", "category_mask")
TFLITE_OUTPUTS = (*LABEL_OUTPUTS, "logits", "probabilities")
# Largest image that the signature `encoded` accepts by default.
MAX_PIXELS = 1 << 24


def ending_of(path: str) -> str:
    """Returns the ending of a file's format, such as `.onnx`; "" for a SavedModel."""
    return next((ending for ending in _FILES if path.endswith(ending)), SAVED_MODEL)


def require_format(path: str) -> None:
    """Raises UserError if a path has the extension of a format that we do not write."""
    if path.lower().endswith(_OTHER_FILES):
        raise UserError(
            f"{path} has the extension of a different format; give a name ending in "
            f"{join_choices(_FILES)}, or a folder for a SavedModel"
        )


def require_engine(path: str) -> None:
    """Raises UserError if the package that runs the format of a file is missing."""
    if engine := _ENGINES.get(ending_of(path)):
        module, kind = engine
        require_extra([module], "export", f"{path}: {kind} files need")
