"""Exports a checkpoint as a SavedModel, a TFLite or an ONNX file, for deployment.

    python export.py --checkpoint_path=logs --export_path=exported
    python export.py --checkpoint_path=logs --export_path=model.tflite
    python export.py --checkpoint_path=logs --export_path=model.onnx

With --dataset_dir, the export is scored on these records and rejected if its mIoU is
more than --max_miou_drop below the model's. docs/serving.md describes the signatures of
a SavedModel, docs/formats.md the files.
"""

import dataclasses
import functools

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import DataConfig, EvalConfig, ModelConfig
from deeplab_tf.config.options import export_flag_name
from deeplab_tf.data import sources
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs
from deeplab_tf.presets import report
from deeplab_tf.programs.checkpoint import (
    experiment_of,
    named_classes,
    require_classes,
    restore_model,
)
from deeplab_tf.serving.encoded import Bounds
from deeplab_tf.serving.forms import ExportRequest, compare_artefact, write_artefact
from deeplab_tf.serving.frozen_graph import FROZEN, write_frozen_graph
from deeplab_tf.serving.publication import (
    ONNX,
    TFLITE,
    comparison_path,
    ending_of,
    publish_artefact,
    require_replaceable,
)
from deeplab_tf.serving.saved_model import ExportOptions
from deeplab_tf.serving.signatures import Resizing
from deeplab_tf.serving.tflite_export import OUTPUTS, PRECISIONS

