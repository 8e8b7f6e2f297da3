"""Models and losses on JAX, in a process without TensorFlow."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

PROGRAM = """
import json, sys

sys.modules["tensorflow"] = None  # so that importing it fails
import keras
import numpy as np
from golden_case import GoldenCase

import deeplab_tf
from deeplab_tf.training.losses import segmentation_loss

assert keras.backend.backend() == "jax"
results = {}
for name in sys.argv[1:]:
    case = GoldenCase.load(name)
    config = deeplab_tf.ModelConfig.from_official_flags(case.flags)
    model = deeplab_tf.build_model(config)
    report = deeplab_tf.load_tf1_variables(model, case.weights())
    outputs = [model.get_layer("logits").output, model.output]
    logits, output = map(np.array, keras.Model(model.input, outputs)(case.images()))
    golden, labels = case.arrays["logits"], case.arrays["labels"]
    results[name] = {
        "complete": report.complete,
        "error": float(np.abs(logits - golden).max() / golden.std()),
        "labels": float(np.mean(output.argmax(-1) == labels)),
        "loss": float(segmentation_loss(labels, output)),
        "cross_entropy": float(
            np.mean(np.logaddexp.reduce(output, -1) - output.max(-1))
        ),
    }
print(json.dumps(results))
"""
CASES = (
    "mobilenet_v3_large_seg_lraspp",
    "mobilenet_v2_image_pyramid_avg",
    "resnet_v1_50_beta_os8_v3",
    "xception_65_os16_decoder",
)


@pytest.mark.slow
def test_golden_cases_on_jax():
    pytest.importorskip("jax")
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *CASES],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout.splitlines()[-1])
    assert set(results) == set(CASES)
    for name, result in results.items():
        assert result["complete"], name
        assert result["error"] <= 5e-5, name
        assert result["labels"] >= 0.999, name
        # The loss of the predicted labels.
        np.testing.assert_allclose(result["loss"], result["cross_entropy"], rtol=1e-3)
