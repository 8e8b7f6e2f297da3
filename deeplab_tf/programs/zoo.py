"""Lists the checkpoints of the model zoo, or those that match the given words.

    python -m deeplab_tf.checkpoints.zoo
    python -m deeplab_tf.checkpoints.zoo mobilenet
    python -m deeplab_tf.checkpoints.zoo xception65 ade20k
    python -m deeplab_tf.checkpoints.zoo --markdown

--markdown writes their results, sizes and CPU times to docs/zoo.md in a checkout.
--tf_initial_checkpoint=NAME of train.py downloads and starts from one.
"""

import pathlib
import sys

import deeplab_tf.checkpoints.zoo
from deeplab_tf.checkpoints.zoo import describe_checkpoint, page, zoo_address
from deeplab_tf.checkpoints.zoo.pytorch import (
    PYTORCH_ZOO,
    describe_pytorch_checkpoint,
)
from deeplab_tf.errors import UserError
from deeplab_tf.programs.listing import run_listing


def main(argv: list[str] | None = None) -> None:
    """Prints the checkpoints; `argv` is a command line, None is `sys.argv`."""
    if "--markdown" in (sys.argv if argv is None else argv):
        try:
            page.write_page(pathlib.Path())
        except UserError as error:
            sys.exit(f"zoo: {error}")
        print(f"written: {page.PAGE}")
        return
    run_listing(__doc__ or "", describe_zoo, argv)


def describe_zoo() -> dict[str, str]:
    """Returns the description of each checkpoint, and the address of the archives."""
    zoo = deeplab_tf.checkpoints.zoo.ZOO
    rows = {name: describe_checkpoint(row) for name, row in zoo.items()}
    rows |= {n: describe_pytorch_checkpoint(row) for n, row in PYTORCH_ZOO.items()}
    return rows | {"": f"archives: {zoo_address()}"}
