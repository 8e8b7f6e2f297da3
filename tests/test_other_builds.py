"""The package works next to tensorflow-cpu and opencv-python."""

import os
import re
import subprocess
import sys

import pytest
import wheels
from conftest import ROOT

pytestmark = pytest.mark.slow
INSTALLED = "tensorflow-cpu", "opencv-python"
COPIES = "tensorflow", "opencv-python-headless"
# Uses TensorFlow and OpenCV.
SCRIPT = """
import numpy as np, deeplab_tf
from deeplab_tf.convert import shapes, voc2012
shapes.write("shapes", 2, 1, 1)
voc2012.convert("shapes", "tfrecord")
model = deeplab_tf.build_model(deeplab_tf.ModelConfig("mobilenet_v2"))
labels = deeplab_tf.predict_labels(model, np.zeros((65, 65, 3), np.uint8))
print("package", deeplab_tf.__file__, "labels", labels.shape)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs a shell command in a copy of the checkout.

    Its Python has the other builds and nothing else.
    """
    folder = tmp_path_factory.mktemp("other")
    sdist = wheels.build_sdist(folder / "sdist")
    checkout = wheels.unpack(sdist, folder / "unpacked")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    variables["PATH"] = f"{folder}/venv/bin{os.pathsep}{variables['PATH']}"

    def run_shell(command):
        command = ["bash", "-euc", command]
        return subprocess.run(
            command, cwd=checkout, env=variables, capture_output=True, text=True
        )

    constraints = (ROOT / "constraints.txt").read_text()
    pins = [re.search(f"^{name}(==.*)", constraints, re.M)[1] for name in COPIES]
    requirements = " ".join(map("".join, zip(INSTALLED, pins, strict=True)))
    result = run_shell(f"pip install -q -c constraints.txt {requirements}")
    if result.returncode:
        pytest.skip(f"needs a package index: {result.stderr.splitlines()[-1]}")
    return run_shell


def find_packages(run):
    names = re.findall(r"^([\w-]+)==", run("pip list --format=freeze").stdout, re.M)
    return {name.replace("_", "-").lower() for name in names}


def assert_works(run):
    result = run(f"cd $(mktemp -d -p ..) && python -c '{SCRIPT}'")
    assert "labels (65, 65)" in result.stdout, result.stderr
    assert "site-packages" in result.stdout


def test_documented_commands_add_no_copies(run):
    page = (ROOT / "docs/index.md").read_text()
    block = re.search("```text\n(pip install --no-deps.*?)```", page, re.S)[1]
    result = run(block)
    assert result.returncode == 0, result.stderr
    packages = find_packages(run)
    assert packages >= {*INSTALLED, "keras", "tensorflow-datasets", "deeplab-tf"}
    assert not packages & set(COPIES)
    assert_works(run)
    # The plain command adds the copies; the package works with both.
    result = run("pip install -q -c constraints.txt .")
    assert result.returncode == 0, result.stderr
    assert find_packages(run) >= {*INSTALLED, *COPIES}
    assert_works(run)
