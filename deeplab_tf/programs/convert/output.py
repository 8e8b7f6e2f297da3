"""Output flags and the summary that all converters share."""

from collections.abc import Mapping

from absl import flags

from deeplab_tf.convert import conversion
from deeplab_tf.flags import define_overwrite


def define_output(values: flags.FlagValues, num_shards: int) -> None:
    """Defines the output flags; `num_shards` is the default per split."""
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder for the TFRecords.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_integer(
        "num_shards",
        num_shards,
        "Files per split; fewer if there are fewer images.",
        lower_bound=1,
        flag_values=values,
    )
    define_overwrite(values)


def claim_output(values: flags.FlagValues) -> None:
    """With `--overwrite`, lets the converter replace files that it did not write."""
    if values.overwrite:
        conversion.claim_folder(values.output_dir)


def print_sizes(output_dir: str, sizes: Mapping[str, int]) -> None:
    """Prints the number of images of each split."""
    counts = ", ".join(f"{split} {size}" for split, size in sizes.items())
    noun = "image" if sum(sizes.values()) == 1 else "images"
    print(f"{output_dir}: {counts} {noun}")
