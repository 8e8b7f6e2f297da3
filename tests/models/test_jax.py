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


def run_on_jax(program, *arguments):
    """Runs a program in a new process; returns its output."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_golden_cases_on_jax():
    pytest.importorskip("jax")
    results = json.loads(run_on_jax(PROGRAM, *CASES).splitlines()[-1])
    assert set(results) == set(CASES)
    for name, result in results.items():
        assert result["complete"], name
        assert result["error"] <= 5e-5, name
        assert result["labels"] >= 0.999, name
        # The loss of the predicted labels.
        np.testing.assert_allclose(result["loss"], result["cross_entropy"], rtol=1e-3)


KERAS_PROGRAM = """
import sys, warnings

sys.modules["tensorflow"] = None
warnings.simplefilter("error")
import jax
import keras
import numpy as np
import pytest

import deeplab_tf

random = np.random.RandomState(0)
labels = random.choice([0, 1, 2, 255], (2, 4, 5))
logits = random.normal(size=(2, 4, 5, 3)).astype("float32")
weights = random.uniform(size=(2, 4, 5)).astype("float32")
invalid = labels.copy()
invalid[1, 2, 3] = 7

loss = deeplab_tf.SegmentationLoss()
expected = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255)
for weight in (None, weights):
    value = expected(labels, logits, weight)
    for function in (loss, jax.jit(loss)):
        np.testing.assert_allclose(function(labels, logits, weight), value, rtol=1e-6)
mined = deeplab_tf.SegmentationLoss(share=0.4)
np.testing.assert_allclose(jax.jit(mined)(labels, logits), mined(labels, logits), 1e-6)

metric = deeplab_tf.MeanIoU(3)
start = [v.value for v in metric.variables]
update = jax.jit(metric.stateless_update_state)
for weight in (None, weights):
    reference = keras.metrics.MeanIoU(3, ignore_class=255, dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras casts to int64
        reference.update_state(labels, logits.argmax(-1), weight)
    state = update(start, labels, logits, weight)
    value = metric.stateless_result(state)
    np.testing.assert_allclose(value, reference.result(), rtol=1e-6)
full = [jax.numpy.full((3, 3), 2**31 - 1, "int32"), start[1]]
assert np.isnan(metric.stateless_result(update(full, labels, logits)))

with pytest.raises(deeplab_tf.UserError, match="labels contain 7"):
    loss(invalid, logits)
gradient = jax.jit(jax.grad(lambda logits: loss(invalid, logits)))
for run in (lambda: gradient(logits), lambda: update(start, invalid, logits)):
    with pytest.raises(jax.errors.JaxRuntimeError, match="labels contain 7"):
        jax.block_until_ready(run())
        jax.effects_barrier()

model = keras.Sequential([keras.Input((4, 5, 3)), keras.layers.Conv2D(3, 1)])
model.compile("sgd", loss, metrics=[metric], weighted_metrics=[deeplab_tf.MeanIoU(3)])
scores = model.fit(logits, labels, sample_weight=weights, verbose=0).history
assert np.isfinite(list(scores.values())).all() and len(scores) == 3, scores
with pytest.raises(jax.errors.JaxRuntimeError, match="labels contain 7"):
    model.fit(logits, invalid, verbose=0)
"""


@pytest.mark.slow
def test_loss_and_metric_on_jax():
    pytest.importorskip("jax")
    run_on_jax(KERAS_PROGRAM)
