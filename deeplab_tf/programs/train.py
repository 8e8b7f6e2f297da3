r"""Trains a model on TFRecords; run the same command again to resume.

    python train.py --dataset_dir=tfrecord --train_logdir=logs \
        --model_variant=mobilenet_v2 --decoder_output_stride=4
"""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints.handles import require_client
from deeplab_tf.config import DataConfig, ModelConfig, TrainConfig
from deeplab_tf.config.options import DATA, EVALUATION, OPTIMISATION
from deeplab_tf.errors import UserError, require_extra
from deeplab_tf.programs.machine_flags import define_machine

# Fields of `DataConfig` that only training uses.
_TRAINING_DATA = (
    *("crop_size", "batch_size", "min_scale_factor", "max_scale_factor"),
    *("scale_factor_step_size", "photometric_jitter", "bootstrap_classes", "seed"),
    "data_service",
)
_LOSS = {
    "class_weighting": (
        *(flags.one_of("none", "median_frequency"), "none"),
        "Ours: compute --label_weights from the class counts of the training split.",
    ),
}
_EVALUATION = {
    "eval_split": (flags.STRING, "val", "Ours: split for evaluations during training."),
    "sanity_overfit": (
        *(flags.BOOLEAN, False),
        "Ours: overfit one batch to test model, labels and loss, then exit.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_dataset_flags(values, "train_split", "train")
    flags.define_model_flags(values, "train")
    flags.define_options(values, DataConfig, DATA, _TRAINING_DATA)
    flags.define_options(values, TrainConfig, OPTIMISATION)
    flags.define_flags(values, _LOSS, OPTIMISATION)
    flags.define_flags(values, _EVALUATION, EVALUATION)
    define_machine(values)
    flags.define_overwrite(values)
    flags.require_flags(values, "train_logdir")
    return values


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError for flags that are invalid or contradict each other."""
    flags.require_dataset_dir(values.dataset, values.dataset_dir)
    preset = flags.read_preset(values)
    if values["model_variant"].present:
        ModelConfig(backbone=values.model_variant)
    config = flags.read_options(values, TrainConfig, preset and preset.train)
    flags.read_options(values, DataConfig, preset and preset.data)
    require_client(config.tf_initial_checkpoint or "")
    if config.tracker != "none":
        name = config.tracker
        require_extra([name], name, f"--tracker={name} needs")
    if values.class_weighting != "none" and config.label_weights:
        raise UserError(
            f"--class_weighting={values.class_weighting} cannot be combined with "
            "--label_weights; give one"
        )
    policy, fine_tune = values.batch_norm, values["fine_tune_batch_norm"]
    is_frozen = policy == "freeze"
    if fine_tune.present and policy != "auto" and fine_tune.value == is_frozen:
        raise UserError(
            f"--batch_norm={policy} and --fine_tune_batch_norm="
            f"{str(fine_tune.value).lower()} contradict each other; give one"
        )


def main(values: absl_flags.FlagValues) -> None:
    """Trains, or resumes training."""
    from deeplab_tf.programs import training

    training.main(values)
