"""Errors of diverged trainings name the weights, image or setting."""

import numpy as np
import pytest
import tensorflow as tf
from toy_model import toy_model

from deeplab_tf import TrainConfig, Trainer, UserError
from deeplab_tf.models.variables import official_variables
from deeplab_tf.training.divergence import explain_divergence, find_broken_images


def stream(count, broken=None, value=np.nan):
    """Returns batches of two images; image number `broken` gets an invalid pixel."""
    random = np.random.RandomState(0)
    images = random.uniform(0, 255, (2 * count, 33, 33, 3)).astype(np.float32)
    labels = random.randint(0, 5, (2 * count, 33, 33)).astype(np.uint8)
    if broken is not None:
        images[broken, 16, 16, 1] = value
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)


def describe_samples(first, count):
    return ", ".join(f"record {i}" for i in range(first, first + count))


def error_of(trainer, data, **names):
    """Returns the one-line error of a training."""
    with pytest.raises(UserError) as error:
        trainer.train(data, **names)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65536.0, 1e30])
def test_broken_images_are_found(value):
    images = np.full((4, 3, 3, 2), 65535.0, np.float32)
    images[2, 1, 0, 1] = value
    broken = tf.function(find_broken_images)(tf.constant(images))
    assert broken.numpy().tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("precision_policy", "options"),
    [
        ("float32", {"steps_per_call": 10}),
        pytest.param("float32", {"jit": "on"}, marks=pytest.mark.slow),
        ("float32", {"accumulate_steps": 2, "batch_norm": "freeze"}),
        ("mixed_float16", {"steps_per_call": 10}),
        ("mixed_bfloat16", {}),
    ],
)
def test_error_names_broken_image(precision_policy, options, precision):
    precision(precision_policy)
    trainer = Trainer(toy_model(), TrainConfig(training_number_of_steps=9, **options))
    # The second image of the third batch.
    message = error_of(trainer, stream(5, broken=5), describe_samples=describe_samples)
    step = trainer.step - (precision_policy != "mixed_float16")
    assert message.startswith(
        f"image 1 of the batch at step {step} (record 5) has pixels that are not finite"
    )
    assert trainer.samples == 6
    assert step == 2 or precision_policy == "mixed_float16"


def test_error_names_position_of_unnamed_image():
    trainer = Trainer(toy_model(), TrainConfig(training_number_of_steps=9))
    assert error_of(trainer, stream(2, broken=0, value=np.inf)) == (
        "image 0 of the batch at step 0 has pixels that are not finite or absurdly "
        "large; pixels must be 0..255; fix the code that produces the images"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"base_learning_rate": 1e25, "optimizer": "nesterov"},
        {"base_learning_rate": 1e25, "steps_per_call": 10},
        {"adam_learning_rate": 1e25, "optimizer": "adam"},
        {"slow_start_learning_rate": 1e25, "slow_start_step": 5},
    ],
)
def test_divergence_error_names_learning_rate(options):
    name = next(iter(options))
    options |= {"weight_decay": 0.5, "training_number_of_steps": 20}
    trainer = Trainer(toy_model(), TrainConfig(**options))
    message = error_of(trainer, stream(20), describe_samples=describe_samples)
    assert f"training diverged: lower {name}=1e+25 (learning rate " in message
    assert "lower weight_decay: 0.5 exceeds the usual 0.001" in message
    assert "record" not in message and "image" not in message
    assert f" at step {trainer.step - 1}" in message and "after" in message


def test_non_finite_initial_weights_are_refused(tmp_path):
    model = toy_model()
    checkpoint = {"tf_initial_checkpoint": "zoo/model.ckpt"}
    trainer = Trainer(model, TrainConfig(**checkpoint))
    weights = official_variables(model)["logits/weights"]
    weights.assign(np.full(weights.shape, np.nan))
    for start in (lambda: trainer.train(stream(2)), trainer.restore_latest):
        with pytest.raises(UserError) as error:
            start()
        assert str(error.value) == (
            "tf_initial_checkpoint=zoo/model.ckpt contains values that are not finite "
            "(first: logits/weights); start from a different checkpoint"
        )
    assert trainer.step == 0


@pytest.mark.parametrize(
    ("group", "name"),
    [("weights", "conv/biases"), ("slots", "conv/weights/Momentum")],
)
def test_non_finite_checkpoint_is_not_resumed(group, name, tmp_path):
    config = TrainConfig(train_logdir=str(tmp_path), training_number_of_steps=1)
    trainer = Trainer(toy_model(), config)
    broken = official_variables(trainer.model)["conv/biases"]
    if group == "slots":
        broken = trainer.optimizer.accumulators[0]
    broken.assign(np.full(broken.shape, np.inf))
    trainer._state._weights = {}  # otherwise it refuses to save
    prefix = trainer._state.save()
    resumed = Trainer(toy_model(), config)
    message = rf"^{prefix} contains values that are not finite \(first: {name}\)"
    with pytest.raises(UserError, match=message):
        resumed.restore_latest()


LOSSES = (2.31, 2.5, 80.0, 7e4, 1e9, 2e20, 4.1e30)


@pytest.mark.parametrize(
    ("options", "losses", "loss", "start", "is_float16", "message"),
    [
        (
            {"base_learning_rate": 0.5},
            *(LOSSES, np.nan, None, False),
            "the loss is nan at step 7, after growing from 2.31 to 4.1e+30 in 6 steps; "
            "training diverged: lower base_learning_rate=0.5 (learning rate 0.25 at "
            "this step)",
        ),
        (
            {"optimizer": "adam", "focal_gamma": 8},
            *((2.0, 1.0), 3.14159, None, False),
            "the gradients are not finite at step 7 (loss 3.14), after going from 2 to "
            "1 in 1 step; training diverged: lower adam_learning_rate=0.001 (learning "
            "rate 0.25 at this step); lower focal_gamma: 8 exceeds the usual 5",
        ),
        (
            {"slow_start_step": 8, "label_weights": (1, 1e8)},
            *((2.0,), np.inf, None, True),
            "the loss is inf at step 7, after a loss of 2; training diverged: lower "
            "slow_start_learning_rate=0.0001 (learning rate 0.25 at this step); lower "
            "label_weights: 1e+08 exceeds the usual 10; float16 may overflow: "
            "precision=bfloat16 does not",
        ),
        (
            {"momentum": 0.999, "last_layer_gradient_multiplier": 100},
            *((), np.inf, "logs/model.ckpt-7", False),
            "the loss is inf at step 7; lower last_layer_gradient_multiplier: 100 "
            "exceeds the usual 10; lower momentum: 0.999 exceeds the usual 0.99; no "
            "step has changed the weights yet, so check their source: "
            "logs/model.ckpt-7",
        ),
    ],
)
def test_explanation_names_the_cause_of_divergence(
    options, losses, loss, start, is_float16, message
):
    metrics = {"data_loss": float(loss), "learning_rate": 0.25}
    config = TrainConfig(**options)
    explanation = explain_divergence(config, 7, metrics, losses, start, is_float16)
    assert explanation == message
