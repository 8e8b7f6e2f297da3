"""Lists the checkpoints of the official model zoo, or those that contain some words.

    python -m deeplab_tf.checkpoints.zoo
    python -m deeplab_tf.checkpoints.zoo mobilenet
    python -m deeplab_tf.checkpoints.zoo xception65 ade20k

--tf_initial_checkpoint=NAME of train.py downloads and starts from one.
"""

import deeplab_tf.checkpoints.zoo
from deeplab_tf.checkpoints.zoo import describe_checkpoint, zoo_address
from deeplab_tf.programs.listing import run_listing


def main(argv: list[str] | None = None) -> None:
    """Prints the checkpoints; `argv` is a command line, None is `sys.argv`."""
    run_listing(__doc__ or "", describe_zoo, argv)


def describe_zoo() -> dict[str, str]:
    """Returns the description of each checkpoint, and the address of the archives."""
    zoo = deeplab_tf.checkpoints.zoo.ZOO
    rows = {name: describe_checkpoint(row) for name, row in zoo.items()}
    return rows | {"": f"archives: {zoo_address()}"}
