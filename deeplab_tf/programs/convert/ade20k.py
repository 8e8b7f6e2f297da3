"""Converts ADE20K (ADEChallengeData2016, scene parsing) to TFRecords.

    deeplab-convert ade20k --ade20k_root=ADEChallengeData2016 --output_dir=tfrecord

By default, the label values stay as they are: 151 classes, of which 0 is ignored, as in
the official checkpoints. With --num_classes=150 the classes start at 0, 255 is ignored,
and the dataset is called ade20k_150.
"""

from absl import flags

from deeplab_tf.convert import ade20k
from deeplab_tf.programs.convert.output import claim_output, define_output, print_sizes


def define_flags() -> flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "ade20k_root",
        None,
        "Folder with images and annotations.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_integer(
        "num_classes",
        151,
        "151: labels as they are, 0 ignored; 150: wall is 0, 255 ignored.",
        flag_values=values,
    )
    define_output(values, 4)
    return values


def main(values: flags.FlagValues) -> None:
    """Converts the dataset and prints the split sizes."""
    claim_output(values)
    sizes = ade20k.convert(
        values.ade20k_root, values.output_dir, values.num_shards, values.num_classes
    )
    print_sizes(values.output_dir, sizes)
