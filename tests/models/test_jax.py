"""Models and losses on JAX, in a process without TensorFlow."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import deeplab_tf

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
def test_golden_cases_match_on_jax():
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
def test_loss_and_metric_match_on_jax():
    pytest.importorskip("jax")
    run_on_jax(KERAS_PROGRAM)


OPTIMIZER_PROGRAM = """
import sys

sys.modules["tensorflow"] = None
import keras
import numpy as np

import deeplab_tf
from deeplab_tf.models.normalization import BatchNormalization

images = np.random.RandomState(0).uniform(size=(4, 5, 6, 2)).astype("float32")
labels = np.argmax(images, -1)
model = keras.Sequential([keras.Input((5, 6, 2)), BatchNormalization(momentum=0.5)])
schedule = deeplab_tf.PolySchedule(0.1, 4, slow_start_steps=1)
rates = [float(schedule(step)) for step in range(5)]
expected = [1e-4, 0.1, 0.1 * (2 / 3) ** 0.9, 0.1 * (1 / 3) ** 0.9, 0.0]
np.testing.assert_allclose(rates, expected, rtol=1e-5)
optimizer = deeplab_tf.Momentum(0.1, nesterov=True, gradient_multipliers={"beta": 2.0})
model.compile(optimizer, deeplab_tf.SegmentationLoss())
losses = model.fit(images, labels, epochs=5, verbose=0).history["loss"]
assert losses[-1] < losses[0], losses
moving = np.array(model.layers[0].moving_mean.value)
# Half of the way to the mean in each step.
np.testing.assert_allclose(moving, images.mean((0, 1, 2)) * (1 - 0.5**5), rtol=1e-4)

weights = [keras.Variable([1.0], name=name) for name in ("gamma", "beta")]
optimizer = deeplab_tf.Momentum(0.1, nesterov=True, gradient_multipliers={"beta": 2.0})
for _ in range(2):
    optimizer.apply([keras.ops.ones(1)] * 2, weights)
# v = 1, w = 1 - 0.1 (1 + 0.9); v = 1.9, w = 0.81 - 0.1 (1 + 0.9 * 1.9)
found = [float(w.value[0]) for w in weights]
np.testing.assert_allclose(found, [0.539, 1 - 2 * 0.461], rtol=1e-5)
"""


def test_momentum_and_batch_norm_work_in_fit_on_jax():
    pytest.importorskip("jax")
    run_on_jax(OPTIMIZER_PROGRAM)


FIT_PROGRAM = """
import sys

import keras
import numpy as np
from shallow_network import shallow_mobilenet_v2

import deeplab_tf

folder, records = sys.argv[1:]
random = np.random.RandomState(0)
images = random.uniform(0, 255, (4, 33, 33, 3)).astype("float32")
labels = random.randint(0, 5, (4, 33, 33)).astype("uint8")
labels[:, :3] = 255
config = deeplab_tf.ModelConfig(
    num_classes=21,
    context=deeplab_tf.ContextConfig(rates=(1, 2), filters=8),
    decoder=deeplab_tf.DecoderConfig(output_strides=(4,), filters=8),
)
with shallow_mobilenet_v2():
    model = deeplab_tf.build_model(config)
model.set_weight_decay(1e-4)
schedule = deeplab_tf.PolySchedule(0.05, steps=40)
optimizer = deeplab_tf.Momentum(schedule, gradient_multipliers={"bias": 2.0})
metrics = [deeplab_tf.MeanIoU(21)]
model.compile(optimizer, deeplab_tf.SegmentationLoss(), metrics=metrics)
(before,) = [w for w in model.weights if w.path.endswith(".Conv.BatchNorm/moving_mean")]
start = np.array(before.value)
callback = deeplab_tf.PredictionImages(folder, images, max_images=1)
options = {"validation_data": (images, labels), "callbacks": [callback]}
model.fit(images, labels, batch_size=4, epochs=2, verbose=0, **options)
assert np.any(np.array(before.value) != start)


def repeat():
    while True:
        yield images, labels


losses = model.fit(repeat(), steps_per_epoch=2, epochs=4, shuffle=False, verbose=0)
assert losses.history["loss"][-1] < losses.history["loss"][0]
data = deeplab_tf.DataConfig(records, crop_size=(33, 33), batch_size=2)
train = deeplab_tf.load_dataset(data, "train", training=True)
model.fit(train, steps_per_epoch=2, epochs=1, verbose=0)
scores = model.evaluate(images, labels, batch_size=4, verbose=0)
config = deeplab_tf.EvalConfig(eval_scales=(0.75, 1.0), add_flipped_images=True)
pairs = [(images[:2], labels[:2, ..., None])]
confusion = deeplab_tf.evaluate(model, pairs, config)["confusion_matrix"]
windows = model.predict_labels(images[0], window=(25, 25))
model.save(folder + "/model.keras")
np.savez(folder + "/model.npz", images=images, labels=labels, scores=scores)
np.savez(folder + "/protocol.npz", confusion=confusion, windows=windows)
np.save(folder + "/logits.npy", np.array(model(images)))
"""


@pytest.mark.slow
def test_model_trained_on_jax_continues_on_tensorflow(tiny_records, tmp_path):
    pytest.importorskip("jax")
    run_on_jax(FIT_PROGRAM, str(tmp_path), tiny_records)
    model = keras.saving.load_model(tmp_path / "model.keras")
    data = np.load(tmp_path / "model.npz")
    expected = np.load(tmp_path / "logits.npy")
    logits = model(data["images"]).numpy()
    assert np.abs(logits - expected).max() < 1e-5 * expected.std()
    assert model.optimizer.iterations == 12
    protocol = np.load(tmp_path / "protocol.npz")
    config = deeplab_tf.EvalConfig(eval_scales=(0.75, 1.0), add_flipped_images=True)
    pairs = [(data["images"][:2], data["labels"][:2, ..., None])]
    confusion = deeplab_tf.evaluate(model, pairs, config)["confusion_matrix"]
    moved = np.abs(np.subtract(confusion, protocol["confusion"])).sum() / 2
    assert moved <= 0.001 * np.sum(confusion)
    windows = model.predict_labels(data["images"][0], window=(25, 25))
    assert np.mean(windows == protocol["windows"]) > 0.999
    model.run_eagerly = True
    scores = model.evaluate(data["images"], data["labels"], 4, verbose=0)
    np.testing.assert_allclose(scores, data["scores"], rtol=1e-4)
    history = model.fit(data["images"], data["labels"], verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert model.optimizer.iterations == 13
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
