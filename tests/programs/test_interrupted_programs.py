"""Programs that are interrupted by a signal."""

import os
import signal
import sys
import types

import pytest
from absl import flags

from deeplab_tf.programs import make_resume_command, run_program
from deeplab_tf.training.interruption import Interrupted


def run_main(main, capfd):
    """Runs a program; returns its exit status and stderr."""
    program = types.ModuleType("program")
    program.define_flags, program.main = flags.FlagValues, main
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.setitem(sys.modules, "program", program)
        run_program("program", ["/repo/train.py"])
    return error.value.code, capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_signal_exits_with_one_line_message(number, status, capfd):
    cleaned = []

    def main(values):
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(number)

    line = f"train.py: interrupted by {number.name} before it finished\n"
    assert run_main(main, capfd) == (status, line)
    assert cleaned == [number]


def test_interrupted_training_prints_resume_command(monkeypatch, capfd):
    def main(values):
        raise Interrupted(signal.SIGHUP, "logs/model.ckpt-7")

    argv = ["train.py", "--train_logdir=my logs", "--train_split=a$b"]
    monkeypatch.setattr(sys, "argv", argv)
    line = (
        "to resume, run: python train.py '--train_logdir=my logs' '--train_split=a$b'\n"
    )
    assert run_main(main, capfd) == (129, line)


def test_exit_status_is_kept_if_terminal_is_closed(monkeypatch, capfd):
    def main(values):
        raise Interrupted(signal.SIGHUP)

    def write(text):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(
        sys, "stderr", types.SimpleNamespace(write=write, flush=lambda: None)
    )
    assert run_main(main, capfd)[0] == 129


@pytest.mark.parametrize(
    ("argv", "module", "expected"),
    [
        (["/a/train.py", "--x"], None, ["python", "/a/train.py", "--x"]),
        (["bin/deeplab-train", "--x"], None, ["bin/deeplab-train", "--x"]),
        (
            ["/a/deeplab_tf/predict.py", "--x"],
            "deeplab_tf.predict",
            ["python", "-m", "deeplab_tf.predict", "--x"],
        ),
        (
            ["/a/deeplab_tf/pretrain/__main__.py", "--x"],
            "deeplab_tf.pretrain.__main__",
            ["python", "-m", "deeplab_tf.pretrain", "--x"],
        ),
        (["eval.py"], "pytest.__main__", ["python", "eval.py"]),
    ],
)
def test_command_line_is_printed_as_typed(argv, module, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    spec = module and types.SimpleNamespace(name=module)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    assert make_resume_command() == expected
