"""Exports a checkpoint as a SavedModel: ImageTensor -> SemanticPredictions.

python export.py --checkpoint_path=logs --export_path=exported
"""

import dataclasses

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import EvalConfig, ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.presets import report
from deeplab_tf.programs import run_program
from deeplab_tf.programs.restored import experiment_of, named_classes, restored_model
from deeplab_tf.serving.saved_model import export_saved_model

FLAGS = absl_flags.FlagValues()


def _define() -> None:
    flags.define_model_flags(FLAGS, "export")
    string = absl_flags.DEFINE_string
    string(
        "checkpoint_path",
        None,
        "Folder or prefix of a checkpoint, official or ours.",
        required=True,
        flag_values=FLAGS,
    )
    string(
        "export_path",
        None,
        "Folder of the SavedModel; a .pb at its end is dropped.",
        required=True,
        flag_values=FLAGS,
    )
    string(
        "dataset",
        None,
        "Dataset whose class names go along; default: the training's.",
        flag_values=FLAGS,
    )
    absl_flags.DEFINE_integer(
        "num_classes", None, "Default: the checkpoint's.", flag_values=FLAGS
    )
    absl_flags.DEFINE_multi_string(
        "crop_size",
        None,
        "Size to which images are padded; default: each to its own next "
        "k * output_stride + 1.",
        flag_values=FLAGS,
    )
    absl_flags.DEFINE_multi_string(
        "inference_scales",
        "1.0",
        "Scales whose probabilities are averaged.",
        flag_values=FLAGS,
    )
    absl_flags.DEFINE_boolean(
        "add_flipped_images",
        False,
        "Whether every scale is also seen mirrored.",
        flag_values=FLAGS,
    )
    for name in flags.RESIZING:
        absl_flags.DEFINE_integer(name, None, "Not offered.", flag_values=FLAGS)
    # The official export differs here from the other programs.
    FLAGS["output_stride"].default = 8
    FLAGS["output_stride"].unparse()


_define()


def _evaluation(values: absl_flags.FlagValues, model: ModelConfig) -> EvalConfig:
    """Returns how the export looks at an image."""
    flag_of = {
        "eval_scales": "inference_scales",
        "add_flipped_images": "add_flipped_images",
        "eval_crop_size": "crop_size",
    }
    given = {
        "eval_scales": flags.numbers_value(values, "inference_scales"),
        "add_flipped_images": values.add_flipped_images,
        "eval_crop_size": flags.size_value(values, "crop_size"),
    }
    preset = flags.chosen_preset(values)
    if preset is None:
        return EvalConfig(**given)
    told = {k: v for k, v in given.items() if values[flag_of[k]].present}
    evaluation = dataclasses.replace(preset.evaluation, **told)
    parts = [(preset.eval_model, model), (preset.evaluation, evaluation)]
    print(report(preset, parts))
    return evaluation


def main(values: absl_flags.FlagValues) -> None:
    """Exports."""
    flags.check_flags(values, "export")
    resized = [name for name in flags.RESIZING if values[name].present]
    if resized:
        raise UserError(
            f"--{resized[0]}: an export takes images as they are, so far; resize them "
            "before it"
        )
    experiment = experiment_of(values.checkpoint_path)
    model = restored_model(values, values.checkpoint_path, values.num_classes)
    config = model.model_config
    known = experiment.info if experiment else None
    info = named_classes(values.dataset, known, config.num_classes)
    evaluation = _evaluation(values, config)
    path = values.export_path.removesuffix(".pb")
    export_saved_model(
        model,
        path,
        scales=evaluation.eval_scales,
        flip=evaluation.add_flipped_images,
        crop_size=evaluation.eval_crop_size,
        info=info,
    )
    print(
        f"{path}: {config.backbone}, {config.num_classes} classes, output stride "
        f"{config.output_stride}; ImageTensor uint8 [batch, height, width, "
        f"{config.channels}] -> "
        "SemanticPredictions int32 [batch, height, width]"
    )


def run() -> None:
    """Console entry."""
    run_program(main, FLAGS)
