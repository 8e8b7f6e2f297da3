"""Output flags and summary shared by all converters."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config.options import DATA, OUTPUT
from deeplab_tf.programs import runners, start_tensorflow, suggest_commands

if TYPE_CHECKING:
    from deeplab_tf.convert.options import RunOptions


def define_flags(
    rows: Mapping[str, tuple],
    num_shards: int,
    details: Mapping[str, tuple] | None = None,
) -> absl_flags.FlagValues:
    """Returns the flags of a converter.

    Args:
        rows: Flags of the converter; see `flags.define_flags`.
        num_shards: Default number of files per split.
        details: Flags that few users need.
    """
    values = absl_flags.FlagValues()
    folder = {"output_dir": (flags.required_string, None, "Folder for the TFRecords.")}
    shards = {
        "num_shards": (
            *(flags.at_least(1), num_shards),
            "Files per split; fewer if there are fewer images.",
        ),
    }
    flags.define_flags(values, {**rows, **folder})
    flags.define_flags(values, details or {}, DATA)
    flags.define_flags(values, shards, OUTPUT)
    flags.define_overwrite(values)
    runners.define_flags(values)
    return values


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError if --runner cannot be used."""
    runners.check(values, unavailable=())


def read_run_options(values: absl_flags.FlagValues) -> "RunOptions":
    """Returns the options for earlier records and broken files, and the --runner."""
    from deeplab_tf.beam import conversion
    from deeplab_tf.convert.options import RunOptions

    options = {}
    if "skip_broken" in values:
        options = {"adds": not values.overwrite, "skip_broken": values.skip_broken}
    if not values.runner:
        return RunOptions(**options)

    def run(load, write_shard, numbers, folder):
        work = start_tensorflow, load, write_shard
        return runners.run_tasks(values, work, numbers, folder)

    return RunOptions(
        **options, run_tasks=functools.partial(conversion.write_shards, run)
    )


def claim(values: absl_flags.FlagValues) -> None:
    """With `--overwrite`, permits replacing files that the converter did not write."""
    from deeplab_tf.convert import conversion

    if values.overwrite:
        conversion.claim_folder(values.output_dir)


def print_sizes(output_dir: str, sizes: Mapping[str, int]) -> None:
    """Prints the number of images of each split."""
    counts = ", ".join(f"{split} {size}" for split, size in sizes.items())
    noun = "image" if sum(sizes.values()) == 1 else "images"
    print(f"{output_dir}: {counts} {noun}")
    suggest_commands([("doctor", f"--dataset_dir={output_dir}")])
