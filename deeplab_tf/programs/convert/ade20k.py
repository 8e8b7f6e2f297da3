"""ADE20K of the scene parsing challenge (ADEChallengeData2016) to TFRecords.

    deeplab-convert ade20k --ade20k_root=ADEChallengeData2016 --output_dir=tfrecord

The official form keeps the values: 151 classes, of which 0 is ignored; the official
checkpoints have as many. With `--num_classes=150` the classes begin at 0 and 255 is
ignored; the data set is then called ade20k_150.
"""

from absl import flags

from deeplab_tf.convert import ade20k
from deeplab_tf.programs.convert.output import claim_output, define_output, print_sizes


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "ade20k_root",
        None,
        "Folder that holds images and annotations.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_integer(
        "num_classes",
        151,
        "151 keeps the values, 0 is ignored; 150 begins with wall, 255 is ignored.",
        flag_values=values,
    )
    define_output(values, 4)
    return values


def main(values: flags.FlagValues) -> None:
    """Converts, then says what there is."""
    claim_output(values)
    sizes = ade20k.convert(
        values.ade20k_root, values.output_dir, values.num_shards, values.num_classes
    )
    print_sizes(values.output_dir, sizes)
