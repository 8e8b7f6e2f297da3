"""Entry points of the console scripts."""

import functools
import sys

from deeplab_tf.programs import run_program

# All write TFRecords, except `shapes`, which writes an example for `voc2012`.
_CONVERTERS = ("ade20k", "cityscapes", "coco_voc", "folder", "shapes", "voc2012")

train = functools.partial(run_program, "deeplab_tf.programs.train")
evaluate = functools.partial(run_program, "deeplab_tf.programs.eval")
export = functools.partial(run_program, "deeplab_tf.programs.export")
predict = functools.partial(run_program, "deeplab_tf.programs.predict")
doctor = functools.partial(run_program, "deeplab_tf.programs.doctor")
pretrain = functools.partial(run_program, "deeplab_tf.pretrain.program")
plan = functools.partial(run_program, "deeplab_tf.plan.program")


def convert(argv: list[str] | None = None) -> None:
    """Runs `deeplab-convert DATASET`.

    Args:
        argv: Command line; None is `sys.argv`. Its first argument names the converter.
    """
    program, *arguments = sys.argv if argv is None else argv
    usage = f"usage: deeplab-convert {{{','.join(_CONVERTERS)}}} [flags]"
    if arguments[:1] in (["--help"], ["-h"]):
        print(f"{usage}\ndeeplab-convert DATASET --help lists the flags")
        return
    if not arguments or arguments[0] not in _CONVERTERS:
        received = f"; received {arguments[0]!r}" if arguments else ""
        sys.exit(f"deeplab-convert: {usage}{received}")
    name, *rest = arguments
    run_program(f"deeplab_tf.programs.convert.{name}", [f"{program} {name}", *rest])
