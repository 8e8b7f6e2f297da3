"""Converts ADE20K (ADEChallengeData2016, scene parsing) to TFRecords.

    deeplab-convert ade20k --ade20k_root=ADEChallengeData2016 --output_dir=tfrecord

By default, label values are kept: 151 classes, of which 0 is ignored, as in the
official checkpoints. With --num_classes=150, the classes start at 0, 255 is ignored,
and the dataset is called ade20k_150.
"""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.programs.convert import output

_FLAGS = {
    "ade20k_root": (flags.required_string, None, "Folder with images and annotations."),
    "num_classes": (
        *(flags.INTEGER, 151),
        "151 keeps the labels, with 0 ignored; 150 makes wall 0, with 255 ignored.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    return output.define_flags(_FLAGS, 4)


check = output.check


def main(values: absl_flags.FlagValues) -> None:
    """Converts the dataset and prints the split sizes."""
    from deeplab_tf.convert import ade20k

    output.claim(values)
    sizes = ade20k.convert(
        values.ade20k_root,
        values.output_dir,
        values.num_shards,
        values.num_classes,
        output.read_run_options(values),
    )
    output.print_sizes(values.output_dir, sizes)
