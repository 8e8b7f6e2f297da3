"""Runs the command-line programs: root scripts, console scripts and `python -m`.

A program is a module whose docstring opens `--help`, with `define_flags()`, which
returns its flags, and `main(values)`, which takes them parsed.
"""

import contextlib
import importlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator

from absl import flags

from deeplab_tf.errors import UserError, one_line

# Flags whose value is an output path.
_OUTPUT_FLAGS = (
    *("export_path", "output_dir", "train_logdir", "eval_logdir", "submission_file"),
    *("json", "work_dir", "download_dir"),
)


@contextlib.contextmanager
def _silence_stderr() -> Iterator[None]:
    """Suppresses stderr output of C++ code before its logging is set up."""
    sys.stderr.flush()
    terminal, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(null)


@contextlib.contextmanager
def _quiet_ctrl_c() -> Iterator[None]:
    """Makes Ctrl-C end the process without a traceback, like SIGTERM."""
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if handler is not signal.default_int_handler or not is_main:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def read_command_line() -> list[str]:
    """Returns the arguments of the command line that repeats this program."""
    program, *arguments = sys.argv
    name = os.path.basename(program)
    return [*(["python"] if name.endswith(".py") else []), name, *arguments]


def start_tensorflow() -> None:
    """Imports TensorFlow and Keras and sets memory growth on the GPUs.

    Call it before anything else imports TensorFlow: it silences TensorFlow's startup
    notices and turns on the oneDNN kernels.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # By default, TensorFlow uses these kernels only on processors with AVX512-VNNI or
    # later; with AVX2 alone, a MobileNetV2 training step takes twice as long without.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with _silence_stderr():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            if not tf.config.experimental.get_memory_growth(gpu):
                tf.config.experimental.set_memory_growth(gpu, True)
    # Replaces the silenced notice about an unused GPU.
    if not gpus and os.path.exists("/dev/nvidia0"):
        print(
            "warning: this machine has a GPU that TensorFlow cannot use; "
            "pip install 'deeplab_tf[gpu]' installs CUDA",
            file=sys.stderr,
        )
    _require_tensorflow_backend()


def _require_tensorflow_backend() -> None:
    try:
        import keras

        backend = keras.backend.backend()
    except ImportError as error:
        backend = f"one that is not installed ({error})"
    if backend != "tensorflow":
        # Not a UserError: importing the programs already needs the backend.
        sys.exit(
            "the programs need the Keras backend tensorflow; the environment variable "
            f"KERAS_BACKEND or keras.json sets {backend}"
        )


def run_program(name: str, argv: list[str] | None = None) -> None:
    """Parses the command line and runs a program.

    A user error prints one line on stderr and exits with status 1. Ctrl-C, SIGTERM and
    SIGHUP print one line and exit with 130, 143 and 129.

    Args:
        name: Module of the program, such as `deeplab_tf.programs.train`.
        argv: Command line; None is `sys.argv`.
    """
    # Users often press Ctrl-C during the imports, which take seconds.
    with _quiet_ctrl_c():
        start_tensorflow()
        program = importlib.import_module(name)
    from tensorflow import errors

    from deeplab_tf.training.interruption import Interrupted, raise_on_signals

    user_errors = (
        *(UserError, flags.Error),
        # Raised by Python and tf.io.gfile for unusable paths.
        *(OSError, errors.PermissionDeniedError, errors.FailedPreconditionError),
        *(errors.NotFoundError, errors.ResourceExhaustedError),
    )
    argv = sys.argv if argv is None else argv
    called = os.path.basename(argv[0])
    values = program.define_flags()
    if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(f"{program.__doc__}\n{values.get_help()}")
        return
    try:
        with raise_on_signals():
            parse_flags(values, argv)
            program.main(values)
    except user_errors as error:
        sys.exit(f"{called}: {one_line(error)}")
    except Interrupted as error:
        line = f"{called}: interrupted by {error.signal.name} before it finished"
        if error.checkpoint:
            line = f"to resume, run: {shlex.join(command_line())}"
        # After SIGHUP, the terminal may be closed.
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
        raise


def parse_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Parses a command line, expands `~` and validates its paths.

    Raises:
        UserError: for a positional argument, an empty output path, or a path to a
            special file such as a FIFO.
    """
    # Imports TensorFlow.
    from deeplab_tf.files import file_kinds

    rest = values(argv)[1:]
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags begin with --")
    for name in values:
        value = values[name].value
        if isinstance(value, str) and value.startswith("~"):
            # No shell expands it in `--image_dir=~/photos`.
            value = values[name].value = os.path.expanduser(value)
        if name in _OUTPUT_FLAGS and value == "":
            raise UserError(
                f"--{name} is empty; give a path (is a shell variable unset?)"
            )
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                file_kinds.refuse_special(name, text)


def command_line() -> list[str]:
    """Returns the command line that runs this process again."""
    program, *arguments = sys.argv
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec and program.endswith(f"{spec.name.replace('.', os.sep)}.py"):
        return ["python", "-m", spec.name.removesuffix(".__main__"), *arguments]
    return [*(["python"] if program.endswith(".py") else []), program, *arguments]
