"""Signatures of an export match the model."""

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.data.augment import resize_to_range
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.resampling import resize_bilinear
from deeplab_tf.serving.signatures import (
    Resizing,
    ResizingPredictor,
    make_features_model,
    make_signatures,
)


def photos(*shape):
    return np.random.RandomState(6).randint(0, 256, (*shape, 3)).astype(np.uint8)


def narrow_model(**options):
    return build_model(ModelConfig(depth_multiplier=0.1, num_classes=5, **options))


def test_features_have_expected_names_and_shapes(tiny_model):
    network = make_features_model(tiny_model)
    features = network(photos(2, 33, 49).astype(np.float32))
    shapes = {name: tuple(x.shape) for name, x in features.items()}
    assert shapes == {
        "high_level": (2, 3, 4, 16),
        "low_level_4": (2, 9, 13, tiny_model.get_layer("decoder").inputs[1].shape[-1]),
        "logits": tuple(features["logits"].shape),
    }
    # The features and the remaining layers give the logits.
    logits = features.pop("logits")
    x = tiny_model.get_layer("decoder")(list(features.values()))
    expected = tiny_model.get_layer("logits.semantic")(x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_features_without_context_and_decoder():
    config = {"context": ContextConfig(aspp=False), "decoder": DecoderConfig(())}
    network = make_features_model(narrow_model(**config))
    assert list(network.output) == ["high_level", "logits"]


def test_image_pyramid_has_no_features_model():
    assert make_features_model(narrow_model(image_pyramid=(0.5, 1.0))) is None


def test_signatures_depend_on_the_model(tiny_model, strided_model):
    names = {"serving_default", "probabilities", "raw", "encoded", "features"}
    features = make_features_model(tiny_model)
    assert set(make_signatures(features, Predictor(tiny_model))) == names
    signatures = make_signatures(None, Predictor(strided_model))
    assert set(signatures) == names - {"features"}
    grey = narrow_model(channels=1)
    signatures = make_signatures(make_features_model(grey), Predictor(grey))
    assert set(signatures) == names - {"encoded"}


@pytest.fixture
def halving_predictor(strided_model):
    """A predictor that halves images of 66x99."""
    return ResizingPredictor(Predictor(strided_model), Resizing(33))


def resize_images(images, *sizes):
    nothing = tf.zeros([*images.shape[1:3], 1], tf.uint8)
    return tf.stack([resize_to_range(x, nothing, *sizes)[0] for x in images])


def test_labels_have_the_size_of_the_image(strided_model, halving_predictor):
    images = photos(2, 66, 99)
    small = Predictor(strided_model).labels(resize_images(images, 33)).numpy()
    assert small.shape == (2, 33, 49)
    # Nearest neighbours with aligned corners: column i of 99 is at i * 48 / 98.
    rows = np.floor(np.arange(66) * np.float32(32 / 65) + 0.5).astype(int)
    columns = np.floor(np.arange(99) * np.float32(48 / 98) + 0.5).astype(int)
    expected = small[:, rows][:, :, columns]
    labels = halving_predictor.labels(tf.constant(images))
    assert labels.dtype == tf.int32
    assert np.mean(labels.numpy() == expected) > 0.99  # except for ties


def test_probabilities_have_the_size_of_the_image(strided_model, halving_predictor):
    images = photos(2, 66, 99)
    small = Predictor(strided_model).probabilities(resize_images(images, 33))
    probabilities = halving_predictor.probabilities(tf.constant(images))
    np.testing.assert_allclose(
        probabilities, resize_bilinear(small, (66, 99)), rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(tf.reduce_sum(probabilities, -1), 1.0, atol=1e-5)


def test_resizing_applies_max_size_and_factor(strided_model):
    images = photos(1, 40, 80)
    sizes = Resizing(33, 49, 8)
    small = Predictor(strided_model).labels(resize_images(images, *sizes))
    assert small.shape == (1, 25, 49)
    predictor = ResizingPredictor(Predictor(strided_model), sizes)
    labels = predictor.labels(tf.constant(images))
    np.testing.assert_array_equal(labels[:, ::39, ::79], small[:, ::24, ::48])
