"""Recomputation saves memory without changing results."""

import concurrent.futures
import functools
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from golden_case import value
from program_runs import run
from reference_heads import strided_backbone
from shallow_network import shallow_mobilenet_v2

from deeplab_tf.config import BACKBONES, ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models import backbones
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.recomputation import find_cuts, recompute_backbone
from deeplab_tf.models.variables import (
    batch_normalizations,
    dropout_seeds,
    official_variables,
)
from deeplab_tf.training.batch_norm import fused_batch_norm

HEADS = {
    "num_classes": 5,
    "context": ContextConfig(rates=(1, 2), filters=16),
    "decoder": DecoderConfig(filters=16),
}
CONFIG = ModelConfig(**HEADS)


def build_small(config):
    """Builds a model whose MobileNetV2 is shallow."""
    with shallow_mobilenet_v2():
        return build_model(config)


def fill(model, frozen=False):
    """Returns a model with golden weights and the trainer's batch normalisation."""
    for name, variable in official_variables(model).items():
        variable.assign(value(name, variable.shape))
    for layer in batch_normalizations(model):
        layer.normalize_batch = fused_batch_norm
        layer.frozen = frozen
    for i, seed in enumerate(dropout_seeds(model).values()):
        seed.assign([i, 7])
    return model


def images(batch=2, size=33):
    random = np.random.RandomState(0)
    return tf.constant(random.uniform(0, 255, (batch, size, size, 3)), tf.float32)


def run_step(model, network, training=True, **options):
    """Runs a step; returns logits, gradients and the variables after it.

    Options are passed to `tf.function`; without any the step runs eagerly.
    """
    sources = [v.value for v in model.trainable_variables]

    def step(x):
        with tf.GradientTape() as tape:
            logits = network(x, training=training)
            loss = tf.reduce_mean(tf.square(logits - 1.0))
        return logits, tape.gradient(loss, sources)

    logits, gradients = (tf.function(step, **options) if options else step)(images())
    return [
        logits.numpy(),
        *(x.numpy() for x in gradients),
        *(v.numpy() for v in model.variables),
    ]


def run_both(config=CONFIG, inner=lambda model: model, frozen=False, **options):
    """Returns the results of a step without and with recomputation."""
    model = build_small(config)
    return [
        run_step(fill(model, frozen), wrap(inner(model)), **options)
        for wrap in (lambda network: network, recompute_backbone)
    ]


def assert_same_step(*arguments, **options):
    """Asserts that recomputation is bit-exact; returns its results."""
    plain, recomputed = run_both(*arguments, **options)
    for a, b in zip(plain, recomputed, strict=True):
        np.testing.assert_array_equal(a, b)
    return recomputed


def assert_close(plain, recomputed):
    """Compares results up to sums that the graph optimiser may have reordered."""
    # The gradients of image-level pooling are rounding noise: two samples normalise
    # to +1 and -1.
    for a, b in zip(plain, recomputed, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 + 1e-5 * np.abs(a).max())


@functools.cache
def plain_model():
    """The model before a step."""
    return fill(build_small(CONFIG))


def changed_variables(after):
    """Returns the names of the variables that a step changed."""
    model = plain_model()
    values = after[-len(model.variables) :]
    pairs = zip(model.variables, values, strict=True)
    return {v.name for v, x in pairs if np.any(v.numpy() != x)}


def dense(units, name):
    return keras.layers.Dense(units, use_bias=False, name=name)


def test_cuts_minimize_peak_memory():
    # Nine equal layers: k segments keep k - 1 tensors and recompute 9 / k; the minimum
    # is 2 + 3 for k = 3.
    image = x = keras.Input((4, 4, 3))
    for i in range(9):
        x = dense(3, f"layer_{i}")(x)
    assert find_cuts(keras.Model(image, x)) == (3, 6, 9)


def test_cuts_avoid_wide_tensors():
    # 1 + 31 for a cut at the narrow tensor; any other cut keeps 10.
    image = x = keras.Input((4, 4, 1))
    for i, units in enumerate((10, 10, 10, 1, 10, 10, 10)):
        x = dense(units, f"layer_{i}")(x)
    assert find_cuts(keras.Model(image, x)) == (4, 7)


def test_cuts_are_allowed_inside_a_shortcut():
    # The source of the sum is kept in addition to the tensor at each cut.
    image = keras.Input((4, 4, 4))
    source = x = dense(1, "source")(image)
    for i in range(16):
        x = dense(4, f"layer_{i}")(x)
    x = dense(1, "last")(x)
    model = keras.Model(image, keras.layers.Add()([source, x]))
    inside = [cut for cut in find_cuts(model) if 1 < cut < 17]
    assert len(inside) >= 2


def test_step_is_bit_exact():
    after = assert_same_step()
    assert changed_variables(after) == {
        *("moving_mean", "moving_variance"),
        "seed_generator_state",
    }


def test_half_precision_step_is_bit_exact():
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        assert_same_step()
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def test_frozen_batch_norm_keeps_statistics():
    after = assert_same_step(frozen=True)
    assert changed_variables(after) == {"seed_generator_state"}


def test_inference_changes_no_variables():
    after = assert_same_step(training=False)
    assert changed_variables(after) == set()


def test_model_that_ends_at_logits_is_recomputed():
    def inner(model):
        return keras.Model(model.input, model.get_layer("logits").output)

    assert assert_same_step(inner=inner)[0].shape == (2, 9, 9, 5)


def test_image_pyramid_step_is_bit_exact():
    # Both scales update them in turn.
    config = ModelConfig(image_pyramid=(0.5, 1.0), **HEADS)
    assert_same_step(config)


