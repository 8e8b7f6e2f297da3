"""Folded models give what the model gives, with no normalisation left behind."""

import keras
import numpy as np
import pytest
from golden_case import FOLDER, GoldenCase, value

from deeplab_tf.checkpoints.restore import load_tf1_variables, tf1_variables
from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.folding import fold_batch_norm
from deeplab_tf.models.normalization import BatchNormalization
from deeplab_tf.models.recomputation import recompute_backbone
from deeplab_tf.models.variables import batch_normalizations, leaf_layers

CASES = sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem != "preprocess")
# A backbone of each family, and every head.
QUICK = (
    "mobilenet_v2_two_level_decoder",
    "mobilenet_v2_image_pyramid_avg",
    "mobilenet_v3_large_seg_lraspp",
    "resnet_v1_18_beta_os16_decoder",
)


def with_values(model):
    """Returns a model, all variables of which have other values."""
    shapes = {name: array.shape for name, array in tf1_variables(model).items()}
    load_tf1_variables(model, {name: value(name, s) for name, s in shapes.items()})
    return model


def logits(model, images):
    network = keras.Model(model.input, model.get_layer("logits").output)
    return network(images).numpy()


def difference(model, other, images):
    """Returns the largest difference of logits, in standard deviations."""
    expected = logits(model, images)
    return np.abs(logits(other, images) - expected).max() / expected.std()


def photos(*shape):
    return np.random.RandomState(4).randint(0, 256, shape).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c not in QUICK),
    ],
)
def test_logits_stay_and_normalisations_go(name):
    case = GoldenCase.load(name)
    model = build_model(ModelConfig.from_official_flags(case.flags))
    load_tf1_variables(model, case.weights())
    other = fold_batch_norm(model)
    assert batch_normalizations(other) == []
    # Xception-65 differs as much between an eager call and a graph.
    tolerance = 3e-5 if name.startswith("xception") else 1e-5
    assert difference(model, other, case.images()) <= tolerance


@pytest.fixture
def small():
    config = ModelConfig(
        depth_multiplier=0.1,
        num_classes=5,
        context=ContextConfig(rates=(1,), filters=16),
        decoder=DecoderConfig(filters=16),
    )
    return with_values(build_model(config))


def test_the_model_is_left_as_it_is_and_shares_nothing(small):
    images = photos(1, 33, 49, 3)
    names = [layer.name for layer in leaf_layers(small)]
    before, expected = tf1_variables(small), logits(small, images)
    other = fold_batch_norm(small)
    assert [layer.name for layer in leaf_layers(small)] == names
    for name, array in tf1_variables(small).items():
        np.testing.assert_array_equal(array, before[name])
    for variable in small.variables:
        variable.assign(np.zeros(variable.shape, variable.dtype))
    after = logits(other, images)
    assert np.abs(after - expected).max() <= 1e-5 * expected.std()


def test_what_others_look_for_is_kept(small):
    other = fold_batch_norm(small)
    assert other.model_config == small.model_config
    assert other.name == small.name
    assert [x.name for x in other.layers] == [x.name for x in small.layers]
    assert (other.input.shape, other.input.name) == (small.input.shape, "image")
    assert (other.output.shape, other.output.dtype) == (small.output.shape, "float32")


def test_scales_that_share_their_layers_still_do():
    context = ContextConfig(rates=(1,), filters=16, image_pooling_crop_size=(33, 33))
    config = ModelConfig(
        depth_multiplier=0.1,
        image_pyramid=(0.5, 1.0),
        context=context,
        decoder=DecoderConfig(output_strides=()),
    )
    model = with_values(build_model(config))
    other = fold_batch_norm(model)
    assert len(model.get_layer("network").layers) == len(
        other.get_layer("network").layers
    )
    assert batch_normalizations(other) == []
    assert other.count_params() < model.count_params()
    assert difference(model, other, photos(2, 49, 33, 3)) <= 1e-5


def test_recomputation_is_undone(small):
    recomputing = recompute_backbone(small)
    recomputing.model_config = small.model_config
    other = fold_batch_norm(recomputing)
    assert isinstance(other.get_layer("backbone"), keras.Model)
    assert batch_normalizations(other) == []
    assert difference(small, other, photos(1, 33, 49, 3)) <= 1e-5


def test_half_precision_stays_half(small, precision):
    precision("mixed_bfloat16")
    half = build_model(small.model_config)
    load_tf1_variables(half, tf1_variables(small))
    precision("float32")
    other = fold_batch_norm(half)
    assert batch_normalizations(other) == []
    before, after = (
        {x.name: x.compute_dtype for x in leaf_layers(m)} for m in (half, other)
    )
    assert {after[name] for name in after if name.endswith("_depthwise")} == {
        "bfloat16"
    }
    assert after["logits.semantic"] == after["resize"] == "float32"
    computing = [x.name for x in leaf_layers(other) if x.weights]
    assert [after[name] for name in computing] == [before[name] for name in computing]
    assert {w.dtype for w in other.weights} == {"float32"}
    images = photos(1, 33, 49, 3)
    assert difference(small, other, images) <= 1.5 * difference(small, half, images)


def normalized(x, name):
    layer = BatchNormalization(name=name)
    y = layer(x)
    random = np.random.RandomState(sum(name.encode()))
    layer.set_weights([random.uniform(0.5, 2.0, x.shape[-1]) for _ in range(4)])
    return y


def odd_model():
    """Returns a model of layers that `build_model` puts together otherwise."""
    image = keras.Input((None, None, 3), name="image")
    x = normalized(image, "of_image")
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="widening")(x)
    x = normalized(x, "of_widening")
    x = keras.layers.Conv2D(4, 1, bias_initializer="ones", name="biased")(x)
    x = normalized(x, "of_biased")
    x = shared = keras.layers.Conv2D(4, 1, name="of_two_takers")(x)
    x = keras.layers.Add(name="sum")([normalized(x, "of_shared"), shared])
    x = keras.layers.Conv2D(4, 1, activation="tanh", name="bent")(x)
    x = normalized(x, "of_bent")
    twice = keras.layers.Conv2D(4, 1, name="called_twice")
    x = normalized(twice(twice(x)), "of_twice")
    joint = BatchNormalization(name="of_two_givers")
    a, b = (keras.layers.Conv2D(4, 1, name=name)(x) for name in ("a", "b"))
    x = keras.layers.Add(name="logits")([joint(a), joint(b)])
    model = keras.Model(image, x)
    model.model_config = ModelConfig()
    return model


def test_only_what_a_single_convolution_gives_is_folded():
    model = odd_model()
    other = fold_batch_norm(model)
    names = {layer.name for layer in batch_normalizations(other)}
    assert names == {"of_image", "of_shared", "of_bent", "of_twice", "of_two_givers"}
    assert difference(model, other, photos(1, 9, 11, 3) / 255) <= 1e-5


def test_an_output_of_its_own_keeps_a_convolution():
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(4, 1, name="conv")(image)
    inner = keras.Model(image, [x, normalized(x, "of_conv")], name="inner")
    image = keras.Input((None, None, 3), name="image")
    total = keras.layers.Add(name="logits")(inner(image))
    model = keras.Model(image, total)
    model.model_config = ModelConfig()
    other = fold_batch_norm(model)
    assert len(batch_normalizations(other)) == 1
    assert difference(model, other, photos(1, 9, 11, 3)) <= 1e-6
