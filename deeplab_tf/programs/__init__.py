"""What the root scripts and the console scripts call.

Importing this package loads TensorFlow without the notices that it prints at
every start, so that one line on stderr is one line.
"""

import os
import sys
from collections.abc import Callable

from absl import flags

from deeplab_tf.errors import UserError


def _load_tensorflow_quietly() -> None:
    # The notices come from C++ before any logging can be set up in it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    terminal = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(null)


_load_tensorflow_quietly()


def run_program(
    main: Callable[[flags.FlagValues], None],
    values: flags.FlagValues,
    argv: list[str] | None = None,
) -> None:
    """Parses the command line and runs a program.

    A mistake of the user ends it with one line on stderr and exit status 1.

    Args:
        main: Takes the parsed flags.
        values: The program's flags.
        argv: Command line; None is `sys.argv`.
    """
    argv = sys.argv if argv is None else argv
    program = os.path.basename(argv[0])
    if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(f"{sys.modules[main.__module__].__doc__}\n{values.get_help()}")
        return
    try:
        rest = values(argv)[1:]
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}; flags begin with --")
        main(values)
    except (UserError, flags.Error) as error:
        sys.exit(f"{program}: {' '.join(str(error).split())}")
