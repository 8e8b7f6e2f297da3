"""Classifiers in the trainer: labels of one pixel, top-1 and top-5 accuracy."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf import (
    ContextConfig,
    DecoderConfig,
    ModelConfig,
    TrainConfig,
    Trainer,
    UserError,
)
from deeplab_tf.models.normalization import BatchNormalization
from deeplab_tf.models.variables import official_variables
from deeplab_tf.pretrain.scoring import ClassValidation, TopAccuracy
from deeplab_tf.training.history import History

CLASSES = 300


def toy_classifier(classes=CLASSES):
    """Returns a classifier of two convolutions for the trainer."""
    image = keras.Input((16, 16, 3), name="image")
    x = keras.layers.Rescaling(2.0 / 255.0, -1.0)(image)
    x = keras.layers.Conv2D(8, 4, strides=4, name="conv")(x)
    x = keras.layers.ReLU()(BatchNormalization(momentum=0.5, name="bn")(x))
    x = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = keras.layers.Conv2D(classes, 1, name="net.logits")(x)
    x = keras.layers.Identity(name="logits")(x)
    model = keras.Model(image, keras.layers.Reshape((classes,))(x))
    model.model_config = ModelConfig(
        num_classes=classes,
        context=ContextConfig(rates=(), aspp=False),
        decoder=DecoderConfig(output_strides=()),
    )
    return model


def make_colors(classes):
    """Returns images with one colour per class, and their labels of one pixel."""
    random = np.random.RandomState(0)
    colors = random.uniform(40, 215, (len(classes), 1, 1, 3))
    images = colors + random.uniform(-20, 20, (len(classes), 16, 16, 3))
    return images.astype("float32"), np.array(classes, np.int32)[:, None, None]


def config_of(**options):
    return TrainConfig(
        **{"optimizer": "nesterov", "ignore_label": -1, "batch_norm": "train"} | options
    )


def test_loss_is_mean_cross_entropy():
    # 0 and 255 are ordinary classes.
    images, labels = make_colors([0, 255, 7, 299])
    model = toy_classifier()
    kernel = official_variables(model)["net/logits/weights"]
    kernel.assign(np.random.RandomState(1).normal(0, 1, kernel.shape))
    logits = np.asarray(model(images, training=True), np.float64)
    highest = logits.max(1, keepdims=True)
    sums = np.log(np.exp(logits - highest).sum(1)) + highest[:, 0]
    expected = np.mean(sums - logits[range(4), labels.ravel()])
    result = Trainer(model, config_of()).train_step(images, labels)
    assert result["data_loss"] == pytest.approx(expected, rel=1e-5)


def test_classifier_overfits_few_images(tmp_path):
    images, labels = make_colors([0, 255, 7, 299, 12, 255])
    data = tf.data.Dataset.from_tensors((images, labels))
    config = config_of(
        train_logdir=str(tmp_path),
        training_number_of_steps=60,
        base_learning_rate=0.1,
        learning_policy="step",
        log_steps=1,
        eval_interval_steps=30,
    )
    validation = ClassValidation(lambda worker, count: data, {"split": "all"})
    model = toy_classifier()
    Trainer(model, config).train(data.repeat(), validation)
    history = History(str(tmp_path), "top1")
    history.restart(60)
    losses = history.values("data_loss")[1]
    assert losses[0] > np.log(CLASSES) - 1 > 0.5 > losses[-1]
    assert history.best[1] == 1.0
    assert list(history.values("top5")[0]) == [30, 60]
    metrics = json.loads((tmp_path / "best/metrics.json").read_text())
    assert metrics == {
        "images": 6,
        "top1": 1.0,
        "top5": 1.0,
        "protocol": {"split": "all"},
        "step": history.best[0],
    }
    tags = {
        value.tag
        for path in tmp_path.glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {"eval/top1", "eval/top5", "train/data_loss"} <= tags
    # A finished training that is resumed neither trains nor evaluates.
    resumed = Trainer(model, config)
    assert resumed.restore_latest() == str(tmp_path / "model.ckpt-60")
    resumed.train(data.repeat(), ClassValidation(None))


def identity_classifier(classes):
    """Returns a model that outputs its images as logits."""
    image = keras.Input((1, 1, classes))
    return keras.Model(image, keras.layers.Reshape((classes,))(image))


# Class 2 ranks third in the first row, first in the second, last in the third and
# third in the fourth, where all are equal.
LOGITS = [
    [5.0, 4.0, 3.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 1.0, 9.0, 0.0, 0.0, 0.0, 0.0],
    [6.0, 5.0, 0.0, 4.0, 3.0, 2.0, 1.0],
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
]


def test_top1_and_top5_accuracy():
    images = np.array(LOGITS, np.float32)[:, None, None]
    labels = np.full((4, 1, 1), 2, np.int32)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(3)
    accuracy = TopAccuracy(identity_classifier(7))
    assert accuracy.evaluate(dataset) == {"images": 4, "top1": 0.25, "top5": 0.75}
    # Two workers with the same images.
    total = accuracy.evaluate(dataset, lambda counts: 2 * counts)
    assert total == {"images": 8, "top1": 0.25, "top5": 0.75}


def test_top5_with_fewer_than_five_classes():
    dataset = tf.data.Dataset.from_tensors(
        (np.array([[[[1.0, 2.0, 3.0]]]], np.float32), np.zeros((1, 1, 1), np.int32))
    )
    assert TopAccuracy(identity_classifier(3)).evaluate(dataset) == {
        "images": 1,
        "top1": 0.0,
        "top5": 1.0,
    }


def test_scoring_changes_no_variables():
    images, labels = make_colors([0, 1, 2, 3])
    model = toy_classifier()
    before = {n: v.numpy() for n, v in official_variables(model).items()}
    TopAccuracy(model).evaluate(tf.data.Dataset.from_tensors((images, labels)))
    for name, variable in official_variables(model).items():
        np.testing.assert_array_equal(variable, before[name])


def test_empty_dataset_is_refused():
    dataset = tf.data.Dataset.from_tensors((np.zeros((1, 1, 1, 3)), 0)).take(0)
    with pytest.raises(UserError, match="the evaluation split contains no images"):
        TopAccuracy(identity_classifier(3)).evaluate(dataset)
