"""Converts Cityscapes, in its official layout, to TFRecords.

    deeplab-convert cityscapes --cityscapes_root=cityscapes --output_dir=tfrecord

The root contains leftImg8bit and gtFine, and gtCoarse for the coarse splits. Labels
come from the *_labelIds.png files of the archives, so you need not create trainIds
first. A split is written if all of its folders exist.
"""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.programs.convert import output

_FLAGS = {
    "cityscapes_root": (
        flags.required_string,
        None,
        "Folder with leftImg8bit and gtFine.",
    ),
    "splits": (
        *(flags.STRINGS, None),
        "Splits to write; default: all whose folders exist. Each has its own copy of "
        "the images.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    return output.define_flags(_FLAGS, 10)


check = output.check


def main(values: absl_flags.FlagValues) -> None:
    """Converts the dataset and prints the split sizes."""
    from deeplab_tf.convert import cityscapes

    output.claim(values)
    sizes = cityscapes.convert(
        values.cityscapes_root,
        values.output_dir,
        values.num_shards,
        values.splits or (),
        output.read_run_options(values),
    )
    output.print_sizes(values.output_dir, sizes)
