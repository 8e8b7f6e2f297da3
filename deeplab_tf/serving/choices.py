"""Formats and options of exports, which are checked before TensorFlow starts."""

import os

from deeplab_tf.arguments import join_choices
from deeplab_tf.errors import UserError, require_extra

# Endings of files; a SavedModel is a folder, so it has any ending.
TFLITE, ONNX, OPENVINO, FROZEN, KERAS = ".tflite", ".onnx", ".xml", ".pb", ".keras"
HTML = ".html"
SAVED_MODEL = ""
# Package that runs a format, and the name of the format in errors.
_ENGINES = {
    ONNX: ("onnxruntime", "ONNX"),
    OPENVINO: ("openvino", "OpenVINO"),
    TFLITE: ("ai_edge_litert", "TFLite"),
}
_FILES = (TFLITE, ONNX, OPENVINO, FROZEN, KERAS, HTML)
# Endings of files that we do not write; a SavedModel would be a folder of that name.
_OTHER_FILES = (
    *(".h5", ".hdf5", ".pt", ".pth", ".safetensors", ".npz", ".pkl", ".json"),
    *(".pbtxt", ".lite", ".engine", ".mlmodel", ".mlpackage", ".bin"),
    *(".zip", ".tar", ".gz", ".tgz"),
)

TFLITE_PRECISIONS = ("float32", "float16", "dynamic", "int8")
ONNX_PRECISIONS = ("float32", "float16", "int8")
OPENVINO_PRECISIONS = ("float32", "float16", "bfloat16", "int8")
HTML_PRECISIONS = ("float32", "float16")
PRECISIONS = (*TFLITE_PRECISIONS, "bfloat16")
TFLITE_INPUTS = ("float32", "uint8")
LABEL_OUTPUTS = ("labels", "category_mask")
TFLITE_OUTPUTS = (*LABEL_OUTPUTS, "logits", "probabilities")
# Files of the npm package `onnxruntime-web`: the script, then the WebAssembly.
_RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
# Largest image that the signature `encoded` accepts by default.
MAX_PIXELS = 1 << 24


def ending_of(path: str) -> str:
    """Returns the ending of a file's format, such as `.onnx`; "" for a SavedModel."""
    return next((ending for ending in _FILES if path.endswith(ending)), SAVED_MODEL)


def find_runtime(folder: str, path: str) -> list[str]:
    """Returns the paths of the script and the WebAssembly of ONNX Runtime.

    `folder` is the npm package `onnxruntime-web`, and `path` the page that needs it.

    Raises:
        UserError: if a file is missing.
    """
    found = [os.path.join(folder, "dist", name) for name in _RUNTIME_FILES]
    for file in found:
        if not os.path.isfile(file):
            raise UserError(
                f"{path} needs {file}; run npm install onnxruntime-web, or give the "
                "folder of that package as --web_runtime"
            )
    return found


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
