"""Runs the command-line programs: root scripts, console scripts and `python -m`.

A program is a module whose docstring opens `--help`, with `define_flags()`, which
returns its flags, and `main(values)`, which takes them parsed and imports what needs
TensorFlow. `check(values)`, if it exists, refuses combinations of flags before that.
`USES_TENSORFLOW = False` marks a program that never needs it.
"""

import contextlib
import importlib
import os
import shlex
import signal
import sys
import threading
import types
from collections.abc import Iterable, Iterator, Sequence

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.errors import UserError, one_line, suggest_similar
from deeplab_tf.programs import runners
from deeplab_tf.programs.flag_help import format_requested_help, list_names

# Flags whose value is an output path.
_OUTPUT_FLAGS = (
    *("export_path", "output_dir", "train_logdir", "eval_logdir", "submission_file"),
    *("vis_logdir", "json", "work_dir", "download_dir"),
)
# Errors of users; OSError is raised for unusable paths.
_ERRORS = (UserError, absl_flags.Error, OSError)


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
    """Returns the command that started this program, without its folder."""
    program, *arguments = sys.argv
    name = os.path.basename(program)
    return [*(["python"] if name.endswith(".py") else []), name, *arguments]


def start_tensorflow(has_frozen_weights: bool = False) -> None:
    """Imports TensorFlow and Keras and sets memory growth on the GPUs.

    Call it before anything else imports TensorFlow: it silences TensorFlow's startup
    notices and turns on the oneDNN kernels.

    Args:
        has_frozen_weights: Whether weights never change in this process. Convolutions
            then convert variables to oneDNN's layout once instead of at every call.
    """
    if has_frozen_weights and "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "1")
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
    """Exits with an error if Keras is configured for another backend."""
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
    argv = sys.argv if argv is None else argv
    called = os.path.basename(argv[0])
    # Users often press Ctrl-C during the imports, which take seconds.
    with _quiet_ctrl_c():
        program = importlib.import_module(name)
        values = program.define_flags()
        if text := format_requested_help(program.__doc__ or "", values, argv):
            print_text(text)
            return
        try:
            parse_flags(values, argv)
            getattr(program, "check", lambda values: None)(values)
        except _ERRORS as error:
            sys.exit(f"{called}: {one_line(error)}")
        errors = _start(program, values)
    from deeplab_tf.training.interruption import Interrupted, raise_on_signals

    try:
        with raise_on_signals():
            if _uses_tensorflow(program):
                _refuse_special_files(values)
            program.main(values)
    except errors as error:
        sys.exit(f"{called}: {one_line(error)}")
    except Interrupted as error:
        line = f"{called}: interrupted by {error.signal.name} before it finished"
        if error.checkpoint:
            line = f"to resume, run: {shlex.join(make_resume_command())}"
        # After SIGHUP, the terminal may be closed.
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
        raise


def _start(
    program: types.ModuleType, values: absl_flags.FlagValues
) -> tuple[type[Exception], ...]:
    """Starts TensorFlow if the program needs it.

    Returns the types of exceptions to report as errors of the user.
    """
    if not _uses_tensorflow(program):
        return _ERRORS
    start_tensorflow(
        getattr(program, "has_frozen_weights", lambda values: False)(values)
    )
    from tensorflow import errors

    return (
        *_ERRORS,
        # Of tf.io.gfile for unusable paths, and of full devices.
        *(errors.PermissionDeniedError, errors.FailedPreconditionError),
        *(errors.NotFoundError, errors.ResourceExhaustedError),
    )


def _uses_tensorflow(program: types.ModuleType) -> bool:
    return getattr(program, "USES_TENSORFLOW", True)


def print_text(text: str) -> None:
    """Prints a text whose reader may close the pipe early, such as `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would report the closed pipe again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_flags(values: absl_flags.FlagValues, argv: list[str]) -> None:
    """Parses a command line and expands `~`.

    Raises:
        UserError: for an unknown or missing flag, a positional argument or an empty
            output path.
    """
    argv, options = runners.split_options(argv)
    try:
        rest = values(argv)[1:]
    except absl_flags.UnrecognizedFlagError as error:
        name = f"--{error.flagname}"
        similar = suggest_similar(name, list_names(values))
        raise UserError(
            f"there is no flag {name}; {similar}--help lists all flags"
        ) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags begin with --")
    runners.add_options(values, options)
    _require_all(values)
    for name in values:
        value = values[name].value
        if isinstance(value, str) and value.startswith("~"):
            # No shell expands it in `--image_dir=~/photos`.
            values[name].value = os.path.expanduser(value)
        if name in _OUTPUT_FLAGS and value == "":
            raise UserError(
                f"--{name} is empty; give a path (is a shell variable unset?)"
            )


def _require_all(values: absl_flags.FlagValues) -> None:
    """Raises UserError, with the meaning of the flag, if a required one is missing."""
    for name in values:
        flag = values[name]
        if flags.is_required(flag) and flag.value is None:
            meaning = str(flag.help).partition(". ")[0].removesuffix(".")
            raise UserError(f"--{name} is required: {meaning[0].lower()}{meaning[1:]}")


def _refuse_special_files(values: absl_flags.FlagValues) -> None:
    """Raises UserError for a path to a special file such as a FIFO."""
    from deeplab_tf.files import file_kinds

    for name in values:
        value = values[name].value
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                file_kinds.refuse_special(name, text)


def suggest_commands(commands: Iterable[Sequence[str]]) -> None:
    """Prints what to run next to stderr: the name and flags of each program."""
    sys.stdout.flush()
    print("next:", file=sys.stderr)
    for name, *arguments in commands:
        print(f"  {_find_program(name)} {shlex.join(arguments)}", file=sys.stderr)


def _find_program(name: str) -> str:
    """Returns the command of a program, in the form in which this one was started."""
    called = os.path.basename(sys.argv[0])
    if called == "deeplab":
        return f"deeplab {name}"
    if called.startswith("deeplab-"):
        return f"deeplab-{name}"
    # In a checkout, some programs are scripts.
    script = f"{name}.py"
    return f"python {script if os.path.exists(script) else f'-m deeplab_tf {name}'}"


def make_resume_command() -> list[str]:
    """Returns the command that starts this program again, with its full path."""
    program, *arguments = sys.argv
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec and program.endswith(f"{spec.name.replace('.', os.sep)}.py"):
        return ["python", "-m", spec.name.removesuffix(".__main__"), *arguments]
    return [*(["python"] if program.endswith(".py") else []), program, *arguments]
