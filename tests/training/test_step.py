"""Options of a training step: accumulation, mining, averages, half precision."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import value
from shallow_network import shallow_mobilenet_v2
from toy_model import toy_model

from deeplab_tf import (
    ContextConfig,
    DecoderConfig,
    ModelConfig,
    TrainConfig,
    Trainer,
    UserError,
    build_model,
    load_tf1_variables,
    tf1_variables,
)
from deeplab_tf.models.resampling import resize_bilinear
from deeplab_tf.models.variables import dropout_seeds, official_variables
from deeplab_tf.training import distribution
from deeplab_tf.training.averages import MovingAverages
from deeplab_tf.training.batch_norm import set_batch_norm
from deeplab_tf.training.half_precision import LossScale
from deeplab_tf.training.losses import segmentation_loss, shrink_labels
from deeplab_tf.training.optimizer import build_optimizer, make_optimizer
from deeplab_tf.training.step import TrainStep, training_outputs

NARROW = ModelConfig(
    num_classes=5,
    depth_multiplier=0.1,
    context=ContextConfig(rates=(), filters=16, dropout=0.0),
    decoder=DecoderConfig(output_strides=()),
)
DROPPING = dataclasses.replace(
    NARROW, context=dataclasses.replace(NARROW.context, dropout=0.5)
)
FROZEN = {"batch_norm": "freeze", "base_learning_rate": 0.1}
WEIGHTS = (1.0, 0.0, 2.0, 0.5, 3.0)


def filled_model(config=NARROW, **sizes):
    """Returns a model in which every weight affects the output, with fixed dropout."""
    with shallow_mobilenet_v2():
        model = build_model(config, **sizes)
    shapes = {name: a.shape for name, a in tf1_variables(model).items()}
    load_tf1_variables(model, {name: value(name, s) for name, s in shapes.items()})
    for seed in dropout_seeds(model).values():
        seed.assign([0, 7])
    return model


def batch(count=8):
    """Returns a batch; of eight images two have no labels and three have some."""
    random = np.random.RandomState(0)
    images = random.uniform(0, 255, (count, 33, 33, 3)).astype("float32")
    labels = np.kron(random.randint(0, 5, (count, 11, 11)), np.ones((1, 3, 3), int))
    labels[1:2, 10:] = 255
    labels[4:6] = 255
    labels[6:, :, :30] = 255
    return images, labels.astype(np.uint8)


def repeat_batch(count, images=2):
    """Returns a dataset that repeats one batch."""
    return tf.data.Dataset.from_tensors(batch(images)).repeat(count)


def make_step(model, parts=1, **options):
    """Returns the training step of a model with frozen batch normalisation."""
    config = TrainConfig(accumulate_steps=parts, **{**FROZEN, **options})
    set_batch_norm(model, config.normalization, 1)
    trainable = {n: v for n, v in official_variables(model).items() if v.trainable}
    optimizer = make_optimizer(config)
    build_optimizer(optimizer, trainable, config)
    return TrainStep(
        model,
        config,
        training_outputs(model),
        optimizer,
        MovingAverages(model, 0.0),
    )


def train_steps(model, count=2, images=8, **options):
    """Trains some steps; returns the trainer and the metrics of each step."""
    trainer = Trainer(model, TrainConfig(**options))
    results = [trainer.train_step(*batch(images)) for _ in range(count)]
    return trainer, results


def assert_close(ones, others, rtol=1e-5, atol=1e-6):
    for name, array in ones.items():
        np.testing.assert_allclose(
            array, others[name], rtol=rtol, atol=atol, err_msg=name
        )


# ---- Class counts


@pytest.mark.parametrize("upsample", [True, False])
def test_classes_are_counted_at_logits_resolution(upsample):
    images, labels = batch()
    model = toy_model()
    _, metrics = make_step(model, upsample_logits=upsample).compute_gradients(
        images, labels
    )
    logits = model.get_layer("logits").output
    logits = keras.Model(model.input, logits)(images).numpy()
    height, width = logits.shape[1:3]
    # Aligned corners: labels at every stride.
    truth = labels[:, :: 32 // (height - 1), :: 32 // (width - 1)]
    predicted = logits.argmax(-1)
    expected = [
        [np.sum((predicted == c) & (truth != 255)) for c in range(5)],
        [np.sum(truth == c) for c in range(5)],
        [np.sum((predicted == c) & (truth == c)) for c in range(5)],
    ]
    assert len(set(predicted.flat)) > 1
    np.testing.assert_array_equal(metrics["classes"], expected)


# ---- Accumulation


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_weights": WEIGHTS},
        {"upsample_logits": False, "focal_gamma": 2.0},
        {"relaxed_border": 1},
    ],
)
def test_accumulated_gradients_equal_full_batch(options):
    images, labels = batch()
    counts = np.sum(labels.reshape(4, -1) != 255, axis=1)
    assert len(set(counts)) == 4
    assert not counts[2]
    step, in_parts = (make_step(toy_model(), n, **options) for n in (1, 4))
    full, metrics = step.compute_gradients(images, labels)
    parts, metrics_of_parts = in_parts.compute_gradients(images, labels)
    for name, expected in metrics.items():
        np.testing.assert_allclose(metrics_of_parts[name], expected, rtol=1e-5)
    largest = max(float(tf.reduce_max(tf.abs(g))) for g in full)
    for one, other in zip(parts, full, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * largest)


def test_accumulated_training_equals_full_batch():
    full, results = train_steps(toy_model(), **FROZEN)
    parts, of_parts = train_steps(toy_model(), accumulate_steps=4, **FROZEN)
    for one, other in zip(of_parts, results, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert results[0]["data_loss"] > 1.005 * results[1]["data_loss"]
    assert_close(tf1_variables(parts.model), tf1_variables(full.model))
    assert (parts.step, parts.samples) == (2, 16)


def entropies(model, images, labels, weights=()):
    """Returns the weighted cross-entropy of each pixel, 0 if it has no label."""
    logits = model(images).numpy()
    logits -= logits.max(-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    known = labels != 255
    safe = np.where(known, labels, 0)
    factors = np.array(weights or 5 * [1.0])[safe] * known
    return -np.take_along_axis(logs, safe[..., None].astype(int), -1)[..., 0] * factors


@pytest.mark.parametrize(
    ("parts", "ramp", "share", "weights"),
    [
        (1, 0, 0.25, ()),
        (4, 0, 0.25, ()),
        (4, 0, 0.25, WEIGHTS),
        (4, 10, 0.625, ()),  # at step 5 of 10 halfway from 1 to 0.25
    ],
)
def test_hard_pixels_are_selected_per_accumulation_part(parts, ramp, share, weights):
    images, labels = batch()
    model = toy_model()
    step = make_step(
        model,
        parts,
        top_k_percent_pixels=0.25,
        hard_example_mining_step=ramp,
        label_weights=weights,
    )
    step._optimizer.iterations.assign(5)
    _, metrics = step.compute_gradients(images, labels)
    # The mean over the parts, each divided by its hard pixels with a loss.
    expected = 0.0
    for row in entropies(model, images, labels, weights).reshape(parts, -1):
        hardest = np.sort(row)[::-1][: int(share * row.size)]
        expected += hardest.sum() / max(np.sum(hardest > 0), 1) / parts
    assert float(metrics["data_loss"]) == pytest.approx(expected, rel=1e-5)


# ---- Moving average of weights


def assert_averaged(trainer, expected):
    """Asserts that the model has the averages only inside `averaged_weights`."""
    own = tf1_variables(trainer.model)
    with trainer.averaged_weights():
        assert_close(tf1_variables(trainer.model), expected)
    with pytest.raises(KeyError), trainer.averaged_weights():
        raise KeyError
    for name, array in tf1_variables(trainer.model).items():
        np.testing.assert_array_equal(array, own[name])


def test_averages_follow_weights_and_are_restored(tmp_path, eager_execution):
    options = {
        "ema_decay": 0.75,
        "base_learning_rate": 0.1,
        "train_logdir": str(tmp_path),
    }
    trainer = Trainer(toy_model(), TrainConfig(**options))
    # Averages start from the weights at the start of the training.
    others = {n: 1.5 * a for n, a in tf1_variables(trainer.model).items()}
    load_tf1_variables(trainer.model, others)
    assert trainer.restore_latest() is None
    averages = before = tf1_variables(trainer.model)
    for _ in range(3):
        trainer.train_step(*batch(4))
        after = tf1_variables(trainer.model)
        averages = {n: 0.75 * a + 0.25 * after[n] for n, a in averages.items()}
    moved = [n for n, a in before.items() if not np.array_equal(a, after[n])]
    assert any("moving_variance" in name for name in moved)
    assert any(name.endswith("/weights") for name in moved)
    assert_averaged(trainer, averages)
    config = TrainConfig(training_number_of_steps=4, **options)
    trainer = Trainer(trainer.model, config)
    trainer.train(repeat_batch(4))
    with trainer.averaged_weights():
        expected = tf1_variables(trainer.model)
    restored = Trainer(toy_model(), config)
    assert restored.restore_latest() == str(tmp_path / "model.ckpt-4")
    assert_averaged(restored, expected)


def test_average_of_constant_weights_is_constant(eager_execution):
    trainer, _ = train_steps(toy_model(), count=3, ema_decay=0.9999, **FROZEN)
    before = tf1_variables(toy_model())
    with trainer.averaged_weights():
        for name, array in tf1_variables(trainer.model).items():
            kept = np.array_equal(array, before[name])
            assert kept == name.endswith(("moving_mean", "moving_variance")), name


def test_averaged_weights_without_ema_equal_weights(eager_execution):
    trainer, _ = train_steps(toy_model(), **FROZEN)
    assert_averaged(trainer, tf1_variables(trainer.model))


# ---- Image pyramids


@pytest.mark.parametrize(
    ("upsample", "scales", "cells"),
    [(True, (0.5, 1.0), 3), (False, (1.0, 2.0), 5)],
)
def test_each_pyramid_scale_has_a_loss(upsample, scales, cells):
    images, labels = batch(2)
    single = filled_model()
    logits = keras.Model(single.input, single.get_layer("logits").output)
    predictions = []
    for scale in scales:
        side = int(32 * scale) + 1
        at_scale = logits(resize_bilinear(tf.constant(images), (side, side)))
        predictions.append(resize_bilinear(at_scale, (cells, cells)))
    predictions.append(tf.maximum(*predictions))
    if upsample:
        predictions = [resize_bilinear(x, (33, 33)) for x in predictions]
    truth = labels if upsample else shrink_labels(labels, (cells, cells))
    expected = sum(float(segmentation_loss(truth, x)) for x in predictions)
    pyramid = filled_model(dataclasses.replace(NARROW, image_pyramid=scales))
    step = make_step(pyramid, upsample_logits=upsample)
    _, metrics = step.compute_gradients(images, labels)
    assert float(metrics["data_loss"]) == pytest.approx(expected, rel=1e-5)
    assert expected > 2.5 * float(segmentation_loss(truth, predictions[-1]))


# ---- AdamW


def test_adamw_has_no_l2_loss():
    images, labels = batch(2)
    step = make_step(toy_model(), optimizer="adamw", weight_decay=0.1)
    gradients, metrics = step.compute_gradients(images, np.full_like(labels, 255))
    assert metrics["regularization_loss"] == 0.0
    assert not any(np.any(gradient) for gradient in gradients)
    # Other optimisers have both.
    step = make_step(toy_model(), weight_decay=0.1)
    gradients, metrics = step.compute_gradients(images, np.full_like(labels, 255))
    assert metrics["regularization_loss"] > 0.0
    assert any(np.any(gradient) for gradient in gradients)


# ---- Half precision


def test_loss_scale_is_removed_from_gradients():
    images, labels = batch(2)
    step = make_step(toy_model(), 2, weight_decay=0.1)
    gradients, metrics = step.compute_gradients(images, labels)
    scaled, metrics_of_scaled = step.compute_gradients(
        images, labels, tf.constant(1024.0)
    )
    assert float(metrics_of_scaled["data_loss"]) == float(metrics["data_loss"])
    for one, other in zip(scaled, gradients, strict=True):
        # Scaling by a power of two is exact.
        np.testing.assert_array_equal(one, other)


def compute_named_gradients(loss_scale=None):
    step = make_step(filled_model())
    found, _ = step.compute_gradients(*batch(2), loss_scale)
    return {n: np.ravel(g) for n, g in zip(step._trained, found, strict=True)}


@pytest.fixture(scope="module")
def float32_gradients():
    """The gradients in float32 by name."""
    return compute_named_gradients()


@pytest.mark.parametrize(
    ("policy", "loss_scale", "tolerance"),
    [("mixed_float16", 2.0**15, 0.005), ("mixed_bfloat16", None, 0.05)],
)
def test_half_precision_gradients_approximate_float32(
    policy, loss_scale, tolerance, float32_gradients, precision
):
    precision(policy)
    half = compute_named_gradients(loss_scale)
    for name, gradient in float32_gradients.items():
        if name.startswith(("concat_projection", "logits")):
            error = np.linalg.norm(half[name] - gradient)
            assert error < tolerance * np.linalg.norm(gradient), name
    # In lower layers weights rounded to three digits switch ReLUs, which changes the
    # gradient by 18% in float32, too.
    one, other = (np.concatenate(list(x.values())) for x in (float32_gradients, half))
    assert np.linalg.norm(other - one) < 0.4 * np.linalg.norm(one)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_training_learns(policy, precision):
    precision(policy)
    config = TrainConfig(base_learning_rate=0.02, training_number_of_steps=20)
    trainer = Trainer(filled_model(DROPPING), config)
    images, labels = batch()
    labels = np.where(labels == 255, 255, 3)  # a single class is quick to learn
    losses = [trainer.train_step(images, labels)["data_loss"] for _ in range(20)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    # float16 skips a few steps at the start, until the scale fits.
    assert 14 <= trainer.step <= 20
    assert trainer.samples == 160
    arrays = tf1_variables(trainer.model).values()
    assert all(np.isfinite(array).all() for array in arrays)


def read_state(trainer):
    """Returns weights, slots and averages by name."""
    slots = {f"slot {i}": v.numpy() for i, v in enumerate(trainer.optimizer.variables)}
    averages = {
        f"average {n}": v.numpy() for n, v in trainer._averages.variables.items()
    }
    return tf1_variables(trainer.model) | slots | averages


def test_non_finite_gradients_at_loss_scale_one_stop_training(precision):
    precision("mixed_float16")
    weights = {"label_weights": (1e8,) * 5, "batch_norm": "freeze"}
    trainer = Trainer(toy_model(), TrainConfig(steps_per_call=10, **weights))
    message = (
        "^the gradients are not finite at step 0 .* label_weights: 1e.08 exceeds the "
        "usual 10; float16 may overflow: precision=bfloat16 does not; no step has "
        "changed the weights yet, so check their source: the model$"
    )
    with pytest.raises(UserError, match=message):
        trainer.train(repeat_batch(100))
    # Before, each step halves the scale until it is 1.
    assert (trainer.step, trainer.samples) == (0, 2 * 16)


def test_overflowing_step_is_skipped(precision):
    precision("mixed_float16")
    trainer, _ = train_steps(toy_model(), count=1, images=2, ema_decay=0.5, **FROZEN)
    scale = trainer._half.scale.variables["scale"]
    assert scale.numpy() == 2.0**15
    scale.assign(2.0**120)
    before = read_state(trainer)
    result = trainer.train_step(*batch(2))
    assert np.isfinite(result["data_loss"])
    for name, array in read_state(trainer).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert scale.numpy() == 2.0**119
    assert (trainer.step, trainer.samples) == (1, 4)
    scale.assign(2.0**15)
    trainer.train_step(*batch(2))
    same = [n for n, a in read_state(trainer).items() if np.array_equal(a, before[n])]
    assert all("moving" in name for name in same)
    assert trainer.step == 2


def test_loss_scale_doubles_after_two_thousand_steps():
    scale, done = LossScale(), tf.Variable(0)
    compiled = tf.function(scale.update)

    def update(is_finite):
        compiled(tf.constant(is_finite), lambda: done.assign_add(1))
        return [int(variable.numpy()) for variable in scale.variables.values()]

    assert update(True) == [2**15, 1]
    scale.variables["steps"].assign(1998)
    assert update(True) == [2**15, 1999]
    assert update(True) == [2**16, 0]
    assert update(True) == [2**16, 1]
    assert done.numpy() == 4
    assert update(False) == [2**15, 0]
    assert update(False) == [2**14, 0]
    assert done.numpy() == 4
    scale.variables["scale"].assign(1.0)
    assert update(False) == [1, 0]


def test_loss_scale_is_saved(precision, tmp_path):
    precision("mixed_float16")
    config = TrainConfig(training_number_of_steps=3, train_logdir=str(tmp_path))
    trainer = Trainer(toy_model(), config)
    trainer._half.scale.variables["scale"].assign(2.0**10)
    trainer.train(repeat_batch(3))
    restored = Trainer(toy_model(), config)
    assert restored.restore_latest()
    found = {n: float(v.numpy()) for n, v in restored._half.scale.variables.items()}
    assert found == {"scale": 2.0**10, "steps": 3.0}


def test_skipped_steps_are_not_saved(precision, tmp_path):
    precision("mixed_float16")
    config = TrainConfig(
        training_number_of_steps=2, save_interval_steps=1, train_logdir=str(tmp_path)
    )
    trainer = Trainer(toy_model(), config)
    trainer._half.scale.variables["scale"].assign(2.0**120)
    with pytest.raises(UserError, match="dataset ended after 0 steps"):
        trainer.train(repeat_batch(1))
    assert trainer.samples == 2
    assert not list(tmp_path.glob("model.ckpt-*"))
    trainer._half.scale.variables["scale"].assign(2.0**10)
    trainer.train(repeat_batch(2))
    assert {path.stem for path in tmp_path.glob("*.index")} == {
        "model.ckpt-1",
        "model.ckpt-2",
    }


# ---- Recomputation


@pytest.mark.slow
def test_recomputation_changes_no_result(eager_execution):
    options = {"base_learning_rate": 0.1, "ema_decay": 0.5}
    plain, results = train_steps(filled_model(DROPPING), 3, 2, **options)
    recomputed, of_recomputed = train_steps(
        filled_model(DROPPING), 3, 2, recompute=True, **options
    )
    for one, other in zip(of_recomputed, results, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert len({result["data_loss"] for result in results}) == 3
    assert_close(read_state(recomputed), read_state(plain), rtol=1e-4, atol=1e-5)
    seeds = [dropout_seeds(t.model).values() for t in (plain, recomputed)]
    for one, other in zip(*seeds, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- XLA


@pytest.mark.parametrize(
    ("jit", "gpu", "uses_matmul"),
    [("off", False, True), ("on", False, False), ("off", True, False)],
)
def test_pointwise_convolutions_are_matmuls_on_cpu(jit, gpu, uses_matmul, monkeypatch):
    monkeypatch.setattr(distribution, "has_gpu", lambda: gpu)
    model = toy_model()
    trainer = Trainer(model, TrainConfig(jit=jit, **FROZEN))
    shapes = tf.TensorSpec((2, 33, 33, 3)), tf.TensorSpec((2, 33, 33), tf.uint8)
    step = trainer._step if trainer.compiles else tf.function(trainer._step)
    graph = step.get_concrete_function(*shapes).graph
    operations = [op.type for op in graph.get_operations()]
    kinds = ("Conv2D", "Conv2DBackpropFilter")
    found = [operations.count(kind) for kind in kinds]
    count = len([n for n in official_variables(model) if n.endswith("/weights")])
    # All convolutions but the first are pointwise.
    assert found == ([1, 1] if uses_matmul else [count, count])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"recompute": True},
        {"accumulate_steps": 2, "ema_decay": 0.5, "optimizer": "adamw"},
        {"top_k_percent_pixels": 0.5, "hard_example_mining_step": 2},
    ],
)
def test_compiled_training_equals_plain_training(options):
    options = {**FROZEN, "adam_epsilon": 0.1, **options}
    plain, results = train_steps(filled_model(), 3, 4, jit="off", **options)
    compiled, of_compiled = train_steps(filled_model(), 3, 4, jit="on", **options)
    assert compiled.compiles
    assert not plain.compiles
    for one, other in zip(of_compiled, results, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert_close(read_state(compiled), read_state(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "xception_65"])
def test_full_step_compiles(backbone, policy, precision):
    precision(policy)
    strides = {"output_strides": (4,)}
    config = ModelConfig(backbone, decoder=DecoderConfig(**strides))
    model = build_model(config, image_size=(65, 65), batch_size=2)
    trainer = Trainer(model, TrainConfig(jit="on"))
    shapes = tf.TensorSpec((2, 65, 65, 3)), tf.TensorSpec((2, 65, 65), tf.uint8)
    compiled = trainer._step.experimental_get_compiler_ir(*shapes)
    text = compiled(stage="optimized_hlo")
    assert "ENTRY" in text
    assert ("bf16[" in text) == (policy == "mixed_bfloat16")


# ---- End of data


def test_step_without_data_changes_nothing():
    config = TrainConfig(training_number_of_steps=9, steps_per_call=5)
    trainer = Trainer(toy_model(dropout=0.5), config)

    def read_everything():
        seeds = {n: v.numpy() for n, v in dropout_seeds(trainer.model).items()}
        return read_state(trainer) | seeds | {"samples": trainer.samples}

    trainer.train_step(*batch(2))
    before = read_everything()
    assert {"dropout", "bn/moving_mean"} <= set(before)
    with pytest.raises(UserError, match="dataset ended after 1 step;"):
        trainer.train(repeat_batch(0))
    for name, array in read_everything().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    # Steps of a call that had data were trained and are counted.
    with pytest.raises(UserError, match="dataset ended after 3 steps"):
        trainer.train(repeat_batch(2))
    assert (trainer.step, trainer.samples) == (3, 6)
