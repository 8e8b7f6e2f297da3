"""The Keras loss: equality with Keras' cross-entropy, mining, invalid labels, `fit`."""

import itertools
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf import MeanIoU, SegmentationLoss, UserError
from deeplab_tf.training.losses import segmentation_loss

# Logits of two classes, whose losses are ln 4/3 or ln 4, and ln 2.
SURE, UNSURE = [math.log(3.0), 0.0], [0.0, 0.0]
LN2, LN4, LN4_3 = math.log(2.0), math.log(4.0), math.log(4.0 / 3.0)


def test_loss_and_metric_work_in_fit():
    keras.utils.set_random_seed(0)
    images = np.random.RandomState(0).uniform(-1, 1, (4, 8, 8, 1)).astype("float32")
    labels = (images > 0).astype("uint8")
    labels[:, 0] = 255
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 1, activation="relu")(image)
    # Half the labels' size: the loss resizes logits, the metric sees full size.
    full = keras.layers.Conv2D(2, 1, name="full")(x)
    half = keras.layers.AveragePooling2D(2, name="half")(full)
    model = keras.Model(image, {"full": full, "half": half})
    loss = SegmentationLoss()
    model.compile(
        keras.optimizers.Adam(0.05),
        loss={"full": loss, "half": loss},
        metrics={"full": MeanIoU(2)},
        jit_compile=False,  # compiling takes longer than training
    )
    targets = {"full": labels, "half": labels}
    # An epoch takes longer than its steps.
    images, targets = keras.tree.map_structure(
        lambda x: np.tile(x, (15, 1, 1, 1)), (images, targets)
    )
    history = model.fit(images, targets, epochs=2, batch_size=4, verbose=0).history
    assert history["loss"][-1] < 0.85 * history["loss"][0]
    scores = model.evaluate(images, targets, verbose=0, return_dict=True)
    assert scores["full_miou"] > 0.9
    logits = model(images)["full"]
    by_hand = float(segmentation_loss(targets["full"], logits))
    assert scores["full_loss"] == pytest.approx(by_hand, rel=1e-5)


def test_keras_loss_resizes_logits_with_aligned_corners():
    # Two columns of logits become three: SURE, their mean, UNSURE.
    logits = tf.constant([[[SURE, UNSURE]]])
    labels = tf.constant([[[0, 255, 0]]])
    expected = (LN4_3 + LN2) / 2
    assert float(SegmentationLoss()(labels, logits)) == pytest.approx(expected)
    middle = math.log(1 + 1 / math.sqrt(3.0))  # -ln(sqrt 3 / (sqrt 3 + 1))
    labels = tf.constant([[[255, 0, 255]]])
    assert float(SegmentationLoss()(labels, logits)) == pytest.approx(middle)


def random_pixels(classes=3, shape=(2, 4, 5)):
    """Returns labels with 255, logits, and weights of the pixels."""
    random = np.random.RandomState(0)
    labels = random.choice([*range(classes), 255], shape)
    logits = random.normal(0, 2, (*shape, classes)).astype(np.float32)
    return labels, logits, random.uniform(0, 2, shape).astype(np.float32)


REDUCTIONS = (
    *("sum_over_batch_size", "mean", "mean_with_sample_weight"),
    *("sum", "none", None),
)
WEIGHTS = {
    "none": lambda weights: None,
    "scalar": lambda weights: 3.0,
    "pixels": lambda weights: weights,
    "channel": lambda weights: weights[..., None],
    "rows": lambda weights: weights[:, :, :1],
    "integers": lambda weights: np.round(weights).astype(int),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_loss_equals_keras_cross_entropy(reduction, weights):
    labels, logits, pixel_weights = random_pixels()
    weights = WEIGHTS[weights](pixel_weights)
    keras_loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255, reduction=reduction
    )
    expected = keras_loss(labels, logits, weights)
    loss = SegmentationLoss(reduction=reduction)
    one_hot = np.eye(256)[labels][..., :3]
    for form in (labels, labels.astype(np.uint8)[..., None], one_hot):
        result = loss(form, logits, weights)
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_weight_per_image_applies_to_all_its_pixels(shape):
    labels, logits, _ = random_pixels()
    weights = np.array([0.5, 3.0])
    loss = SegmentationLoss()
    expected = loss(labels, logits, np.broadcast_to(weights[:, None, None], (2, 4, 5)))
    result = loss(labels, logits, weights.reshape(shape))
    assert float(result) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("class_weights", [(), (1.0, 0.0, 2.5)])
@pytest.mark.parametrize("share", [1.0, 0.99, 0.3, 0.01])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_default_reduction_is_official_mean(class_weights, share, gamma):
    # A share of 0.01 of 40 pixels is none.
    labels, logits, _ = random_pixels()
    expected = segmentation_loss(labels, logits, 255, class_weights, share, gamma)
    result = SegmentationLoss(255, class_weights, share, gamma)(labels, logits)
    assert float(result) == pytest.approx(float(expected), rel=1e-6)
    unlabelled = SegmentationLoss(255, class_weights, share, gamma)
    assert float(unlabelled(np.full_like(labels, 255), logits)) == 0.0


