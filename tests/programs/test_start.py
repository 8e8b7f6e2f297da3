"""How the programs start TensorFlow."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from conftest import ROOT

from deeplab_tf.programs import eval as eval_program, start_tensorflow

# TensorFlow has no public function for oneDNN.
PRINT_OPTIONS = """
import os
from deeplab_tf import programs
from deeplab_tf.programs import predict
def main(values):
    from tensorflow.python.util import _pywrap_util_port
    print(_pywrap_util_port.IsMklEnabled())
    print(os.environ["TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"])
predict.main = main
programs.run_program(predict.__name__)
"""


def test_predict_enables_onednn_and_freezes_weights():
    name = "TF_ENABLE_ONEDNN_OPTS"
    environment = {key: value for key, value in os.environ.items() if key != name}
    command = ["--model=m", "--images=i", "--output_dir=o"]
    result = subprocess.run(
        [sys.executable, "-c", PRINT_OPTIONS, *command],
        env=environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.stderr) == ("True\n1\n", "")


def test_given_onednn_option_is_kept(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    start_tensorflow()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"


def test_eval_freezes_the_weights_of_a_saved_model_only(tmp_path):
    values = eval_program.define_flags()
    values(["eval.py", f"--checkpoint_dir={tmp_path}", "--eval_logdir=l"])
    assert not eval_program.has_frozen_weights(values)
    (tmp_path / "saved_model.pb").touch()
    assert eval_program.has_frozen_weights(values)


def test_doctor_prints_no_tensorflow_logs():
    # Its module is in deeplab_tf.data, next to modules that import TensorFlow.
    quiet = {key: value for key, value in os.environ.items() if key[:3] != "TF_"}
    result = subprocess.run(
        [sys.executable, "-m", "deeplab_tf.data.doctor"],
        env=quiet,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    expected = "doctor.py: --dataset_dir is required: the folder of the TFRecords\n"
    assert (result.stdout, result.stderr) == ("", expected)


def test_ctrl_c_during_import_prints_no_traceback():
    program = "from deeplab_tf.programs import commands; commands.train()"
    command = [sys.executable, "-c", program, "--train_logdir=l", "--dataset_dir=d"]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        # The library is mapped long before the import ends.
        maps = pathlib.Path(f"/proc/{process.pid}/maps")
        while "libtensorflow" not in maps.read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
        assert process.stderr.read() == ""
