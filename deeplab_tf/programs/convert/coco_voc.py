r"""Converts COCO, reduced to the 20 PASCAL VOC classes, to TFRecords.

    deeplab-convert coco_voc --annotations=annotations/instances_train2017.json \
      --image_dir=train2017 --split=train --output_dir=tfrecord

For pretraining, as in DeepLabv3 (arXiv:1706.05587): keeps images with more than 1000
annotated pixels of these classes; all other objects are background, and crowds are
ignored. Works with COCO 2014 and 2017; needs `pip install 'deeplab_tf[coco]'`.
"""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.errors import require_extra
from deeplab_tf.programs.convert import output

_FLAGS = {
    "annotations": (
        *(flags.required_string, None),
        "COCO annotations, such as instances_train2017.json.",
    ),
    "image_dir": (flags.required_string, None, "Folder with the JPEG images."),
    "split": (flags.required_string, None, "Name of the split, such as train."),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    return output.define_flags(_FLAGS, 100)


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError without pycocotools, or if --runner cannot be used."""
    output.check(values)
    require_extra(["pycocotools"], "coco", "COCO annotations need")


def main(values: absl_flags.FlagValues) -> None:
    """Converts the dataset and prints the split sizes."""
    from deeplab_tf.convert import coco_voc

    output.claim(values)
    sizes = coco_voc.convert(
        values.annotations,
        values.image_dir,
        values.output_dir,
        values.split,
        values.num_shards,
        output.read_run_options(values),
    )
    output.print_sizes(values.output_dir, sizes)
