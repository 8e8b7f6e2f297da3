"""How the programs start TensorFlow."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

# TensorFlow has no public name for it.
SHOWS_ONEDNN = """
import deeplab_tf.programs
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
