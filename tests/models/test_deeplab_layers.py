"""Basic layers: sizes, resizing, batch normalisation, initial weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.normalization import BatchNormalization
from deeplab_tf.models.resampling import resize_bilinear, scale_dimension
from deeplab_tf.models.variables import batch_normalizations, official_variables

# (pixels, scale, cells) of the reference, section 0.1.
SIZES = [
    *((513, 1 / 4, 129), (513, 1 / 8, 65), (513, 1 / 16, 33), (513, 1 / 32, 17)),
    *((769, 1 / 4, 193), (769, 1 / 8, 97), (769, 1 / 16, 49), (769, 1 / 32, 25)),
    *((1025, 1 / 4, 257), (1025, 1 / 8, 129), (1025, 1 / 16, 65), (1025, 1 / 32, 33)),
    *((2049, 1 / 4, 513), (2049, 1 / 8, 257), (2049, 1 / 16, 129), (2049, 1 / 32, 65)),
    *((513, 0.5, 257), (513, 0.75, 385), (513, 1.25, 641), (513, 1.5, 769)),
    *((513, 1.75, 897), (1025, 0.75, 769), (97, 1.5 / 16, 10), (1, 1 / 16, 1)),
]


@pytest.mark.parametrize(("size", "scale", "expected"), SIZES)
def test_scale_dimension_accepts_ints_and_tensors(size, scale, expected):
    assert scale_dimension(size, scale) == expected
    assert int(scale_dimension(tf.constant(size), scale)) == expected


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_scale_dimension_equals_strided_output_size(stride):
    sizes = np.arange(1, 2100)
    cells = -(-sizes // stride)  # ceil(size / stride), of every SAME convolution
    assert [scale_dimension(int(s), 1 / stride) for s in sizes] == cells.tolist()
    np.testing.assert_array_equal(
        scale_dimension(tf.constant(sizes), 1 / stride), cells
    )


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None, None, 3]),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([], tf.int32),
    ]
)
def resize_unknown_size(x, height, width):
    return resize_bilinear(x, (height, width))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((33, 65), (129, 257)),
        ((129, 129), (513, 513)),
        ((65, 33), (17, 9)),
        ((9, 7), (13, 20)),
        ((5, 5), (5, 5)),
        ((5, 4), (5, 9)),
        ((1, 1), (7, 5)),
        ((1, 6), (4, 1)),
        ((7, 5), (1, 1)),
        ((1, 1), (1, 1)),
    ],
)
def test_resize_bilinear_aligns_corners(source, target):
    random = np.random.RandomState(0)
    x = tf.constant(random.standard_normal((2, *source, 3)), tf.float32)
    official = tf.raw_ops.ResizeBilinear(images=x, size=target, align_corners=True)
    np.testing.assert_allclose(resize_bilinear(x, target), official, atol=1e-4)
    np.testing.assert_allclose(resize_unknown_size(x, *target), official, atol=1e-4)


def test_resize_bilinear_keeps_the_corners():
    # The corners keep their values 0 and 4, with steps of 1 between them.
    x = np.array([0.0, 4.0], np.float32).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(
        np.ravel(resize_bilinear(x, (1, 5))), [0.0, 1.0, 2.0, 3.0, 4.0]
    )


def batch_norm(**options):
    layer = BatchNormalization(momentum=0.9, epsilon=0.5, **options)
    layer.build((None, None, None, 1))
    return layer


def set_state(layer):
    """Sets gamma 2, beta 1, mean 1 and variance 3.5, so that sigma is 2."""
    layer.set_weights(np.array([[2.0], [1.0], [1.0], [3.5]]))


# Mean 3; squared distances 4 + 1 + 0 + 9 = 14.
VALUES = tf.constant([1.0, 2.0, 3.0, 6.0], shape=(2, 1, 2, 1))


def test_batch_norm_tracks_unbiased_variance():
    layer = batch_norm()
    y = layer(VALUES, training=True)
    # The batch is normalised with the biased 14 / 4 = 3.5, and 3.5 + 0.5 = 2 ** 2.
    np.testing.assert_allclose(np.ravel(y), [-1.0, -0.5, 0.0, 1.5], atol=1e-6)
    # 0.9 * 0 + 0.1 * 3; 0.9 * 1 + 0.1 * 14 / 3 = 1.36667
    np.testing.assert_allclose(layer.moving_mean, [0.3], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, [0.9 + 1.4 / 3], rtol=1e-6)


def test_batch_norm_uses_moving_statistics_at_inference():
    layer = batch_norm()
    set_state(layer)
    # (x - 1) / 2 * 2 + 1 = x
    np.testing.assert_allclose(layer(VALUES, training=False), VALUES, atol=1e-6)
    np.testing.assert_array_equal(layer.moving_mean, [1.0])


def test_frozen_batch_norm_trains_gamma_and_beta():
    layer = batch_norm(frozen=True)
    set_state(layer)
    assert [v.name for v in layer.trainable_variables] == ["gamma", "beta"]
    with tf.GradientTape() as tape:
        y = layer(VALUES, training=True)
        total = tf.reduce_sum(y)
    np.testing.assert_allclose(y, VALUES, atol=1e-6)
    gradients = tape.gradient(total, [layer.gamma.value, layer.beta.value])
    # d/dgamma: the sum of (x - 1) / 2 = (0 + 1 + 2 + 5) / 2; d/dbeta: four pixels.
    np.testing.assert_allclose(gradients, [[4.0], [4.0]], rtol=1e-6)
    assert layer.moving_mean.numpy() == 1.0
    assert layer.moving_variance.numpy() == 3.5


@pytest.mark.parametrize("seed", range(4))
def test_batch_norm_equals_keras(seed):
    # For random sequences of `training` and `trainable`. The moving variance differs by
    # n / (n - 1) alone.
    random = np.random.RandomState(seed)
    options = {"momentum": 0.6, "epsilon": 1e-3}
    ours = BatchNormalization(**options)
    keras_layer = keras.layers.BatchNormalization(**options)
    values = random.normal(1.0, 3.0, (4, 2, 3, 5, 6)).astype(np.float32)
    unbiased = 30 / 29
    for layer in (ours, keras_layer):
        layer.build(values[0].shape)
        layer.gamma.assign(np.linspace(0.5, 2, 6))
        layer.beta.assign(np.linspace(-1, 1, 6))
    for _ in range(12):
        training, trainable = random.rand(2) < 0.6
        x = values[random.randint(4)]
        ours.trainable = keras_layer.trainable = bool(trainable)
        before = np.array(keras_layer.moving_variance)
        outputs = [np.array(y(x, training=bool(training))) for y in (ours, keras_layer)]
        np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours.moving_mean, keras_layer.moving_mean, rtol=1e-6)
        biased = np.array(keras_layer.moving_variance)
        expected = 0.6 * before + (biased - 0.6 * before) * unbiased
        if not (training and trainable):
            np.testing.assert_array_equal(biased, before)
            expected = before
        np.testing.assert_allclose(ours.moving_variance, expected, rtol=1e-5)
        keras_layer.moving_variance.assign(ours.moving_variance)
        assert len(ours.trainable_variables) == len(keras_layer.trainable_variables)


def test_batch_norm_of_single_value_has_finite_variance():
    layer = batch_norm()
    layer(VALUES[:1, :, :1], training=True)
    np.testing.assert_allclose(layer.moving_variance, [0.9], rtol=1e-6)


@pytest.fixture(scope="module")
def narrow_model():
    return build_model(ModelConfig(depth_multiplier=0.1))


def test_batch_norms_have_official_constants(narrow_model):
    constants = {"backbone": set(), "heads": set()}
    for layer in batch_normalizations(narrow_model):
        part = "backbone" if layer.name.startswith("Mobilenet") else "heads"
        constants[part].add((layer.momentum, layer.epsilon))
    # TF1's fused op raises an epsilon of 1e-5 to 1.001e-5.
    assert constants == {"backbone": {(0.997, 1e-3)}, "heads": {(0.9997, 1.001e-5)}}


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_batch_norm_momentum_applies_to_all_layers(momentum):
    model = build_model(ModelConfig(depth_multiplier=0.1, batch_norm_momentum=momentum))
    moments = {layer.momentum for layer in batch_normalizations(model)}
    assert moments == {momentum}


def test_batch_normalizations_finds_all_layers(narrow_model):
    named = [n for n in official_variables(narrow_model) if n.endswith("moving_mean")]
    assert len(batch_normalizations(narrow_model)) == len(named) == 65


def initial_kernels(seed, backbone):
    keras.utils.set_random_seed(seed)
    heads = {
        "context": ContextConfig(rates=(6,), filters=16),
        "decoder": DecoderConfig(filters=16),
    }
    model = build_model(ModelConfig(backbone, **heads))
    variables = official_variables(model)
    return {n: np.array(v) for n, v in variables.items() if n.endswith("weights")}


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small_seg", "resnet_v1_18"])
def test_initial_kernels_differ_and_follow_seed(backbone):
    first, same, other = (initial_kernels(seed, backbone) for seed in (0, 0, 1))
    values = [tuple(kernel.ravel()[:8]) for kernel in first.values()]
    assert len(set(values)) == len(values)
    for name, kernel in first.items():
        np.testing.assert_array_equal(same[name], kernel)
        assert not np.array_equal(other[name], kernel), name


def test_variables_have_official_names(narrow_model):
    names = list(official_variables(narrow_model))
    assert len(names) == len(narrow_model.variables) - 1  # the dropout seed
    assert names[:2] == ["MobilenetV2/Conv/weights", "MobilenetV2/Conv/BatchNorm/gamma"]
    assert names[-2:] == ["logits/semantic/weights", "logits/semantic/biases"]
    assert "MobilenetV2/expanded_conv_2/depthwise/depthwise_weights" in names
    assert "decoder/decoder_conv1_pointwise/BatchNorm/moving_variance" in names
