"""Writes generated scenes of overlapping shapes in the folder layout of PASCAL VOC.

    deeplab-convert shapes --output_dir=shapes
    deeplab-convert voc2012 --voc_root=shapes --output_dir=tfrecord

Also prints the mIoU of a colour-only baseline, which a network has to beat.
"""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.programs import suggest_commands

USES_TENSORFLOW = False
_FLAGS = {
    "output_dir": (flags.required_string, None, "Folder to create."),
    "train_images": (flags.INTEGER, 1600, "Training scenes."),
    "val_images": (flags.INTEGER, 200, "Validation scenes."),
    "test_images": (flags.INTEGER, 200, "Test scenes."),
    "image_size": (
        *(flags.REPEATED, "128,128"),
        "Height and width of the images.",
    ),
    "seed": (flags.INTEGER, 0, "Random seed."),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_flags(values, _FLAGS)
    return values


def main(values):
    """Writes the dataset and prints the split sizes and the colour baseline."""
    from deeplab_tf.convert import shapes
    from deeplab_tf.programs.convert.color_baseline import score_color_baseline

    names = ("output_dir", "train_images", "val_images", "test_images", "seed")
    settings = {name: values[name].value for name in names}
    info = shapes.write(
        image_size=flags.read_size(values, "image_size") or (), **settings
    )
    sizes = ", ".join(f"{split} {info.split_sizes[split]}" for split in shapes.SPLITS)
    print(f"{values.output_dir}: {sizes} images")
    miou = score_color_baseline(values.output_dir, eval_split="val")
    print(f"mIoU on val if labelled by the nearest mean colour: {miou:.3f}")
    root = f"--voc_root={values.output_dir}"
    suggest_commands([("convert voc2012", root, "--output_dir=tfrecord")])
