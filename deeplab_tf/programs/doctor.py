"""Validates a dataset before training and reports problems.

    python -m deeplab_tf.data.doctor --dataset_dir=tfrecord

Prints image and label statistics, all problems and a command for training, and writes
doctor.png, which shows samples with their labels, and doctor.html. Exits with 1 if
training on the dataset is not safe, else 0.
"""

import functools

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config.options import DATA, OUTPUT

_MAX_SAMPLES = 100  # per split
_SPLITS = {"splits": (flags.STRINGS, None, "Splits to examine; default: all.")}
_OUTPUT = {
    "output_dir": (
        *(flags.STRING, None),
        "Folder to write doctor.png and doctor.html to; default: --dataset_dir.",
    ),
    "report": (flags.BOOLEAN, True, "Write doctor.html."),
    "samples": (
        *(functools.partial(flags.at_least(0), upper_bound=_MAX_SAMPLES), 12),
        "Images per split in doctor.png and doctor.html; 0 writes no doctor.png.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_dataset_location(values)
    flags.define_flags(values, _SPLITS, DATA)
    flags.define_flags(values, _OUTPUT, OUTPUT)
    flags.define_overwrite(values)
    return values


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError if there is no dataset."""
    flags.require_dataset_dir(values.dataset, values.dataset_dir)


def main(values: absl_flags.FlagValues) -> None:
    """Validates the dataset; exits with status 1 if training on it is not safe."""
    from deeplab_tf.programs import diagnosis

    diagnosis.main(values)
