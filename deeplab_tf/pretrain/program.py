r"""Pre-trains a backbone as a classifier; run the same command again to resume.

    python -m deeplab_tf.pretrain --dataset=tfds:imagenet2012 \
        --model_variant=xception_65 --train_logdir=imagenet \
        --training_number_of_steps=2000000
    python train.py --tf_initial_checkpoint=imagenet ...

The defaults are those of DeepLabv3+ (arXiv:1802.02611): Nesterov momentum 0.9, learning
rate 0.05 that decays by 0.94 every two epochs, weight decay 4e-5, crops of 299. The
paper does not give the number of steps. Any Xception or ResNet is trained, at output
stride 32.
"""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import DataConfig, ModelConfig, TrainConfig
from deeplab_tf.config.options import DATA, MODEL, OPTIMISATION
from deeplab_tf.programs.machine_flags import define_machine

# Fields of `TrainConfig` and `DataConfig` that are flags here.
_TRAINING = (
    *("train_logdir", "training_number_of_steps", "base_learning_rate"),
    *("learning_rate_decay_factor", "momentum", "weight_decay", "log_steps"),
    *("save_interval_secs", "save_interval_steps", "eval_interval_steps"),
    *("accumulate_steps", "ema_decay", "recompute", "jit", "steps_per_call"),
)
_SAMPLES = ("dataset_dir", "crop_size", "batch_size", "seed")
_MODEL = ("backbone", "multi_grid", "depthwise_activation", "batch_norm_momentum")
_RECIPE = {
    "model_variant": "xception_65",
    "base_learning_rate": 0.05,
    "learning_rate_decay_factor": 0.94,
    "train_crop_size": "299,299",
    "train_batch_size": 32,
    "training_number_of_steps": None,  # not in the paper
}
_START = {
    "dataset": (
        *(flags.required_string, None),
        "tfds:NAME[:image_key:label_key], such as tfds:imagenet2012.",
    ),
}
_DATA = {
    "train_split": (flags.STRING, "train", "Split to train on."),
    "eval_split": (flags.STRING, "validation", "Split to score."),
}
_OPTIMISATION = {
    "learning_rate_decay_epochs": (
        *(flags.FLOAT, 2.0),
        "Epochs between two decays of the learning rate.",
    ),
    "batch_norm": (
        *(flags.one_of("auto", "train", "sync"), "auto"),
        "Batch statistics of each replica (train) or of all (sync).",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_flags(values, _START)
    flags.define_flags(values, _DATA, DATA)
    flags.define_options(values, DataConfig, DATA, _SAMPLES)
    flags.define_options(values, ModelConfig, MODEL, _MODEL)
    flags.define_options(values, TrainConfig, OPTIMISATION, _TRAINING)
    flags.define_flags(values, _OPTIMISATION, OPTIMISATION)
    flags.define_precision(values)
    define_machine(values)
    for name, value in _RECIPE.items():
        values.set_default(name, value)
    flags.define_overwrite(values)
    flags.require_flags(values, "train_logdir", "training_number_of_steps")
    return values


def main(values: absl_flags.FlagValues) -> None:
    """Checks all flags and data, then trains."""
    from deeplab_tf.pretrain import training

    training.main(values)
