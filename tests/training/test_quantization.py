"""Quantisation-aware training: its start, its state and what it refuses."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers
from toy_model import NUM_CLASSES, toy_model

from deeplab_tf import TrainConfig, Trainer, UserError
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.restore import has_quantization_ranges, quantize_with_ranges
from deeplab_tf.models.layers import conv, conv_bn_act, head_style
from deeplab_tf.models.normalization import PixelScaling
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.models.resampling import ResizeLike
from deeplab_tf.models.variables import official_variables

CONFIG = TrainConfig(
    quantize_delay_step=0,
    fine_tune_batch_norm=False,
    base_learning_rate=0.01,
    training_number_of_steps=4,
)


def make_model():
    """Returns a small model with the same weights and dropout every time."""
    keras.utils.set_random_seed(0)
    image = keras.Input((33, 33, 3), name="image")
    x = PixelScaling(2.0 / 255.0, -1.0, name="normalize")(image)
    x = conv_bn_act(x, 8, 9, "conv", strides=8, **head_style())
    x = layers.Dropout(0.5, name="dropout")(x)
    x = conv(x, NUM_CLASSES, 1, "semantic", use_bias=True)
    x = layers.Identity(name="logits")(x)
    model = keras.Model(image, ResizeLike()(x, image))
    model.model_config = toy_model().model_config
    return model


def make_batch(step):
    random = np.random.RandomState(step)
    images = random.uniform(0, 255, (2, 33, 33, 3)).astype(np.float32)
    return images, random.randint(0, NUM_CLASSES, (2, 33, 33, 1))


def train(config, *steps, folder=None):
    """Returns a trainer after some steps, resumed from `folder` if it has any."""
    trainer = Trainer(make_model(), dataclasses.replace(config, train_logdir=folder))
    trainer.restore_latest()
    for step in steps:
        trainer.train_step(*make_batch(step))
    return trainer


def read_values(trainer):
    variables = trainer._variables | trainer._slots | trainer._seeds
    return {name: np.array(v.numpy()) for name, v in variables.items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], name)


def test_nothing_changes_before_the_delay():
    exact = train(dataclasses.replace(CONFIG, quantize_delay_step=-1), 0, 1)
    delayed = train(dataclasses.replace(CONFIG, quantize_delay_step=2), 0, 1)
    values = read_values(delayed)
    ranges = {n: values.pop(n) for n in list(values) if "/act_quant/" in n}
    assert ranges and not any(ranges.values())
    assert_equal(read_values(exact), values)
    assert not is_quantized(delayed.model)
    for trainer in (exact, delayed):
        trainer.train_step(*make_batch(2))
    assert is_quantized(delayed.model)
    name = "conv/weights"
    assert (read_values(exact)[name] != read_values(delayed)[name]).any()
    assert read_values(delayed)["conv/relu/act_quant/batches"] == 1


def test_resumed_training_is_bit_exact(tmp_path):
    config = dataclasses.replace(CONFIG, quantize_delay_step=1)
    through = train(config, 0, 1, folder=str(tmp_path))
    through._state.save()
    for step in (2, 3):
        through.train_step(*make_batch(step))
    resumed = train(config, 2, 3, folder=str(tmp_path))
    assert_equal(read_values(through), read_values(resumed))
    assert read_values(resumed)["semantic/act_quant/batches"] == 3


@pytest.mark.usefixtures("eager_execution")
def test_checkpoint_gives_the_exact_and_the_quantised_model(tmp_path):
    trainer = train(CONFIG, 0, 1, folder=str(tmp_path))
    trainer._state.save()
    model, arrays = make_model(), tf1.read_checkpoint(str(tmp_path)).arrays
    assert tf1.load_tf1_checkpoint(model, str(tmp_path)).complete
    quantized = quantize_with_ranges(model, arrays, "checkpoint")
    expected = official_variables(trainer.model)
    for name, variable in official_variables(quantized).items():
        np.testing.assert_array_equal(variable.numpy(), expected[name].numpy())


@pytest.mark.usefixtures("eager_execution")
def test_checkpoint_before_the_delay_is_exact(tmp_path):
    config = dataclasses.replace(CONFIG, quantize_delay_step=9)
    train(config, 0, folder=str(tmp_path))._state.save()
    arrays = tf1.read_checkpoint(str(tmp_path)).arrays
    assert not has_quantization_ranges(arrays)
    with pytest.raises(UserError, match=r"^here was not trained with quantisation \("):
        quantize_with_ranges(make_model(), arrays, "here")


@pytest.mark.usefixtures("eager_execution")
def test_exact_checkpoint_cannot_be_resumed_quantised(tmp_path):
    exact = dataclasses.replace(CONFIG, quantize_delay_step=-1)
    train(exact, 0, folder=str(tmp_path))._state.save()
    with pytest.raises(UserError, match=r"the same --quantize_delay_step as before: "):
        train(CONFIG, folder=str(tmp_path))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("--quantize_delay_step=0 needs --fine_tune_b", {"fine_tune_batch_norm": True}),
        ("received --batch_norm=sync", {"batch_norm": "sync"}),
        ("must be at least -1; received -2", {"quantize_delay_step": -2}),
    ],
)
def test_settings_without_quantisation_are_refused(message, options):
    with pytest.raises(UserError, match=message):
        Trainer(make_model(), dataclasses.replace(CONFIG, **options))