def test_backbone_output_may_depend_directly_on_the_image(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "resnet_v1_18", strided_backbone)
    config = ModelConfig("resnet_v1_18", **HEADS)
    assert_same_step(config)


def noisy_backbone(image, output_stride, **_):
    """Returns the features of a backbone with dropout."""
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", name="first")(image)
    low = keras.layers.Dropout(0.5, name="noise")(x)
    for i in range(4):
        x = keras.layers.Add(name=f"sum_{i}")([x, low])
        x = keras.layers.Conv2D(8, 3, padding="same", name=f"layer_{i}")(x)
    x = keras.layers.Conv2D(8, 3, output_stride // 4, "same", name="last")(x)
    return {"high_level": x, 4: low}


def test_backbone_dropout_is_drawn_once(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "resnet_v1_18", noisy_backbone)
    config = ModelConfig("resnet_v1_18", **HEADS)
    # The gradients of `low` are summed in a different order.
    assert_close(*run_both(config))


def test_variables_and_layers_are_shared_with_model():
    model = fill(build_small(CONFIG))
    network = recompute_backbone(model)
    assert [id(v) for v in network.variables] == [id(v) for v in model.variables]
    assert model.get_layer("logits").output.shape == (None, None, None, 5)


def test_uninitialized_variables_of_other_models_are_unchanged():
    def refuse(*_, **__):
        raise AssertionError("a variable of another model was initialised")

    def recompute_next_to_waiting_variable():
        network = recompute_backbone(fill(build_small(CONFIG)))
        with keras.StatelessScope(initialize_variables=False):
            waiting = keras.layers.Dense(3, kernel_initializer=refuse)
            waiting.build((None, 2))
        network(images(), training=True)
        # The variable is initialised when the next scope ends.
        with (
            pytest.raises(AssertionError, match="another model"),
            keras.StatelessScope(),
        ):
            pass

    # A new thread has no uninitialised variables of other tests.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(recompute_next_to_waiting_variable).result()


def test_model_without_backbone_is_refused(color_model):
    with pytest.raises(UserError, match=r'nested model named "backbone", .* has none$'):
        recompute_backbone(color_model)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_is_cut_and_outputs_are_bit_exact(backbone):
    model = fill(build_model(ModelConfig(backbone, **HEADS)))
    assert len(find_cuts(model.get_layer("backbone"))) >= 4
    x = images()
    np.testing.assert_array_equal(recompute_backbone(model)(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_compiled_step_matches_without_recomputation(jit_compile, frozen):
    assert_close(*run_both(frozen=frozen, jit_compile=jit_compile))


def compare_steps_on_two_replicas():
    """Compares two steps of a mirrored model with and without recomputation."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, 2 * [tf.config.LogicalDeviceConfiguration()]
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = []
    for wrap in (lambda network: network, recompute_backbone):
        with strategy.scope():
            model = fill(build_small(CONFIG))
        assert len(model.trainable_variables[0].value.values) == 2
        network = wrap(model)
        sources = [v.value for v in model.trainable_variables]

        def step(x, network=network, sources=sources):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(network(x, training=True) - 1.0))
            return tape.gradient(loss, sources)

        def value_of(context):
            return images() + 10.0 * context.replica_id_in_sync_group

        x = strategy.experimental_distribute_values_from_function(value_of)
        gradients = tf.function(lambda x, step=step: strategy.run(step, (x,)))(x)
        results.append(
            [
                value.numpy()
                for x in (*gradients, *(v.value for v in model.variables))
                for value in strategy.experimental_local_results(x)
            ]
        )
    assert_close(*results)


def run_in_process(program, **environment):
    """Runs a program in a new process; returns its output."""
    paths = (str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "models"))
    process = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_recomputation_matches_on_two_replicas():
    run_in_process("import test_recomputation as t; t.compare_steps_on_two_replicas()")


JAX_PROGRAM = """
import sys

sys.modules["tensorflow"] = None  # so that importing it fails
import jax
import numpy as np
from golden_case import value

import deeplab_tf
from deeplab_tf.config import ContextConfig, DecoderConfig
from deeplab_tf.models.recomputation import recompute_backbone

model = deeplab_tf.build_model(
    deeplab_tf.ModelConfig(
        "mobilenet_v3_small_seg",
        num_classes=5,
        context=ContextConfig(rates=(1, 2), filters=16, dropout=0.0),
        decoder=DecoderConfig(filters=16),
    )
)
images = np.random.RandomState(0).uniform(0, 255, (2, 33, 33, 3)).astype("float32")
trainable = [v.value for v in model.trainable_variables]
state = [v.value for v in model.non_trainable_variables]
results = []
for network in (model, recompute_backbone(model)):

    def loss(trainable):
        logits, after = network.stateless_call(trainable, state, images, training=True)
        return ((logits - 1.0) ** 2).mean(), after

    results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable))
for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 + 1e-4 * np.abs(a).max())
assert "remat" in str(jax.make_jaxpr(lambda x: loss(x)[0])(trainable))
"""


@pytest.mark.slow
def test_recomputation_matches_on_jax():
    pytest.importorskip("jax")
    run_in_process(JAX_PROGRAM, KERAS_BACKEND="jax")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no ru_maxrss")
def test_recomputation_reduces_step_memory(tmp_path):
    path, case = tmp_path / "result.json", "xception_65:321:2"
    small = ("--recompute", f"--cases={case}", "--turns=1", "--steps=1")
    run("benchmarks.train_step", *small, f"--json={path}")
    rows = json.loads(path.read_text())["cases"][case]
    mebibytes = {row["name"]: row["mebibytes"] for row in rows}
    # About 1770 and 720 in addition to the model, without the full-size loss.
    assert mebibytes["recomputed"] < 0.6 * mebibytes["float32"]
