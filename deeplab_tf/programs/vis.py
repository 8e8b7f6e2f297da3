"""Writes the predictions of a checkpoint or an exported model on a split as images.

    python vis.py --checkpoint_dir=logs --dataset_dir=tfrecord --vis_logdir=logs/vis

Writes segmentation_results/000000_image.png and 000000_prediction.png and so on, in the
order of the records, to --vis_logdir; with --also_save_raw_predictions, also the class
ids as raw_segmentation_results/<image name>.png. To label image files, use predict.
"""

import os

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import EvalConfig
from deeplab_tf.config.options import EVALUATION, OUTPUT, vis_flag_name
from deeplab_tf.serving.choices import require_engine

_START = {
    "checkpoint_dir": (
        *(flags.required_string, None),
        "Checkpoint folder or prefix, official or ours, or a .keras file; or an "
        "exported model: a SavedModel, TFLite, ONNX or OpenVINO file.",
    ),
    "vis_logdir": (flags.required_string, None, "Folder to write to."),
}
_EVALUATION = {
    "eval_interval_secs": (
        *(flags.at_least(0), None),
        "Follow a training run: check for new checkpoints at this interval, in "
        "seconds, and write the predictions of each.",
    ),
    "max_number_of_iterations": (
        *(flags.at_least(0), 0),
        "Stop following after this many checkpoints; 0 never stops.",
    ),
}
# Keys of `visualization.COLORMAPS`, which needs TensorFlow.
_COLORMAPS = ("pascal", "cityscapes")
_OUTPUT = {
    "colormap_type": (
        *(flags.one_of(*_COLORMAPS), "pascal"),
        "Colours of the predictions.",
    ),
    "also_save_raw_predictions": (
        *(flags.BOOLEAN, False),
        "Also write the class ids as grey images, for Cityscapes those of labelIds.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_flags(values, _START)
    flags.define_dataset_flags(values, "vis_split", "val")
    flags.define_model_flags(values, "vis")
    flags.define_options(values, EvalConfig, EVALUATION, get_name=vis_flag_name)
    flags.define_flags(values, _EVALUATION, EVALUATION)
    flags.define_flags(values, _OUTPUT, OUTPUT)
    flags.define_overwrite(values)
    return values


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError for an unknown preset or a missing engine."""
    flags.read_preset(values)
    require_engine(values.checkpoint_dir)


def has_frozen_weights(values: absl_flags.FlagValues) -> bool:
    """Returns whether the model is a SavedModel, not one checkpoint after another."""
    return os.path.exists(os.path.join(values.checkpoint_dir, "saved_model.pb"))


def main(values: absl_flags.FlagValues) -> None:
    """Writes the predictions once, or of every new checkpoint of a training run."""
    from deeplab_tf.programs import visualization

    visualization.main(values)
