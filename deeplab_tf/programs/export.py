"""Exports a checkpoint for TensorFlow, TFLite, ONNX, OpenVINO or Keras.

    python export.py --checkpoint_path=logs --export_path=exported
    python export.py --checkpoint_path=logs --export_path=model.tflite
    python export.py --checkpoint_path=logs --export_path=model.onnx
    python export.py --checkpoint_path=logs --export_path=model.xml
    python export.py --checkpoint_path=logs --export_path=model.pb
    python export.py --checkpoint_path=logs --export_path=model.keras

With --dataset_dir, the export is evaluated on these records and rejected if its mIoU is
more than --max_miou_drop points below the model's. docs/serving.md describes the
signatures of a SavedModel, docs/formats.md the files.
"""

import functools

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.arguments import join_choices
from deeplab_tf.config import DataConfig, EvalConfig
from deeplab_tf.config.options import (
    DATA,
    EVALUATION,
    MODEL,
    OUTPUT,
    export_flag_name,
)
from deeplab_tf.errors import UserError, require_extra
from deeplab_tf.serving.choices import (
    FROZEN,
    HTML,
    HTML_PRECISIONS,
    MAX_PIXELS,
    ONNX,
    ONNX_PRECISIONS,
    OPENVINO,
    OPENVINO_PRECISIONS,
    PRECISIONS,
    SAVED_MODEL,
    TFLITE,
    TFLITE_INPUTS,
    TFLITE_OUTPUTS,
    TFLITE_PRECISIONS,
    ending_of,
    find_runtime,
    require_format,
)

