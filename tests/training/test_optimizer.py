"""Learning rates, optimisers and gradient multipliers, computed by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf import Momentum, TrainConfig, UserError
from deeplab_tf.training.optimizer import (
    build_optimizer,
    gradient_multiplier,
    learning_rate_schedule,
    make_optimizer,
    slot_variables,
)


def rate_at(step, **options):
    return float(learning_rate_schedule(TrainConfig(**options))(step))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.1),
        (5, 0.1 * 0.5358867),  # 0.5 ** 0.9
        (9, 0.1 * 0.1258925),  # 0.1 ** 0.9
        (10, 0.0),
        (15, 0.0),
    ],
)
def test_poly_policy_matches_formula(step, expected):
    options = {"base_learning_rate": 0.1, "training_number_of_steps": 10}
    assert rate_at(step, **options) == pytest.approx(expected, rel=1e-5)


def test_poly_policy_applies_end_rate_power_and_decay_steps():
    options = {
        "base_learning_rate": 0.1,
        "end_learning_rate": 0.02,
        "learning_power": 2.0,
        "decay_steps": 4,
    }
    # (0.1 - 0.02) * (1 - 1 / 4) ** 2 + 0.02 = 0.065
    assert rate_at(1, **options) == pytest.approx(0.065)
    assert rate_at(4, **options) == rate_at(400, **options) == pytest.approx(0.02)


def test_poly_policy_takes_fractions_of_decay_steps():
    # TF1's polynomial_decay with decay_steps=2.5: 0.1 * (1 - 1 / 2.5) ** 0.9
    options = {"base_learning_rate": 0.1, "decay_steps": 2.5, "slow_start_step": 3}
    assert rate_at(4, **options) == pytest.approx(0.1 * 0.6314459, rel=1e-5)
    assert rate_at(6, **options) == 0.0


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.3), (3, 0.3), (4, 0.1), (7, 0.1 * 0.5358867), (10, 0.0)],
)
def test_policy_starts_after_slow_start(step, expected):
    # Six steps of poly remain after four slow ones; step 7 is its middle.
    options = {
        "base_learning_rate": 0.1,
        "training_number_of_steps": 10,
        "slow_start_step": 4,
        "slow_start_learning_rate": 0.3,
    }
    assert rate_at(step, **options) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("step", "expected"), [(3, 0.3), (4, 0.1), (2003, 0.1), (2004, 0.01), (6004, 1e-4)]
)
def test_step_policy_matches_formula(step, expected):
    options = {
        "base_learning_rate": 0.1,
        "learning_policy": "step",
        "slow_start_step": 4,
        "slow_start_learning_rate": 0.3,
    }
    assert rate_at(step, **options) == pytest.approx(expected, rel=1e-5)


class FallingRate(keras.optimizers.schedules.LearningRateSchedule):
    """A rate of 0.1, then 0.01."""

    def __call__(self, step):
        return keras.ops.where(step < 1, 0.1, 0.01)


def train_two_steps(optimizer):
    weight = keras.Variable([1.0, 2.0])
    for gradient in ([1.0, 0.0], [1.0, 0.0]):
        optimizer.apply([tf.constant(gradient)], [weight])
    return weight.numpy()


def test_momentum_differs_from_keras_sgd():
    # v = 1, w = 1 - 0.1 * 1 = 0.9; v = 0.9 + 1 = 1.9, w = 0.9 - 0.01 * 1.9 = 0.881
    weight = train_two_steps(Momentum(FallingRate(), 0.9))
    np.testing.assert_allclose(weight, [0.881, 2.0], rtol=1e-6)
    # Keras: v = -0.1, w = 0.9; v = 0.9 * -0.1 - 0.01 = -0.1, w = 0.8
    weight = train_two_steps(keras.optimizers.SGD(FallingRate(), 0.9))
    np.testing.assert_allclose(weight, [0.8, 2.0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["momentum", "nesterov"])
def test_momentum_equals_official_formula(kind):
    random = np.random.RandomState(0)
    variable = keras.Variable(random.standard_normal(5).astype("float32"))
    weight, accumulator = variable.numpy(), np.zeros(5)
    config = TrainConfig(
        optimizer=kind, base_learning_rate=0.5, training_number_of_steps=4
    )
    optimizer = make_optimizer(config)
    for step in range(4):
        gradient = random.standard_normal(5)
        optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
        accumulator = 0.9 * accumulator + gradient
        update = gradient + 0.9 * accumulator if kind == "nesterov" else accumulator
        weight = weight - 0.5 * (1 - step / 4) ** 0.9 * update
    np.testing.assert_allclose(variable, weight, rtol=1e-5)
    slot = slot_variables(optimizer, ["logits/semantic/biases"])
    assert list(slot) == ["logits/semantic/biases/Momentum"]
    np.testing.assert_allclose(
        slot["logits/semantic/biases/Momentum"], accumulator, rtol=1e-5
    )


def test_momentum_applies_gradient_multipliers():
    options = {"gradient_multipliers": {"bias": 2.0, "logits": 5.0}}
    optimizer = Momentum.from_config(Momentum(0.1, **options).get_config())
    layers = [keras.layers.Dense(1, name=name) for name in ("logits", "other")]
    for layer in layers:
        layer.build((1, 1))
    variables = [v for layer in layers for v in layer.trainable_variables]
    starts = [v.numpy() for v in variables]
    gradients = [tf.ones_like(v.value) for v in variables]
    optimizer.apply(gradients, variables)
    moved = [
        float(np.sum(start - v)) for start, v in zip(starts, variables, strict=True)
    ]
    # 0.1 times 5 for the logits' kernel, 5 * 2 for their bias; 1 and 2 elsewhere
    assert moved == pytest.approx([0.5, 1.0, 0.1, 0.2], rel=1e-5)


def test_unused_gradient_multiplier_is_refused():
    optimizer = Momentum(gradient_multipliers={"biases": 2.0})
    message = (
        "contains 'biases', which matches no trained variable; paths look like 'w'"
    )
    with pytest.raises(UserError, match=message):
        optimizer.build([keras.Variable([1.0], name="w")])


def test_adam_ignores_schedule():
    config = TrainConfig(optimizer="adam", adam_learning_rate=0.5, adam_epsilon=0.25)
    optimizer = make_optimizer(config)
    assert isinstance(optimizer, keras.optimizers.Adam)
    assert float(optimizer.learning_rate) == 0.5
    assert optimizer.epsilon == 0.25
    optimizer.apply([tf.constant([1.0, 2.0])], [keras.Variable([1.0, 2.0])])
    found = slot_variables(optimizer, ["a"])
    # The averages of gradients and of their squares: 0.1 g and 0.001 g^2.
    assert list(found) == ["a/Adam", "a/Adam_1"]
    np.testing.assert_allclose(found["a/Adam"], [0.1, 0.2], rtol=1e-6)
    np.testing.assert_allclose(found["a/Adam_1"], [0.001, 0.004], rtol=1e-5)


def test_adamw_decouples_weight_decay():
    config = TrainConfig(
        optimizer="adamw",
        base_learning_rate=0.5,
        training_number_of_steps=4,
        weight_decay=0.1,
        adam_epsilon=1e-6,
    )
    names = (
        "a/weights",
        "a_depthwise/depthwise_weights",
        "a/BatchNorm/gamma",
        "b/biases",
    )
    trained = {name: keras.Variable([1.0, 2.0, 3.0]) for name in names}
    optimizer = make_optimizer(config)
    build_optimizer(optimizer, trained, config)
    weight = np.array([1.0, 2.0, 3.0])
    decayed, first, second = weight, 0.0, 0.0
    for step in range(3):
        rate = 0.5 * (1 - step / 4) ** 0.9
        gradient = np.array([0.0, 1.0, -0.1 * step])
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        share = np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        update = rate * share * first / (np.sqrt(second) + 1e-6)
        weight, decayed = weight - update, decayed * (1 - rate * 0.1) - update
        tensor = tf.constant(gradient, tf.float32)
        optimizer.apply([tensor] * len(names), list(trained.values()))
    for name, variable in trained.items():
        expected = decayed if name == "a/weights" else weight
        np.testing.assert_allclose(variable, expected, rtol=1e-4, err_msg=name)
    found = slot_variables(optimizer, names)
    np.testing.assert_allclose(found["a/weights/Adam"], first, rtol=1e-5)
    np.testing.assert_allclose(found["a/weights/Adam_1"], second, rtol=1e-5)


def test_last_layers_have_their_own_learning_rate_in_adamw():
    config = TrainConfig(
        optimizer="adamw",
        base_learning_rate=0.01,
        weight_decay=0.0,
        last_layer_gradient_multiplier=3.0,
    )
    names = ("MobilenetV2/Conv/weights", "logits/semantic/weights")
    trained = {name: keras.Variable([1.0]) for name in names}
    optimizer = make_optimizer(config)
    build_optimizer(optimizer, trained, config)
    optimizer.apply([tf.constant([0.5])] * 2, list(trained.values()))
    backbone, logits = (float(1 - v[0]) for v in trained.values())
    assert (backbone, logits) == pytest.approx((0.01, 0.03), rel=1e-4)
    # A factor on the gradient would have no effect.
    assert gradient_multiplier(names[1], config) == 1.0


def test_optimizers_are_rebuilt_from_their_config():
    options = {"training_number_of_steps": 10, "slow_start_step": 4, "momentum": 0.5}
    optimizer = make_optimizer(TrainConfig(**options))
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(restored, Momentum)
    assert restored.momentum == 0.5
    restored.iterations.assign(7)
    assert float(restored.learning_rate) == pytest.approx(rate_at(7, **options))
    assert keras.optimizers.serialize(restored) == keras.optimizers.serialize(optimizer)


@pytest.mark.parametrize(
    ("name", "all_head_layers", "logits_only"),
    [
        ("MobilenetV2/Conv/weights", 1, 1),
        ("MobilenetV2/Conv/BatchNorm/beta", 1, 1),  # beta is no bias
        ("MobilenetV3/expanded_conv_3/squeeze_excite/Conv/biases", 2, 2),
        ("image_pooling/weights", 10, 1),
        ("aspp1_depthwise/BatchNorm/gamma", 10, 1),
        ("concat_projection/weights", 10, 1),
        ("decoder/feature_projection0/weights", 10, 1),
        ("decoder/feature_projection0/biases", 20, 2),
        ("meta_architecture/branch0/weights", 10, 1),
        ("logits/semantic/weights", 10, 10),
        ("logits/semantic/biases", 20, 20),
    ],
)
def test_trainer_applies_gradient_multipliers(name, all_head_layers, logits_only):
    config = TrainConfig(last_layer_gradient_multiplier=10.0)
    assert gradient_multiplier(name, config) == all_head_layers
    config = TrainConfig(
        last_layer_gradient_multiplier=10.0, last_layers_contain_logits_only=True
    )
    assert gradient_multiplier(name, config) == logits_only


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training_number_of_steps": 0}, "must be at least 1; received 0"),
        (
            {"optimizer": "sgd"},
            "must be momentum, nesterov, adam or adamw; received 'sgd'",
        ),
        ({"learning_policy": "cosine"}, "must be poly or step; received 'cosine'"),
        ({"top_k_percent_pixels": 0.0}, r"above 0 and at most 1; received 0.0"),
        ({"top_k_percent_pixels": 20}, "received 20"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**options)
