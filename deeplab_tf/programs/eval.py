"""Evaluates a checkpoint or an exported model (SavedModel, TFLite, ONNX) on a split.

    python eval.py --checkpoint_dir=logs --dataset_dir=tfrecord --eval_logdir=logs/eval

Prints IoU per class, and writes metrics.json and report.html to --eval_logdir. With
--runner, it evaluates on a runner of Apache Beam, and writes no report.html.
"""

import os

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import EvalConfig
from deeplab_tf.config.options import EVALUATION, HARDWARE, OUTPUT
from deeplab_tf.errors import UserError
from deeplab_tf.programs import runners
from deeplab_tf.serving.choices import require_engine

_START = {
    "checkpoint_dir": (
        *(flags.required_string, None),
        "Checkpoint folder or prefix, official or ours, or a .keras file; or an "
        "exported model: a SavedModel, TFLite, ONNX or OpenVINO file.",
    ),
    "eval_logdir": (flags.STRING, None, "Folder for metrics.json and report.html."),
}
_EVALUATION = {
    "eval_interval_secs": (
        *(flags.at_least(0), None),
        "Follow a training run: check for new checkpoints at this interval, in "
        "seconds, and evaluate each.",
    ),
    "max_number_of_evaluations": (
        *(flags.at_least(0), 0),
        "Stop following after this many evaluations; 0 never stops.",
    ),
    "trimap": (
        *(flags.one_of("none", "void", "classes"), "none"),
        "Ours: also compute mIoU in bands around void pixels (PASCAL VOC) or class "
        "boundaries.",
    ),
    "boundary_iou": (flags.BOOLEAN, False, "Ours: also compute Boundary IoU."),
    "calibration": (
        *(flags.BOOLEAN, False),
        "Ours: also compute the expected calibration error.",
    ),
    "corruptions": (
        *(flags.STRINGS, []),
        "Ours: corruptions for measuring robustness; all means the 15 common ones.",
    ),
    "severities": (flags.STRINGS, [1, 2, 3, 4, 5], "Ours: severities to apply."),
}
_HARDWARE = {
    "num_clones": (
        *(flags.INTEGER, None),
        "Ours: number of devices; default: all GPUs. On CPU, logical devices.",
    ),
    "clone_on_cpu": (flags.BOOLEAN, False, "Ours: do not use GPUs."),
}
_OUTPUT = {
    "report": (flags.BOOLEAN, True, "Ours: write report.html."),
    "compare": (
        *(flags.STRING, None),
        "Ours: metrics.json of another evaluation; report.html then also shows what "
        "got better and worse, by class and by image.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_flags(values, _START)
    flags.define_dataset_flags(values, "eval_split", "val")
    flags.define_model_flags(values, "eval")
    flags.define_options(values, EvalConfig, EVALUATION)
    flags.define_flags(values, _EVALUATION, EVALUATION)
    flags.define_flags(values, _HARDWARE, HARDWARE)
    runners.define_flags(values)
    flags.define_flags(values, _OUTPUT, OUTPUT)
    flags.define_overwrite(values)
    return values


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError for an unknown preset or a missing engine."""
    flags.read_preset(values)
    require_engine(values.checkpoint_dir)
    if values.compare and not (values.report and values.eval_logdir):
        raise UserError(
            "--compare needs --eval_logdir and --report: it fills report.html"
        )
    runners.check(values, ("report", "compare", "corruptions", "eval_interval_secs"))
    if values.runner and not values.eval_logdir:
        raise UserError("--runner needs --eval_logdir: a folder that all workers reach")


def has_frozen_weights(values: absl_flags.FlagValues) -> bool:
    """Returns whether the model is a SavedModel, not one checkpoint after another."""
    return os.path.exists(os.path.join(values.checkpoint_dir, "saved_model.pb"))


def main(values: absl_flags.FlagValues) -> None:
    """Evaluates once, or every new checkpoint of a training run."""
    from deeplab_tf.programs import evaluation

    evaluation.main(values)
