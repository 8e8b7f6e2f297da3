r"""Converts COCO, reduced to the 20 PASCAL VOC classes, to TFRecords.

    deeplab-convert coco_voc --annotations=annotations/instances_train2017.json \
      --image_dir=train2017 --split=train --output_dir=tfrecord

For pretraining, as in DeepLabv3 (arXiv:1706.05587): keeps images with more than 1000
annotated pixels of these classes; all other objects are background, and crowds are
ignored. Works with COCO 2014 and 2017; needs `pip install 'deeplab_tf[coco]'`.
"""

import functools

from absl import flags

from deeplab_tf.convert import coco_voc
from deeplab_tf.programs.convert.output import claim_output, define_output, print_sizes


def define_flags() -> flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = flags.FlagValues()
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    string(
        "annotations",
        None,
        "COCO annotations, such as instances_train2017.json.",
        required=True,
    )
    string("image_dir", None, "Folder with the JPEG images.", required=True)
    string("split", None, "Name of the split, such as train.", required=True)
    define_output(values, 100)
    return values


def main(values: flags.FlagValues) -> None:
    """Converts the dataset and prints the split sizes."""
    claim_output(values)
    sizes = coco_voc.convert(
        values.annotations,
        values.image_dir,
        values.output_dir,
        values.split,
        values.num_shards,
    )
    print_sizes(values.output_dir, sizes)
