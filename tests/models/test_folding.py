"""Folding of batch normalisation: same outputs without normalisation layers."""

import keras
import numpy as np
import pytest
from golden_case import FOLDER, GoldenCase, value, zero_kernels

from deeplab_tf.checkpoints.restore import load_tf1_variables, tf1_variables
from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.folding import fold_batch_norm
from deeplab_tf.models.normalization import BatchNormalization
from deeplab_tf.models.recomputation import recompute_backbone
from deeplab_tf.models.variables import batch_normalizations, leaf_layers

pytestmark = pytest.mark.usefixtures("shallow")

CASES = sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem != "preprocess")
# A backbone of each family, and every head.
QUICK = (
    "mobilenet_v2_two_level_decoder",
    "mobilenet_v2_image_pyramid_avg",
    "mobilenet_v3_large_seg_lraspp",
    "resnet_v1_18_beta_os16_decoder",
)


def build_filled_model(config):
    """Builds a model with golden values."""
    with zero_kernels():
        model = build_model(config)
    shapes = {name: array.shape for name, array in tf1_variables(model).items()}
    load_tf1_variables(model, {name: value(name, s) for name, s in shapes.items()})
    return model


def logits(model, images):
    network = keras.Model(model.input, model.get_layer("logits").output)
    return network(images).numpy()


def difference(model, candidate, images):
    """Returns the largest difference of logits, in standard deviations."""
    expected = logits(model, images)
    return np.abs(logits(candidate, images) - expected).max() / expected.std()


def random_images(*shape):
    return np.random.RandomState(4).randint(0, 256, shape).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c not in QUICK),
    ],
)
def test_folding_keeps_logits_and_removes_batch_norm(name):
    case = GoldenCase.load(name)
    model = build_filled_model(ModelConfig.from_official_flags(case.flags))
    folded = fold_batch_norm(model)
    assert batch_normalizations(folded) == []
    # Xception-65 differs as much between eager and graph execution.
    tolerance = 3e-5 if name.startswith("xception") else 1e-5
    assert difference(model, folded, case.images()) <= tolerance


@pytest.fixture
def small_model():
    config = ModelConfig(
        depth_multiplier=0.1,
        num_classes=5,
        context=ContextConfig(rates=(1,), filters=16),
        decoder=DecoderConfig(filters=16),
    )
    return build_filled_model(config)


def test_folding_copies_model_without_changing_it(small_model):
    images = random_images(1, 33, 49, 3)
    names = [layer.name for layer in leaf_layers(small_model)]
    before, expected = tf1_variables(small_model), logits(small_model, images)
    folded = fold_batch_norm(small_model)
    assert [layer.name for layer in leaf_layers(small_model)] == names
    for name, array in tf1_variables(small_model).items():
        np.testing.assert_array_equal(array, before[name])
    for variable in small_model.variables:
        variable.assign(np.zeros(variable.shape, variable.dtype))
    after = logits(folded, images)
    assert np.abs(after - expected).max() <= 1e-5 * expected.std()


def test_folded_model_keeps_names_and_shapes(small_model):
    folded = fold_batch_norm(small_model)
    assert folded.model_config == small_model.model_config
    assert folded.name == small_model.name
    assert [x.name for x in folded.layers] == [x.name for x in small_model.layers]
    assert (folded.input.shape, folded.input.name) == (small_model.input.shape, "image")
    assert folded.output.shape == small_model.output.shape
    assert folded.output.dtype == "float32"


def test_pyramid_scales_still_share_layers():
    context = ContextConfig(rates=(1,), filters=16, image_pooling_crop_size=(33, 33))
    config = ModelConfig(
        depth_multiplier=0.1,
        image_pyramid=(0.5, 1.0),
        context=context,
        decoder=DecoderConfig(output_strides=()),
    )
    model = build_filled_model(config)
    folded = fold_batch_norm(model)
    assert len(model.get_layer("network").layers) == len(
        folded.get_layer("network").layers
    )
    assert batch_normalizations(folded) == []
    assert folded.count_params() < model.count_params()
    assert difference(model, folded, random_images(2, 49, 33, 3)) <= 1e-5


