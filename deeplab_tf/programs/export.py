"""Exports a checkpoint as a SavedModel: ImageTensor -> SemanticPredictions.

python export.py --checkpoint_path=logs --export_path=exported

Its other signatures are probabilities, encoded (JPEG or PNG in, PNG out) and features;
docs/serving.md tells of them.
"""

import dataclasses

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import DataConfig, EvalConfig, ModelConfig
from deeplab_tf.presets import report
from deeplab_tf.programs import run_program
from deeplab_tf.programs.restored import experiment_of, named_classes, restored_model
from deeplab_tf.serving.saved_model import ExportOptions, export_saved_model
from deeplab_tf.serving.signatures import Resizing

FLAGS = absl_flags.FlagValues()
# Flag to default and help.
_SWITCHES = {
    "add_flipped_images": (False, "Whether every scale is also seen mirrored."),
    "export_probabilities": (
        False,
        "Whether serving_default gives SemanticProbabilities, too.",
    ),
    "fold_batch_norm": (
        True,
        "Whether batch normalisations become part of convolutions, which is faster.",
    ),
    "export_weights": (
        True,
        "Whether the checkpoint goes along, for training to go on from the export.",
    ),
}


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
    absl_flags.DEFINE_multi_string(
        "window_size",
        None,
        "Size of the windows through which larger images are seen.",
        flag_values=FLAGS,
    )
    for name, (default, text) in _SWITCHES.items():
        absl_flags.DEFINE_boolean(name, default, text, flag_values=FLAGS)
    for name in flags.RESIZING:
        absl_flags.DEFINE_integer(
            name,
            None,
            "Resizing of every image; its labels have its own size again.",
            lower_bound=1,
            flag_values=FLAGS,
        )
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
        "window_size": "window_size",
    }
    given = {
        "eval_scales": flags.numbers_value(values, "inference_scales"),
        "add_flipped_images": values.add_flipped_images,
        "eval_crop_size": flags.size_value(values, "crop_size"),
        "window_size": flags.size_value(values, "window_size"),
    }
    preset = flags.chosen_preset(values)
    if preset is None:
        return EvalConfig(**given)
    told = {k: v for k, v in given.items() if values[flag_of[k]].present}
    evaluation = dataclasses.replace(preset.evaluation, **told)
    parts = [(preset.eval_model, model), (preset.evaluation, evaluation)]
    print(report(preset, parts))
    return evaluation


def _resizing(values: absl_flags.FlagValues) -> Resizing | None:
    """Returns to what size the export resizes images."""
    sizes = {name: values[name].value for name in flags.RESIZING}
    DataConfig(**sizes)  # refuses what does not go together
    return Resizing(*sizes.values()) if values.min_resize_value else None


def main(values: absl_flags.FlagValues) -> None:
    """Exports."""
    flags.check_flags(values, "export")
    resizing = _resizing(values)
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
        options=ExportOptions(
            window=evaluation.window_size,
            resizing=resizing,
            probabilities=values.export_probabilities,
            fold_batch_norm=values.fold_batch_norm,
            weights=values.export_weights,
        ),
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