_SAVED_MODEL = ""  # is a folder, whose name may end with anything
# What only some forms have, by flag.
_FORMS_OF_FLAGS = {
    "export_probabilities": (_SAVED_MODEL, ONNX),
    "crop_size": (_SAVED_MODEL, TFLITE),
    "fold_batch_norm": (_SAVED_MODEL,),
    "constant_weights": (_SAVED_MODEL,),
    "export_weights": (_SAVED_MODEL,),
    "max_pixels": (_SAVED_MODEL,),
    **dict.fromkeys(flags.RESIZING, (_SAVED_MODEL,)),
    "tflite_precision": (TFLITE,),
    "tflite_output": (TFLITE,),
    "calibration_images": (TFLITE,),
}
# Fields of `EvalConfig` that an export keeps.
_INFERENCE = ("eval_scales", "add_flipped_images", "eval_crop_size", "window_size")
# The official default, for files of one size.
_FILE_SIZE = (513, 513)
_FLAGS = {
    "checkpoint_path": (
        *(flags.STRING, None),
        "Folder or prefix of a checkpoint, official or ours.",
    ),
    "export_path": (
        *(flags.STRING, None),
        "Folder of the SavedModel, or a file that ends with .tflite or .onnx; with .pb "
        "at its end, a folder of that name without it and a frozen graph beside it.",
    ),
    "eval_split": (flags.STRING, "val", "Ours: split that is compared on."),
    "max_miou_drop": (
        *(functools.partial(flags.FLOAT, lower_bound=0.0), 0.5),
        "Ours: points of mIoU, of a hundred, that what is exported may be below the "
        "model on the records of --dataset_dir.",
    ),
    "num_classes": (flags.INTEGER, None, "Default: the checkpoint's."),
    "tflite_precision": (
        *(flags.one_of(*PRECISIONS), "float32"),
        "Ours: of a TFLite file: float32; float16 weights; 8-bit weights (dynamic); 8 "
        "bits throughout (int8).",
    ),
    "tflite_output": (
        *(flags.one_of(*OUTPUTS), "labels"),
        "Ours: output of a TFLite file.",
    ),
    "calibration_images": (
        *(flags.at_least(1), 100),
        "Ours: images of --eval_split that give int8 the range of the values.",
    ),
    "export_probabilities": (
        *(flags.BOOLEAN, False),
        "Ours: whether a SavedModel's serving_default, or an ONNX file, gives "
        "SemanticProbabilities, too.",
    ),
    "fold_batch_norm": (
        *(flags.BOOLEAN, True),
        "Ours: whether batch normalisations become part of convolutions, which is "
        "faster.",
    ),
    "constant_weights": (
        *(flags.BOOLEAN, True),
        "Ours: whether the weights of such a model are constants of its graph, which "
        "is faster, but takes more memory while it is loaded.",
    ),
    "export_weights": (
        *(flags.BOOLEAN, True),
        "Ours: whether the checkpoint is exported too, for a training to continue from "
        "the export.",
    ),
    "max_pixels": (
        *(flags.at_least(1), Bounds().pixels),
        "Ours: most pixels of an image that the signature encoded takes.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    flags.define_model_flags(values, "export")
    flags.define_dataset_location(values)
    flags.define_options(values, EvalConfig, _INFERENCE, export_flag_name)
    flags.define_options(values, DataConfig, flags.RESIZING)
    flags.define_overwrite(values)
    flags.define_flags(values, _FLAGS)
    required = ["checkpoint_path", "export_path"]
    absl_flags.mark_flags_as_required(required, flag_values=values)
    # The official export differs here from the other programs.
    values["output_stride"].default = 8
    values["output_stride"].unparse()
    return values


def _evaluation(values: absl_flags.FlagValues, model: ModelConfig) -> EvalConfig:
    """Returns the inference protocol of the export."""
    preset = flags.chosen_preset(values)
    base = preset and preset.evaluation
    evaluation = flags.read_options(values, EvalConfig, base, export_flag_name)
    if preset is None:
        return evaluation
    parts = [(preset.eval_model, model), (preset.evaluation, evaluation)]
    print(report(preset, parts))
    return evaluation


def _resizing(values: absl_flags.FlagValues) -> Resizing | None:
    """Returns the size to which the export resizes images."""
    data = flags.read_options(values, DataConfig)  # refuses impossible combinations
    sizes = (getattr(data, name) for name in flags.RESIZING)
    return Resizing(*sizes) if data.min_resize_value else None


def _check_form(values: absl_flags.FlagValues, path: str) -> None:
    """Refuses flags that the form of an artefact does not have."""
    form = ending_of(path)
    for name, forms in _FORMS_OF_FLAGS.items():
        if values[name].present and form not in forms:
            raise UserError(f"--{name} has no effect on {path}")
    if values["calibration_images"].present and values.tflite_precision != "int8":
        raise UserError("--calibration_images is for --tflite_precision=int8")
    if values.tflite_precision == "int8" and not _has_records(values):
        raise UserError(
            "--tflite_precision=int8 needs --dataset_dir: the records whose images "
            "tell the range of the values"
        )
    for name in ("eval_split", "max_miou_drop"):
        if values[name].present and not _has_records(values):
            raise UserError(f"--{name} needs --dataset_dir: the records to compare on")
    require_replaceable(path, values.overwrite)


def _has_records(values: absl_flags.FlagValues) -> bool:
    """Whether there are records to compare what is exported with the model."""
    is_tfds = (values.dataset or "").startswith(sources.TFDS_PREFIX)
    return bool(values.dataset_dir) or is_tfds


def _of_form(evaluation: EvalConfig, path: str) -> EvalConfig:
    """Returns the inference protocol of an artefact of a form.

    Raises:
        UserError: if a file would need several inference passes.
    """
    form = ending_of(path)
    if form == _SAVED_MODEL:
        return evaluation
    several = evaluation.add_flipped_images or evaluation.window_size is not None
    if several or evaluation.eval_scales != (1.0,):
        raise UserError(
            f"{path} sees an image once and whole, which is --inference_scales=1.0 "
            "--noadd_flipped_images without --window_size; a SavedModel can do more"
        )
    # Each of several sizes to its own grid in an ONNX file; all to one in TFLite, to
    # whose windows larger ones go.
    size = (evaluation.eval_crop_size or _FILE_SIZE) if form == TFLITE else None
    return dataclasses.replace(evaluation, eval_crop_size=size, window_size=size)


def _request(values: absl_flags.FlagValues, path: str) -> ExportRequest:
    """Returns the export that the flags describe, with model and records loaded."""
    resizing, preset = _resizing(values), flags.chosen_preset(values)
    experiment = experiment_of(values.checkpoint_path)
    records, num_classes = None, values.num_classes
    info = experiment.info if experiment else None
    if _has_records(values):
        folder, fallback = values.dataset_dir or "", flags.dataset_fallback(preset)
        info = sources.resolve_info(values.dataset, folder, fallback)
        split = flags.split_value(values, "eval_split", preset)
        records = load_dataset(
            DataConfig(folder, info.name, batch_size=1), split, False
        )
        num_classes = num_classes or info.num_classes
    model = restore_model(values, values.checkpoint_path, num_classes)
    config = model.model_config
    if records is None:
        info = named_classes(values.dataset, info, config.num_classes)
    else:
        require_classes(info, config.num_classes, config.channels, "the model")
    evaluation = _of_form(_evaluation(values, config), path)
    evaluation = dataclasses.replace(evaluation, ignore_label=info.ignore_label)
    return ExportRequest(
        model,
        evaluation,
        info,
        records,
        _options(values, evaluation, resizing),
        values.tflite_precision,
        values.tflite_output,
        values.calibration_images,
    )


def _options(
    values: absl_flags.FlagValues, evaluation: EvalConfig, resizing: Resizing | None
) -> ExportOptions:
    return ExportOptions(
        window=evaluation.window_size,
        resizing=resizing,
        probabilities=values.export_probabilities,
        fold_batch_norm=values.fold_batch_norm,
        constant_weights=values.constant_weights,
        max_pixels=values.max_pixels,
        weights=values.export_weights,
    )


def main(values: absl_flags.FlagValues) -> None:
    """Exports."""
    flags.check_flags(values, "export")
    path = (values.export_path.rstrip("/") or "/").removesuffix(FROZEN)
    _check_form(values, path)
    if values.export_path.endswith(FROZEN):
        folder, name = outputs.split(path + FROZEN)
        outputs.claim(folder, [name], values.overwrite)
    request, form = _request(values, path), ending_of(path)
    compared = "not compared with the model; --dataset_dir names records to do so on"
    with publish_artefact(path, values.overwrite) as unfinished:
        description = write_artefact(request, unfinished, form)
        if request.records is not None:
            compared = compare_artefact(request, unfinished, values.max_miou_drop)
            compared += f": {comparison_path(path)}"
        if values.export_path.endswith(FROZEN):
            write_frozen_graph(unfinished, path + FROZEN)
    config = request.model.model_config
    print(
        f"{path}: {config.backbone}, {config.num_classes} classes, output stride "
        f"{config.output_stride}; {description}"
    )
    print(compared)
