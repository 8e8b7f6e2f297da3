"""Prints the Multiply-Adds columns of the papers next to ours.

    python -m deeplab_tf.models.complexity

The published figures are half of the TF1 profiler's `float_ops`; docs/complexity.md
says what they include. The program takes about a minute and has no flags.
"""

from absl import flags as absl_flags

USES_TENSORFLOW = False  # Keras, on any backend


def define_flags() -> absl_flags.FlagValues:
    """Returns no flags."""
    return absl_flags.FlagValues()


def main(values: absl_flags.FlagValues) -> None:
    """Prints the table."""
    from deeplab_tf.models.complexity import format_table

    print(format_table())
