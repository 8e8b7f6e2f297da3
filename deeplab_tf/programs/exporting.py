"""Exports a model with the flags of export.py."""

import dataclasses

import keras
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import DataConfig, EvalConfig
from deeplab_tf.config.options import export_flag_name
from deeplab_tf.data import sources
from deeplab_tf.data.pipeline import find_largest_size, load_dataset
from deeplab_tf.errors import UserError
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.presets import describe_run
from deeplab_tf.programs import read_command_line, suggest_commands
from deeplab_tf.programs.checkpoint import (
    find_experiment,
    require_classes,
    resolve_class_info,
    restore_model,
)
from deeplab_tf.serving.artefact import format_size
from deeplab_tf.serving.choices import (
    FROZEN,
    HTML,
    LABEL_OUTPUTS,
    SAVED_MODEL,
    TFLITE,
    ending_of,
)
from deeplab_tf.serving.exporting import (
    ExportRequest,
    write_and_compare,
    write_artefact,
)
from deeplab_tf.serving.publication import (
    comparison_path,
    publish_artefact,
    require_replaceable,
)
from deeplab_tf.serving.saved_model import ExportOptions
from deeplab_tf.serving.signatures import Resizing

# Default size of a TFLite file, as in the official export.
_FILE_SIZE = (513, 513)


def _read_protocol(values: absl_flags.FlagValues) -> EvalConfig:
    """Returns the inference protocol of the export."""
    preset = flags.read_preset(values)
    base = preset and preset.evaluation
    return flags.read_options(values, EvalConfig, base, export_flag_name)


def _read_resizing(values: absl_flags.FlagValues) -> Resizing | None:
    data = flags.read_options(values, DataConfig)  # validates the combination
    sizes = (getattr(data, name) for name in flags.RESIZING)
    return Resizing(*sizes) if data.min_resize_value else None


def _adapt_protocol(evaluation: EvalConfig, path: str) -> EvalConfig:
    """Returns the inference protocol, adapted to the format of `path`.

    Raises:
        UserError: if a file would need several inference passes.
    """
    ending = ending_of(path)
    if ending in (SAVED_MODEL, FROZEN):
        return evaluation
    several = evaluation.add_flipped_images or evaluation.window_size is not None
    if several or evaluation.eval_scales != (1.0,):
        raise UserError(
            f"{path} runs one inference pass over the entire image; give "
            "--inference_scales=1.0 --noadd_flipped_images and no --window_size, or "
            "export a SavedModel"
        )
    if not evaluation.prediction_with_upsampled_logits:
        raise UserError(
            f"{path} needs --prediction_with_upsampled_logits; received false, which "
            "only a SavedModel or a frozen graph supports"
        )
    # A TFLite file has one size, and slides it over larger images; others take any.
    size = (evaluation.eval_crop_size or _FILE_SIZE) if ending == TFLITE else None
    return dataclasses.replace(evaluation, eval_crop_size=size, window_size=size)


def _prepare_request(values: absl_flags.FlagValues, path: str) -> ExportRequest:
    """Restores the model, checks the flags and opens the records, if any."""
    resizing, preset = _read_resizing(values), flags.read_preset(values)
    experiment = find_experiment(values.checkpoint_path)
    records, num_classes = None, values.num_classes
    info = experiment.info if experiment else None
    if flags.has_records(values.dataset, values.dataset_dir):
        folder, fallback = values.dataset_dir or "", flags.default_dataset(preset)
        info = sources.resolve_info(values.dataset, folder, fallback)
        split = flags.read_split(values, "eval_split", preset)
        data = DataConfig(folder, info.name, batch_size=1)
        records = load_dataset(data, split, training=False)
        _check_crop_size(values, path, data, split)
        num_classes = num_classes or info.num_classes
    is_int8 = values.quantize == "int8"
    model = restore_model(values, values.checkpoint_path, num_classes, is_int8)
    _check_quantization(values, model, path)
    config = model.model_config
    if records is None:
        info = resolve_class_info(values.dataset, info, config.num_classes)
    else:
        require_classes(info, config.num_classes, config.channels, "the model")
    evaluation = _read_protocol(values)
    if preset:
        parts = [(preset.eval_model, config), (preset.evaluation, evaluation)]
        print(describe_run(preset, parts))
    evaluation = _adapt_protocol(evaluation, path)
    evaluation = dataclasses.replace(evaluation, ignore_label=info.ignore_label)
    return ExportRequest(
        model,
        evaluation,
        info,
        records,
        _make_options(values, evaluation, resizing),
        values.quantize,
        values.tflite_output,
        values.tflite_input,
        values.calibration_images,
        web_runtime=values.web_runtime,
        command=read_command_line(),
    )


