"""Runs the programs: root scripts, console scripts and `python -m`.

A program is a module with its docstring for `--help`, `define_flags()` that returns
its flags, and `main(values)` that takes them parsed.
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

# Flags that name what a program writes.
_OUTPUTS = (
    *("export_path", "output_dir", "train_logdir", "eval_logdir", "submission_file"),
    *("json", "work_dir", "download_dir"),
)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops what C++ writes to stderr before its logging can be set up."""
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
    """Lets Ctrl-C end the process without a traceback, as SIGTERM does."""
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


def start_tensorflow() -> None:
    """Imports TensorFlow and Keras and finds the devices.

    Without the notices that TensorFlow prints every time, so that one line on stderr is
    one line, and with oneDNN's kernels; hence before anything else imports TensorFlow.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # By itself TensorFlow takes these kernels only where the processor has the
    # instructions of AVX512-VNNI or later; without them a training step of MobileNetV2
    # with AVX2 alone takes twice the time.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with _silent_stderr():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            if not tf.config.experimental.get_memory_growth(gpu):
                # Without this TensorFlow takes all of the memory at once.
                tf.config.experimental.set_memory_growth(gpu, True)
    # What the notices would have told about a GPU that is there but unused.
    if not gpus and os.path.exists("/dev/nvidia0"):
        print(
            "warning: this machine has a GPU that TensorFlow cannot use; "
            "pip install 'deeplab_tf[gpu]' brings CUDA",
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
        # Here, because importing a program already builds on the backend.
        sys.exit(
            "the programs need the Keras backend tensorflow; the environment variable "
            f"KERAS_BACKEND or keras.json sets {backend}"
        )


def run_program(name: str, argv: list[str] | None = None) -> None:
    """Parses the command line and runs a program.

    A mistake of the user ends it with one line on stderr and exit status 1. Ctrl-C,
    SIGTERM and SIGHUP end it with one line and the statuses 130, 143 and 129.

    Args:
        name: Module of the program, such as `deeplab_tf.programs.train`.
        argv: Command line; None is `sys.argv`.
    """
    # Imports take seconds, in which many a command line is regretted.
    with _quiet_ctrl_c():
        start_tensorflow()
        program = importlib.import_module(name)
    from tensorflow import errors

    from deeplab_tf.training.interruption import Interrupted, raise_on_signals

    mistakes = (
        *(UserError, flags.Error),
        # What Python and tf.io.gfile say of a path that cannot be.
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
    except mistakes as error:
        sys.exit(f"{called}: {one_line(error)}")
    except Interrupted as error:
        line = f"{called}: interrupted by {error.signal.name} before it finished"
        if error.checkpoint:
            line = f"to resume, run: {shlex.join(command_line())}"
        # SIGHUP comes because the terminal was closed.
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
        raise


def parse_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Parses a command line, and refuses paths that cannot be meant.

    Raises:
        UserError: for an argument that is no flag, an empty output path, and a special
            file such as a FIFO in place of a file.
    """
    # Here, because it imports TensorFlow.
    from deeplab_tf.files import file_kinds

    rest = values(argv)[1:]
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags begin with --")
    for name in values:
        _refuse_empty_output(values[name])
        for value in _texts(values[name].value):
            file_kinds.refuse_special(name, value)


def command_line() -> list[str]:
    """Returns the command line of this process, to be run again."""
    program, *arguments = sys.argv
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    # As started by `python -m`.
    if spec and program.endswith(f"{spec.name.replace('.', os.sep)}.py"):
        return ["python", "-m", spec.name.removesuffix(".__main__"), *arguments]
    return [*(["python"] if program.endswith(".py") else []), program, *arguments]


def _refuse_empty_output(flag: flags.Flag) -> None:
    if flag.name in _OUTPUTS and flag.value == "":
        raise UserError(
            f"--{flag.name} is empty; give a path (is a shell variable unset?)"
        )


def _texts(value: object) -> list[str]:
    """Returns the texts of the value of a flag."""
    values = value if isinstance(value, list) else [value]
    return [value for value in values if isinstance(value, str)]
