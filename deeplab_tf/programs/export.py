"""Exports a checkpoint as a SavedModel: ImageTensor -> SemanticPredictions.

python export.py --checkpoint_path=logs --export_path=exported
"""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.data.info import dataset_info, generic_info
from deeplab_tf.errors import UserError
from deeplab_tf.programs import run_program
from deeplab_tf.programs.restored import experiment_of, restored_model
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
    # The official export differs here from the other programs.
    FLAGS["output_stride"].default = 8
    FLAGS["output_stride"].unparse()


_define()


def main(values: absl_flags.FlagValues) -> None:
    """Exports."""
    flags.check_flags(values, "export")
    experiment = experiment_of(values.checkpoint_path)
    model = restored_model(values, values.checkpoint_path, values.num_classes)
    info = _info(values.dataset, experiment, model.model_config.num_classes)
    path = values.export_path.removesuffix(".pb")
    export_saved_model(
        model,
        path,
        scales=flags.numbers_value(values, "inference_scales"),
        flip=values.add_flipped_images,
        crop_size=flags.size_value(values, "crop_size"),
        info=info,
    )
    config = model.model_config
    print(
        f"{path}: {config.backbone}, {config.num_classes} classes, output stride "
        f"{config.output_stride}; ImageTensor uint8 [batch, height, width, 3] -> "
        "SemanticPredictions int32 [batch, height, width]"
    )


def _info(name, experiment, num_classes: int):
    if name is not None:
        info = dataset_info(name)
        if info.num_classes != num_classes:
            raise UserError(
                f"--dataset={name} has {info.num_classes} classes, but the "
                f"checkpoint has {num_classes}"
            )
        return info
    if experiment is not None and experiment.info is not None:
        return experiment.info
    voc = dataset_info("pascal_voc_seg")
    return voc if voc.num_classes == num_classes else generic_info(num_classes)


def run() -> None:
    """Console entry."""
    run_program(main, FLAGS)