def test_reductions_and_weights_apply_to_mined_pixels():
    labels = [[[1, 0, 0, 255, 1]]]
    logits = [[[SURE, SURE, UNSURE, SURE, UNSURE]]]
    # The hardest 3 of ln4, ln4/3, ln2, ignored and ln2.
    losses = [LN4, 0, LN2, 0, LN2]
    weights = [[[2.0, 9.0, 1.0, 9.0, 3.0]]]
    expected = {"sum": 2 * LN4 + 4 * LN2, "mean": (2 * LN4 + 4 * LN2) / 3}
    expected["mean_with_sample_weight"] = (2 * LN4 + 4 * LN2) / (2 + 1 + 3)
    for reduction, value in expected.items():
        loss = SegmentationLoss(share=0.6, reduction=reduction)
        assert float(loss(labels, logits, weights)) == pytest.approx(value, rel=1e-6)
    pixels = SegmentationLoss(share=0.6, reduction=None)(labels, logits)
    np.testing.assert_allclose(pixels, [[losses]], rtol=1e-6)


def test_first_of_equal_losses_are_mined():
    labels, logits = tf.zeros((1, 1, 4)), tf.constant([[4 * [UNSURE]]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = SegmentationLoss(share=0.5)(labels, logits)
    assert float(loss) == pytest.approx(LN2, rel=1e-6)
    # (1/2 - 1) / 2 pixels
    gradient = tape.gradient(loss, logits)[0, 0, :, 0]
    np.testing.assert_allclose(gradient, [-0.25, -0.25, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("run", [lambda f: f, tf.function])
def test_loss_and_metric_of_an_empty_batch_are_zero(run, share):
    # One replica's part of the last batch.
    labels, logits = tf.zeros((0, 4, 5)), tf.zeros((0, 4, 5, 3))
    assert float(run(SegmentationLoss(share=share))(labels, logits)) == 0.0
    metric = MeanIoU(3)
    run(metric.update_state)(labels, logits)
    assert float(metric.result()) == 0.0


@pytest.mark.parametrize(
    ("share", "reduction"), [(1.0, "mean"), (1.0, None), (0.3, "mean")]
)
def test_invalid_label_is_an_error_or_nan(share, reduction):
    labels, logits, _ = random_pixels()
    labels[1, 2, 3] = 5
    loss = SegmentationLoss(share=share, reduction=reduction)
    with pytest.raises(UserError, match="labels contain 5"):
        loss(labels, logits)
    labels = tf.constant(labels)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"contain\] \[5\]"):
        tf.function(loss)(labels, logits)
    # XLA has no assertions.
    result = np.array(tf.function(loss, jit_compile=True)(labels, logits))
    assert np.isnan(result if reduction else result[1, 2, 3])
    assert np.isnan(result).sum() == 1


@pytest.mark.parametrize(
    ("options", "logits", "message"),
    [
        ({"share": 0.0}, (1, 2, 2, 3), "share must be above 0 and at most 1; received"),
        ({"focal_gamma": -1.0}, (1, 2, 2, 3), "focal_gamma must be at least 0"),
        (
            {"class_weights": (1, 2)},
            (1, 2, 2, 3),
            "2 values; the logits have 3 classes",
        ),
        ({}, (1, 2, 2), r"y_pred has the shape \[1, 2, 2\]; pass logits"),
    ],
)
def test_invalid_settings_and_logits_are_errors(options, logits, message):
    with pytest.raises(UserError, match=message):
        SegmentationLoss(**options)(np.zeros((1, 2, 2)), np.zeros(logits))


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sample_weights_work_in_fit(jit):
    labels, images, weights = random_pixels()
    image = keras.Input((4, 5, 3))
    model = keras.Model(image, keras.layers.Conv2D(3, 1)(image))
    loss = SegmentationLoss(class_weights=(1.0, 2.0, 3.0))
    metrics = {"metrics": [MeanIoU(3)], "weighted_metrics": [MeanIoU(3, name="w")]}
    model.compile("sgd", loss, jit_compile=jit, **metrics)
    expected = float(loss(labels, model(images), weights))
    images = tf.constant(images)
    dataset = tf.data.Dataset.from_tensors((images, labels[..., None], weights))
    history = model.fit(dataset, verbose=0).history
    assert history["loss"] == [pytest.approx(expected, rel=1e-5)]
    assert 0 < history["miou"][0] != history["w"][0] > 0

    labels[0, 1, 1] = 7
    dataset = tf.data.Dataset.from_tensors((images, labels[..., None], weights))
    if jit:
        history = model.fit(dataset, verbose=0).history
        assert all(map(math.isnan, itertools.chain(*history.values())))
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"contain\] \[7\]"):
            model.fit(dataset, verbose=0)


def test_loss_is_rebuilt_from_its_config():
    loss = SegmentationLoss(
        254, (1.0, 2.0), 0.5, focal_gamma=2.0, name="mined", reduction="sum"
    )
    config = json.loads(json.dumps(keras.losses.serialize(loss)))
    restored = keras.losses.deserialize(config)
    assert isinstance(restored, SegmentationLoss)
    assert restored.get_config() == loss.get_config()
    assert (restored.ignore_label, restored.class_weights) == (254, (1.0, 2.0))
    assert (restored.share, restored.name) == (0.5, "mined")
    assert (restored.focal_gamma, restored.reduction) == (2.0, "sum")
    labels, logits = tf.constant([[[0, 1]]]), tf.constant([[[UNSURE, SURE]]])
    # Half of the two pixels: 2 * 9/16 ln 4 of the second.
    assert float(restored(labels, logits)) == pytest.approx(9 / 8 * LN4)
