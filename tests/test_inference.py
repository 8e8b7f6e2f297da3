"""How an image of any size is padded, scaled, mirrored, averaged and cut back."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor, predict_labels


def photo(*shape):
    return np.random.RandomState(5).randint(0, 256, (*shape, 3)).astype(np.float32)


def softmax(x):
    exponential = np.exp(x - x.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def compiled(tiny_model):
    """`uint8 images of any size -> labels` of a whole network."""
    images = tf.TensorSpec([None, None, None, 3], tf.uint8)
    return tf.function(Predictor(tiny_model).labels, input_signature=[images])


def test_every_size_gives_labels_of_that_size(compiled):
    for height in range(1, 71):
        width = 71 - height
        labels = compiled(photo(1, height, width).astype(np.uint8))
        assert labels.shape == (1, height, width)
        assert labels.dtype == tf.int32


@pytest.mark.parametrize(
    ("size", "crop_size", "padded"),
    [
        # To the next 8 k + 1.
        ((1, 1), None, (1, 1)),
        ((2, 8), None, (9, 9)),
        ((9, 10), None, (9, 17)),
        ((16, 17), None, (17, 17)),
        ((25, 31), None, (25, 33)),
        # To the crop size; what exceeds it stays.
        ((16, 17), (33, 40), (33, 40)),
        ((41, 17), (33, 40), (41, 40)),
    ],
)
def test_padding_is_the_mean_pixel_at_the_bottom_and_the_right(
    strided_model, size, crop_size, padded
):
    predictor = Predictor(strided_model, crop_size=crop_size)
    network, seen = predictor.network, []

    def spy(images, training):
        assert training is False
        seen.append(np.array(images))
        return network(images, training=training)

    predictor.networks = dict.fromkeys(predictor.scales, spy)
    images = photo(2, *size)
    assert predictor.labels(images).shape == (2, *size)
    expected = np.full((2, *padded, 3), 127.5, np.float32)
    expected[:, : size[0], : size[1]] = images
    (seen,) = seen
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("size", [(17, 17), (33, 49), (65, 33)])
def test_labels_of_aligned_sizes_are_the_argmax_of_the_model(
    tiny_model, compiled, size
):
    images = photo(2, *size)
    expected = np.argmax(tiny_model(images, training=False), -1)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(predict_labels(tiny_model, images), expected)
    np.testing.assert_array_equal(compiled(images.astype(np.uint8)), expected)


@pytest.mark.parametrize("size", [(40, 50), (70, 50)])
def test_crop_size_equals_padding_by_hand(tiny_model, size):
    images = photo(1, *size)
    canvas = np.full((1, max(65, size[0]), 81, 3), 127.5, np.float32)
    canvas[:, : size[0], : size[1]] = images
    logits = np.array(tiny_model(canvas, training=False))[:, : size[0], : size[1]]
    probabilities = Predictor(tiny_model, crop_size=(65, 81)).probabilities(images)
    np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-5)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_the_mirrored_image_gives_mirrored_probabilities(strided_model, scales):
    images = photo(1, 33, 49)
    predictor = Predictor(strided_model, scales, flip=True)
    probabilities = predictor.probabilities(images)
    mirrored = predictor.probabilities(images[:, :, ::-1])
    np.testing.assert_allclose(mirrored[:, :, ::-1], probabilities, atol=1e-5)
    one_way = Predictor(strided_model, scales).probabilities(images)
    assert np.abs(one_way - probabilities).max() > 0.01


@pytest.mark.parametrize("scales", [(1.0,), (0.75,), (0.5, 1.25)])
@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_sum_to_1_and_their_largest_is_the_label(
    strided_model, scales, flip
):
    images = photo(2, 20, 31)
    predictor = Predictor(strided_model, scales, flip)
    probabilities = np.array(predictor.probabilities(images))
    assert probabilities.shape == (2, 20, 31, 4) and probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    labels = predict_labels(strided_model, images, scales, flip)
    np.testing.assert_array_equal(labels, probabilities.argmax(-1))


def test_one_scale_gives_the_softmax_of_the_logits(strided_model):
    images = photo(1, 33, 49)
    logits = np.array(strided_model(images))
    probabilities = Predictor(strided_model).probabilities(images)
    np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-5)


def resized(x, size):
    """Returns `[h, w, c]` resized bilinearly, corners on corners (reference 0.2)."""
    for axis, target in enumerate(size):
        place = np.linspace(0, x.shape[axis] - 1, target)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def mean_probabilities(model, image, stride, scales, flip):
    """Returns the official multi-scale protocol, written anew from reference 6."""
    network = keras.Model(model.input, model.get_layer("logits").output)
    size = image.shape[:2]
    total = []
    for scale in scales:
        seen = resized(image, [int((side - 1) * scale + 1) for side in size])
        for step in (1, -1) if flip else (1,):
            logits = np.array(network(seen[None, :, ::step]))[0, :, ::step]
            if scale < 1:
                logits = resized(logits, [(side - 1) // stride + 1 for side in size])
            total.append(softmax(resized(logits, size)))
    return np.mean(total, 0)


@pytest.mark.parametrize("flip", [False, True])
def test_scales_are_averaged_as_softmax_by_way_of_the_unscaled_grid(
    tiny_model, strided_model, flip
):
    image, scales = photo(33, 49), (0.5, 0.75, 1.0, 1.75)
    for model, stride in ((tiny_model, 4), (strided_model, 8)):
        expected = mean_probabilities(model, image, stride, scales, flip)
        probabilities = Predictor(model, scales, flip).probabilities(image[None])
        np.testing.assert_allclose(probabilities[0], expected, atol=1e-4)


def test_labels_are_int32_whatever_the_image_is(strided_model):
    images = photo(2, 12, 15)
    labels = predict_labels(strided_model, images)
    assert isinstance(labels, np.ndarray)
    assert labels.dtype == np.int32 and labels.shape == (2, 12, 15)
    whole = predict_labels(strided_model, images.astype(np.uint8))
    np.testing.assert_array_equal(whole, labels)


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-0.5,)])
def test_scales_must_be_positive(strided_model, scales):
    with pytest.raises(UserError, match="scales must be positive"):
        Predictor(strided_model, scales)
