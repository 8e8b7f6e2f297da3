"""Prepares data, trains, evaluates, predicts and exports.

    deeplab COMMAND [flags]

`deeplab COMMAND --help` lists the flags of a command. train.py, eval.py, vis.py and
export.py, and the scripts deeplab-train, deeplab-convert and so on run the same
commands.
"""

import functools
import importlib
import os
import sys
from collections.abc import Mapping

from deeplab_tf.errors import suggest_similar
from deeplab_tf.programs import print_text, run_program
from deeplab_tf.programs.flag_help import HELP, describe_version

_PROGRAMS = "deeplab_tf.programs"
# All write TFRecords, except `shapes`, which writes an example for `voc2012`.
_CONVERTERS = {
    name: f"{_PROGRAMS}.convert.{name}"
    for name in ("folder", "voc2012", "cityscapes", "ade20k", "coco_voc", "shapes")
}
# In the order in which they are used.
COMMANDS = {
    **{f"convert {name}": module for name, module in _CONVERTERS.items()},
    "doctor": f"{_PROGRAMS}.doctor",
    "presets": f"{_PROGRAMS}.presets",
    "zoo": f"{_PROGRAMS}.zoo",
    "plan": "deeplab_tf.plan.program",
    "data-worker": f"{_PROGRAMS}.data_worker",
    "train": f"{_PROGRAMS}.train",
    "eval": f"{_PROGRAMS}.eval",
    "vis": f"{_PROGRAMS}.vis",
    "predict": f"{_PROGRAMS}.predict",
    "export": f"{_PROGRAMS}.export",
    "pretrain": "deeplab_tf.pretrain.program",
}

train = functools.partial(run_program, COMMANDS["train"])
evaluate = functools.partial(run_program, COMMANDS["eval"])
visualize = functools.partial(run_program, COMMANDS["vis"])
export = functools.partial(run_program, COMMANDS["export"])
predict = functools.partial(run_program, COMMANDS["predict"])
doctor = functools.partial(run_program, COMMANDS["doctor"])
pretrain = functools.partial(run_program, COMMANDS["pretrain"])
data_worker = functools.partial(run_program, COMMANDS["data-worker"])
plan = functools.partial(run_program, COMMANDS["plan"])


def main(argv: list[str] | None = None) -> None:
    """Runs `deeplab COMMAND`; `argv` is a command line, None is `sys.argv`."""
    argv = sys.argv if argv is None else argv
    if argv[1:2] == ["convert"]:
        convert([f"{argv[0]} convert", *argv[2:]])
        return
    _run(argv, COMMANDS, __doc__ or "")


def convert(argv: list[str] | None = None) -> None:
    """Runs `deeplab-convert DATASET`.

    Args:
        argv: Command line; None is `sys.argv`. Its first argument names the converter.
    """
    argv = sys.argv if argv is None else argv
    called = os.path.basename(argv[0])
    doc = f"{called} DATASET [flags] converts a dataset to TFRecords."
    _run(argv, _CONVERTERS, f"{doc}\n`{called} DATASET --help` lists the flags.")


def _run(argv: list[str], commands: Mapping[str, str], doc: str) -> None:
    """Runs the command that the first argument names, or lists all."""
    program, *arguments = argv
    called = os.path.basename(program)
    if arguments[:1] == ["--version"]:
        print_text(describe_version())
    elif not arguments or arguments[0] in HELP:
        print_text(f"{doc.rstrip()}\n\n{_list(commands)}")
    elif arguments[0] not in commands:
        similar = suggest_similar(arguments[0], [*commands, "convert"])
        sys.exit(
            f"{called}: there is no command {arguments[0]!r}; {similar}"
            f"{called} --help lists all"
        )
    else:
        name, *rest = arguments
        module, argv = commands[name], [f"{program} {name}", *rest]
        if name in ("presets", "zoo"):
            importlib.import_module(module).main(argv)
        else:
            run_program(module, argv)


def _list(commands: Mapping[str, str]) -> str:
    width = max(map(len, commands))
    lines = []
    for name, module in commands.items():
        summary = (importlib.import_module(module).__doc__ or "").partition("\n")[0]
        lines.append(f"  {name:<{width}}  {summary.split('; ')[0].removesuffix('.')}")
    return "\n".join(lines)
