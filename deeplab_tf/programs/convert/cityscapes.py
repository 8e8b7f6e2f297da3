"""Converts Cityscapes, in its official layout, to TFRecords.

    deeplab-convert cityscapes --cityscapes_root=cityscapes --output_dir=tfrecord

The root holds leftImg8bit and gtFine, and gtCoarse for the coarse splits. Labels come
from the *_labelIds.png files of the archives; there is no need to create trainIds
first. A split is written if all of its folders exist.
"""

from absl import flags

from deeplab_tf.convert import cityscapes
from deeplab_tf.programs.convert.output import claim_output, define_output, print_sizes


def define_flags() -> flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "cityscapes_root",
        None,
        "Folder with leftImg8bit and gtFine.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_list(
        "splits",
        None,
        "Splits to write; default: all whose folders exist. Each has its own copy of "
        "the images.",
        flag_values=values,
    )
    define_output(values, 10)
    return values


def main(values: flags.FlagValues) -> None:
    """Converts the dataset and prints the split sizes."""
    claim_output(values)
    sizes = cityscapes.convert(
        values.cityscapes_root,
        values.output_dir,
        values.num_shards,
        values.splits or (),
    )
    print_sizes(values.output_dir, sizes)
