"""Defines the flags for training devices."""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config.options import HARDWARE

_STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker_mirrored", "tpu")
_FLAGS = {
    "distribution_strategy": (
        *(flags.one_of(*_STRATEGIES), "auto"),
        "Ours: auto uses the workers in TF_CONFIG, else all GPUs, else the CPU.",
    ),
    "num_clones": (
        *(flags.INTEGER, None),
        "Number of devices; default: all GPUs. On CPU, logical devices.",
    ),
    "clone_on_cpu": (flags.BOOLEAN, False, "Do not use GPUs."),
    "tpu": (flags.STRING, None, "Ours: TPU name or address."),
    "deterministic": (
        *(flags.BOOLEAN, False),
        "Ours: make training bit-for-bit reproducible.",
    ),
}


def define_machine(values: absl_flags.FlagValues) -> None:
    """Defines the flags that choose the training devices."""
    flags.define_flags(values, _FLAGS, HARDWARE)
