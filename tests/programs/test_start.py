"""How the programs start TensorFlow."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

# TensorFlow has no public name for it.
SHOWS_ONEDNN = """
from deeplab_tf.programs import start_tensorflow
start_tensorflow()
from tensorflow.python.util import _pywrap_util_port
print(_pywrap_util_port.IsMklEnabled())
"""


@pytest.mark.parametrize(("asked", "found"), [(None, "True"), ("0", "False")])
def test_onednn_is_used_unless_told_otherwise(asked, found):
    name = "TF_ENABLE_ONEDNN_OPTS"
    environment = {key: value for key, value in os.environ.items() if key != name}
    environment |= {name: asked} if asked else {}
    shown = subprocess.run(
        [sys.executable, "-c", SHOWS_ONEDNN],
        env=environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert (shown.stdout, shown.stderr) == (f"{found}\n", "")


def test_the_doctor_says_nothing_but_its_own():
    # Its module needs TensorFlow before it is a program.
    quiet = {key: value for key, value in os.environ.items() if key[:3] != "TF_"}
    done = subprocess.run(
        [sys.executable, "-m", "deeplab_tf.data.doctor"],
        env=quiet,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    needed = "doctor.py: --dataset_dir is required: the folder of the TFRecords\n"
    assert (done.stdout, done.stderr) == ("", needed)


def test_ctrl_c_while_tensorflow_is_imported_ends_without_a_traceback():
    program = "from deeplab_tf.programs import commands; commands.train()"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        # TensorFlow's library is mapped long before its import has ended.
        maps = pathlib.Path(f"/proc/{process.pid}/maps")
        while "libtensorflow" not in maps.read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
        assert process.stderr.read() == ""
