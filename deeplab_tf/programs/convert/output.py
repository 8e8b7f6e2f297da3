"""What the command lines of all converters have: their output and its summary."""

from collections.abc import Mapping

from absl import flags

from deeplab_tf.convert import conversion
from deeplab_tf.flags import define_overwrite


def define_output(values: flags.FlagValues, num_shards: int) -> None:
    """Defines the flags that all converters have.

    Args:
        values: Where to define them.
        num_shards: Default number of files per split.
    """
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of the TFRecords.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_integer(
        "num_shards",
        num_shards,
        "Files per split at most; none is empty.",
        lower_bound=1,
        flag_values=values,
    )
    define_overwrite(values)


def claim_output(values: flags.FlagValues) -> None:
    """Lets the conversion replace files of somebody else, if `--overwrite` says so."""
    if values.overwrite:
        conversion.claim_folder(values.output_dir)


def print_sizes(output_dir: str, sizes: Mapping[str, int]) -> None:
    """Prints how many images each split has."""
    counts = ", ".join(f"{split} {size}" for split, size in sizes.items())
    print(f"{output_dir}: {counts} images")