# Flags that apply to some formats only.
_FORMATS_OF_FLAGS = {
    "export_probabilities": (SAVED_MODEL, ONNX, OPENVINO),
    "crop_size": (SAVED_MODEL, FROZEN, TFLITE),
    "fold_batch_norm": (SAVED_MODEL, FROZEN),
    "export_weights": (SAVED_MODEL,),
    "max_pixels": (SAVED_MODEL,),
    **dict.fromkeys(flags.RESIZING, (SAVED_MODEL, FROZEN)),
    "tflite_input": (TFLITE,),
    "tflite_output": (TFLITE,),
    "quantize": (TFLITE, ONNX, OPENVINO, HTML),
    "web_runtime": (HTML,),
    "calibration_images": (TFLITE, ONNX, OPENVINO),
}
_PRECISIONS = {
    TFLITE: TFLITE_PRECISIONS,
    ONNX: ONNX_PRECISIONS,
    OPENVINO: OPENVINO_PRECISIONS,
    HTML: HTML_PRECISIONS,
}
# Fields of `EvalConfig` that are part of an export.
_INFERENCE = (
    *("eval_scales", "add_flipped_images", "eval_crop_size", "window_size"),
    "prediction_with_upsampled_logits",
)
_START = {
    "checkpoint_path": (
        *(flags.required_string, None),
        "Checkpoint folder or prefix, official or ours, or a .keras file.",
    ),
    "export_path": (
        *(flags.required_string, None),
        "Folder for a SavedModel, or a file ending in .tflite, .onnx, .xml (OpenVINO), "
        ".pb (frozen graph), .keras or .html (a page that labels images in a browser).",
    ),
}
_COMPARISON = {
    "eval_split": (flags.STRING, "val", "Ours: split to evaluate the export on."),
    "max_miou_drop": (
        *(functools.partial(flags.FLOAT, lower_bound=0.0), 0.5),
        "Ours: largest allowed drop from the model's mIoU, in percentage points, on "
        "the records of --dataset_dir.",
    ),
}
_MODEL = {
    "num_classes": (
        *(flags.INTEGER, None),
        "Number of classes; default: the checkpoint's.",
    ),
}
_FORMATS = {
    "quantize": (
        *(flags.one_of(*PRECISIONS), "float32"),
        "Ours: precision of a TFLite, ONNX or OpenVINO file: float32, float16 weights, "
        "bfloat16 (OpenVINO), 8-bit weights (dynamic; TFLite), or 8-bit weights and "
        "activations (int8). --tflite_precision is the same.",
    ),
    "tflite_output": (
        *(flags.one_of(*TFLITE_OUTPUTS), "labels"),
        "Ours: output of a TFLite file. Android's ImageSegmenter reads logits and "
        "probabilities.",
    ),
    "tflite_input": (
        *(flags.one_of(*TFLITE_INPUTS), None),
        "Ours: type of the pixels of a TFLite file; default: uint8 for int8, float32 "
        "otherwise.",
    ),
    "web_runtime": (
        *(flags.STRING, "node_modules/onnxruntime-web"),
        "Ours: folder of the npm package onnxruntime-web, for an .html file.",
    ),
    "calibration_images": (
        *(flags.at_least(1), 100),
        "Ours: number of images of --eval_split for calibrating int8.",
    ),
    "export_probabilities": (
        *(flags.BOOLEAN, False),
        "Ours: also return SemanticProbabilities, in a SavedModel's serving_default, "
        "an ONNX or an OpenVINO file; a frozen graph always has them.",
    ),
    "fold_batch_norm": (
        *(flags.BOOLEAN, True),
        "Ours: fold batch normalisation into the convolutions, which is faster.",
    ),
    "export_weights": (
        *(flags.BOOLEAN, True),
        "Ours: include the checkpoint, so that training can continue from the export.",
    ),
    "max_pixels": (
        *(flags.at_least(1), MAX_PIXELS),
        "Ours: largest image that the signature `encoded` accepts, in pixels.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_flags(values, _START)
    flags.define_dataset_location(values)
    flags.define_options(values, DataConfig, DATA, flags.RESIZING)
    flags.define_model_flags(values, "export")
    flags.define_flags(values, _MODEL, MODEL)
    flags.define_options(values, EvalConfig, EVALUATION, _INFERENCE, export_flag_name)
    flags.define_flags(values, _COMPARISON, EVALUATION)
    flags.define_flags(values, _FORMATS, OUTPUT)
    absl_flags.DEFINE_alias("tflite_precision", "quantize", flag_values=values)
    flags.define_overwrite(values)
    # The official export.py has a different default from the other programs.
    values["output_stride"].default = 8
    values["output_stride"].unparse()
    return values


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError for an unknown preset, wrong flags or a missing converter."""
    flags.read_preset(values)
    path = values.export_path.rstrip("/") or "/"
    require_format(path)
    _check_flags(values, path)
    _require_converter(path, values.quantize)


def _check_flags(values: absl_flags.FlagValues, path: str) -> None:
    """Raises UserError for flags that do not apply to the format of `path`."""
    ending, precision = ending_of(path), values.quantize
    for name, endings in _FORMATS_OF_FLAGS.items():
        if values[name].present and ending not in endings:
            raise UserError(f"--{name} has no effect on {path}")
    if values["quantize"].present and precision not in _PRECISIONS[ending]:
        raise UserError(
            f"--quantize={precision} is not possible for {path}; use "
            f"{join_choices(_PRECISIONS[ending])}"
        )
    if values["calibration_images"].present and precision != "int8":
        raise UserError("--calibration_images has no effect without --quantize=int8")
    is_compared = flags.has_records(values.dataset, values.dataset_dir)
    if ending == HTML:
        _check_page(values, path, is_compared)
    for name in ("eval_split", "max_miou_drop"):
        if values[name].present and not is_compared:
            raise UserError(f"--{name} needs --dataset_dir: the records to compare on")


def _check_page(values: absl_flags.FlagValues, path: str, is_compared: bool) -> None:
    """Raises UserError unless a page can be written."""
    if is_compared:
        raise UserError(
            f"{path} is not compared with the model, because only a browser runs it; "
            "omit --dataset_dir, or export an .onnx file, which has the same graph"
        )
    find_runtime(values.web_runtime, path)


def _require_converter(path: str, precision: str) -> None:
    """Raises UserError if the packages that write a format are not installed."""
    ending = ending_of(path)
    if ending == HTML:
        require_extra(["onnx", "tf2onnx"], "export", f"{path}: pages need")
    if ending == ONNX:
        needed = ["onnx", "tf2onnx"]
        needed += ["onnxruntime"] if precision == "int8" else []
        require_extra(needed, "export", f"{path}: ONNX files need")
    if ending == TFLITE:
        needed = ["ai_edge_litert"]
        needed += ["litert_quantizer"] if precision != "float32" else []
        require_extra(needed, "export", f"{path}: TFLite files need")
    if ending == OPENVINO:
        needed = ["openvino", "onnx", "tf2onnx"]
        needed += ["nncf"] if precision == "int8" else []
        require_extra(needed, "export", f"{path}: OpenVINO files need")


def main(values: absl_flags.FlagValues) -> None:
    """Exports the model, and compares it with the original if there are records."""
    from deeplab_tf.programs import exporting

    exporting.main(values)