def test_folding_removes_recomputation(small_model):
    recomputing = recompute_backbone(small_model)
    recomputing.model_config = small_model.model_config
    folded = fold_batch_norm(recomputing)
    assert isinstance(folded.get_layer("backbone"), keras.Model)
    assert batch_normalizations(folded) == []
    assert difference(small_model, folded, random_images(1, 33, 49, 3)) <= 1e-5


def test_folding_keeps_half_precision(small_model, precision):
    precision("mixed_bfloat16")
    half = build_model(small_model.model_config)
    load_tf1_variables(half, tf1_variables(small_model))
    precision("float32")
    folded = fold_batch_norm(half)
    assert batch_normalizations(folded) == []
    before, after = (
        {x.name: x.compute_dtype for x in leaf_layers(m)} for m in (half, folded)
    )
    assert {after[name] for name in after if name.endswith("_depthwise")} == {
        "bfloat16"
    }
    assert after["logits.semantic"] == after["resize"] == "float32"
    computing = [x.name for x in leaf_layers(folded) if x.weights]
    assert [after[name] for name in computing] == [before[name] for name in computing]
    assert {w.dtype for w in folded.weights} == {"float32"}
    images = random_images(1, 33, 49, 3)
    tolerance = 1.5 * difference(small_model, half, images)
    assert difference(small_model, folded, images) <= tolerance


def normalize(x, name):
    layer = BatchNormalization(name=name)
    y = layer(x)
    random = np.random.RandomState(sum(name.encode()))
    layer.set_weights([random.uniform(0.5, 2.0, x.shape[-1]) for _ in range(4)])
    return y


def unfoldable_model():
    """Returns a model of layer combinations that `build_model` never makes."""
    image = keras.Input((None, None, 3), name="image")
    x = normalize(image, "of_image")
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="widening")(x)
    x = normalize(x, "of_widening")
    x = keras.layers.Conv2D(4, 1, bias_initializer="ones", name="biased")(x)
    x = normalize(x, "of_biased")
    x = shared = keras.layers.Conv2D(4, 1, name="of_two_consumers")(x)
    x = keras.layers.Add(name="sum")([normalize(x, "of_shared"), shared])
    x = keras.layers.Conv2D(4, 1, activation="tanh", name="activated")(x)
    x = normalize(x, "of_activated")
    twice = keras.layers.Conv2D(4, 1, name="called_twice")
    x = normalize(twice(twice(x)), "of_twice")
    joint = BatchNormalization(name="of_two_inputs")
    a, b = (keras.layers.Conv2D(4, 1, name=name)(x) for name in ("a", "b"))
    x = keras.layers.Add(name="logits")([joint(a), joint(b)])
    model = keras.Model(image, x)
    model.model_config = ModelConfig()
    return model


def test_only_single_convolutions_are_folded():
    model = unfoldable_model()
    folded = fold_batch_norm(model)
    names = {layer.name for layer in batch_normalizations(folded)}
    assert names == {
        "of_image",
        "of_shared",
        "of_activated",
        "of_twice",
        "of_two_inputs",
    }
    assert difference(model, folded, random_images(1, 9, 11, 3) / 255) <= 1e-5


def test_convolution_that_is_an_output_is_not_folded():
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(4, 1, name="conv")(image)
    inner = keras.Model(image, [x, normalize(x, "of_conv")], name="inner")
    image = keras.Input((None, None, 3), name="image")
    total = keras.layers.Add(name="logits")(inner(image))
    model = keras.Model(image, total)
    model.model_config = ModelConfig()
    folded = fold_batch_norm(model)
    assert len(batch_normalizations(folded)) == 1
    assert difference(model, folded, random_images(1, 9, 11, 3)) <= 1e-6
