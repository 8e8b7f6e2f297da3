r"""Measures memory and time of training for each batch size.

    python -m deeplab_tf.plan --preset=camvid_mobilenetv2 --batch_sizes=2,4,8

Runs a few training steps on random images for every batch size, crop size and output
stride, each in its own process; no dataset is needed. Skips batch sizes that are
predicted not to fit. Finally, prints the flags of train.py for batches of
--train_batch_size at the first crop size and output stride: the largest batch that
fits, gradient accumulation for the rest, and the fastest precision and XLA setting.
"""

import functools

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config.options import HARDWARE, OUTPUT

_FLAGS = {
    "batch_sizes": (
        *(flags.STRINGS, ["1", "2", "4", "8", "16"]),
        "Batch sizes to measure.",
    ),
    "crop_sizes": (
        *(flags.STRINGS, None),
        "Crop sizes, such as 513 or 769x1025; default: the preset's.",
    ),
    "output_strides": (flags.STRINGS, None, "Output strides; default: the preset's."),
    "train_batch_size": (
        *(flags.at_least(1), None),
        "Batch size to recommend flags for; default: the preset's.",
    ),
}
_HARDWARE = {
    "steps": (flags.at_least(1), 2, "Number of timed steps."),
    "memory_gib": (
        *(functools.partial(flags.FLOAT, lower_bound=0), None),
        "Available memory; default: all of the GPU or the machine.",
    ),
}
_OUTPUT = {"json": (flags.STRING, None, "File to write the results to.")}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_flags(values, _FLAGS)
    flags.define_model_flags(values, "train")
    flags.define_flags(values, _HARDWARE, HARDWARE)
    flags.define_flags(values, _OUTPUT, OUTPUT)
    flags.define_overwrite(values)
    return values


def main(values: absl_flags.FlagValues) -> None:
    """Measures every step, then prints the recommended flags."""
    from deeplab_tf.plan import recommendation

    recommendation.main(values)