def _check_crop_size(
    values: absl_flags.FlagValues, path: str, data: DataConfig, split: str
) -> None:
    """Raises UserError if images exceed a TFLite file that only returns labels."""
    if ending_of(path) != TFLITE or values.tflite_output not in LABEL_OUTPUTS:
        return
    evaluation = _read_protocol(values)
    height, width = _adapt_protocol(evaluation, path).eval_crop_size
    highest, widest = find_largest_size(data, split)
    if highest > height or widest > width:
        needed = f"{max(highest, height)},{max(widest, width)}"
        raise UserError(
            f"images of {split} have up to {highest} rows and {widest} columns, but "
            f"{path} takes {format_size((height, width))}; give --crop_size={needed} "
            "or larger, or --tflite_output=logits to slide a window over larger images"
        )


def _check_quantization(
    values: absl_flags.FlagValues, model: keras.Model, path: str
) -> None:
    """Raises UserError if the flags of int8 do not suit the model or the format."""
    checkpoint = values.checkpoint_path
    has_records = flags.has_records(values.dataset, values.dataset_dir)
    if not is_quantized(model):
        if values.quantize == "int8" and not has_records:
            raise UserError(
                "--quantize=int8 needs --dataset_dir: the records with the images to "
                "calibrate with; only a checkpoint of quantisation-aware training "
                "needs none"
            )
        return
    if values["calibration_images"].present:
        raise UserError(
            f"--calibration_images has no effect on {checkpoint}, whose ranges are "
            "trained; remove the flag, or add --quantize_delay_step=-1 to calibrate"
        )
    if ending_of(path) != SAVED_MODEL and values.quantize != "int8":
        raise UserError(
            f"{path} cannot hold the rounded model of --quantize_delay_step="
            f"{values.quantize_delay_step}; remove this flag, add --quantize=int8 "
            "(TFLite, ONNX, OpenVINO), or export a SavedModel"
        )


def _make_options(
    values: absl_flags.FlagValues, evaluation: EvalConfig, resizing: Resizing | None
) -> ExportOptions:
    """Returns the export options from flags and inference protocol."""
    return ExportOptions(
        window=evaluation.window_size,
        upsampled_logits=evaluation.prediction_with_upsampled_logits,
        resizing=resizing,
        probabilities=values.export_probabilities,
        fold_batch_norm=values.fold_batch_norm,
        max_pixels=values.max_pixels,
        weights=values.export_weights,
    )


def main(values: absl_flags.FlagValues) -> None:
    """Exports the model, and compares it with the original if there are records."""
    flags.check_flags(values, "export")
    path = values.export_path.rstrip("/") or "/"
    require_replaceable(path, values.overwrite)
    request = _prepare_request(values, path)
    comparison = "not compared with the model; give --dataset_dir to do so"
    with publish_artefact(path, values.overwrite) as unfinished:
        ending = ending_of(path)
        if request.records is None:
            description = write_artefact(request, unfinished, ending)
        else:
            description, summary = write_and_compare(
                request, unfinished, ending, values.max_miou_drop
            )
            comparison = f"{summary}: {comparison_path(path)}"
    config = request.model.model_config
    print(
        f"{path}: {config.backbone}, {config.num_classes} classes, output stride "
        f"{config.output_stride}; {description}"
    )
    if ending == HTML:
        return
    print(comparison)
    use = ("predict", f"--model={path}", "--images=IMAGES", "--output_dir=OUT")
    suggest_commands([use])
