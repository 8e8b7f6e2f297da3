"""What an export gives is what the model gives."""

import keras
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
    features_model,
    make_signatures,
)


def photos(*shape):
    return np.random.RandomState(6).randint(0, 256, (*shape, 3)).astype(np.uint8)


def narrow(**options):
    return build_model(ModelConfig(depth_multiplier=0.1, num_classes=5, **options))


def test_features_have_the_names_and_sizes_of_their_places(tiny_model):
    network = features_model(tiny_model)
    features = network(photos(2, 33, 49).astype(np.float32))
    shapes = {name: tuple(x.shape) for name, x in features.items()}
    assert shapes == {
        "high_level": (2, 3, 4, 16),
        "low_level_4": (2, 9, 13, tiny_model.get_layer("decoder").inputs[1].shape[-1]),
    }
    # The rest of the model, on these features, is the model.
    x = tiny_model.get_layer("decoder")(list(features.values()))
    logits = tiny_model.get_layer("logits.semantic")(x)
    whole = keras.Model(tiny_model.input, tiny_model.get_layer("logits").output)
    np.testing.assert_allclose(
        logits, whole(photos(2, 33, 49).astype(np.float32)), rtol=0, atol=1e-5
    )


def test_features_without_context_or_decoder_are_the_backbones():
    config = {"context": ContextConfig(aspp=False), "decoder": DecoderConfig(())}
    network = features_model(narrow(**config))
    assert list(network.output) == ["high_level"]


def test_a_pyramid_has_no_features():
    assert features_model(narrow(image_pyramid=(0.5, 1.0))) is None


def test_what_can_be_asked_for_follows_from_the_model(tiny_model, strided_model):
    names = {"serving_default", "probabilities", "encoded", "features"}
    features = features_model(tiny_model)
    assert set(make_signatures(features, Predictor(tiny_model))) == names
    offered = make_signatures(None, Predictor(strided_model))
    assert set(offered) == names - {"features"}
    grey = narrow(channels=1)
    offered = make_signatures(features_model(grey), Predictor(grey))
    assert set(offered) == names - {"encoded"}


@pytest.fixture
def halving(strided_model):
    """Looks at images of 66x99 as if they had 33x49."""
    return ResizingPredictor(Predictor(strided_model), Resizing(33))


def resized(images, *sizes):
    nothing = tf.zeros([*images.shape[1:3], 1], tf.uint8)
    return tf.stack([resize_to_range(x, nothing, *sizes)[0] for x in images])


def test_labels_of_resized_images_have_the_images_size(strided_model, halving):
    images = photos(2, 66, 99)
    small = Predictor(strided_model).labels(resized(images, 33)).numpy()
    assert small.shape == (2, 33, 49)
    # The nearest neighbours, corners on corners: place i of 99 is at i * 48 / 98.
    rows = np.floor(np.arange(66) * np.float32(32 / 65) + 0.5).astype(int)
    columns = np.floor(np.arange(99) * np.float32(48 / 98) + 0.5).astype(int)
    expected = small[:, rows][:, :, columns]
    labels = halving.labels(tf.constant(images))
    assert labels.dtype == tf.int32
    assert np.mean(labels.numpy() == expected) > 0.99  # but for ties of distance


def test_probabilities_of_resized_images_have_the_images_size(strided_model, halving):
    images = photos(2, 66, 99)
    small = Predictor(strided_model).probabilities(resized(images, 33))
    probabilities = halving.probabilities(tf.constant(images))
    np.testing.assert_allclose(
        probabilities, resize_bilinear(small, (66, 99)), rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(tf.reduce_sum(probabilities, -1), 1.0, atol=1e-5)


def test_longer_side_and_factor_count_too(strided_model):
    images = photos(1, 40, 80)
    sizes = Resizing(33, 49, 8)
    small = Predictor(strided_model).labels(resized(images, *sizes))
    assert small.shape == (1, 25, 49)
    view = ResizingPredictor(Predictor(strided_model), sizes)
    labels = view.labels(tf.constant(images))
    np.testing.assert_array_equal(labels[:, ::39, ::79], small[:, ::24, ::48])
