"""Native operations match the layers of `models/`."""

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.config import ConventionsConfig, ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.normalization import BatchNormalization
from deeplab_tf.models.resampling import ResizeLike, WindowMean
from deeplab_tf.models.variables import leaf_layers
from deeplab_tf.serving.cpu_optimization import optimize_for_cpu
from deeplab_tf.serving.native_layers import (
    NativeResizeLike,
    NativeWindowMean,
    use_native_layers,
)


def random(*shape):
    return np.random.RandomState(2).uniform(0, 255, shape).astype(np.float32)


@pytest.mark.parametrize("size", [(33, 49), (40, 31)])
def test_native_layers_give_equal_logits(tiny_model, size):
    images = random(2, *size, 3)
    logits = tiny_model(images, training=False).numpy()
    network = use_native_layers(tiny_model)
    np.testing.assert_allclose(
        network(images, training=False), logits, atol=1e-4 * np.std(logits)
    )
    kinds = [type(layer) for layer in leaf_layers(network)]
    assert kinds.count(NativeResizeLike) == 3
    assert not {ResizeLike, WindowMean, BatchNormalization} & set(kinds)
    assert network.model_config is tiny_model.model_config


@pytest.mark.parametrize("resizing", ["align_corners", "half_pixel"])
@pytest.mark.parametrize("target", [(9, 13), (1, 4), (5, 6), (3, 3)])
def test_native_resizing_matches_resize_like(target, resizing):
    x, like = tf.constant(random(1, 5, 6, 3)), tf.zeros([1, *target, 2])
    native, ours = NativeResizeLike(resizing=resizing), ResizeLike(resizing=resizing)
    np.testing.assert_allclose(native(x, like), ours(x, like), rtol=1e-5)


@pytest.mark.parametrize("rewrite", [use_native_layers, optimize_for_cpu])
def test_conventions_of_other_frameworks_are_exported(rewrite):
    conventions = ConventionsConfig(
        resizing="half_pixel",
        padding="symmetric",
        first_unit_rate="block",
        low_level="output",
        depthwise_normalization=False,
        batch_norm_epsilon=1e-5,
        pixel_mean=(120.0, 110.0, 100.0),
        pixel_deviation=(60.0, 55.0, 50.0),
    )
    model = build_model(ModelConfig(depth_multiplier=0.1, conventions=conventions))
    images = random(1, 40, 64, 3)
    logits = model(images, training=False).numpy()
    exported = rewrite(model)(images, training=False)
    np.testing.assert_allclose(exported, logits, atol=1e-4 * np.std(logits))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop_size": (65, 33), "output_stride": 16},
        {"crop_size": (999, 999), "output_stride": 16, "strides": (2, 3)},
        {"grid_size": (2, 3), "strides": (4, 3)},
    ],
)
@pytest.mark.parametrize("shape", [(1, 8, 9, 4), (None, None, None, 4)])
def test_native_window_mean_matches_keras(options, shape):
    x = tf.constant(random(1, 8, 9, 4))
    means = tf.function(
        NativeWindowMean(**options), [tf.TensorSpec(shape)], autograph=False
    )
    np.testing.assert_allclose(means(x), WindowMean(**options)(x), rtol=1e-5)
    pools = [op.type for op in means.get_concrete_function().graph.get_operations()]
    assert ("AvgPool" in pools) == (bool(options) and shape[0] == 1)


def test_half_precision_models_are_refused(precision):
    precision("mixed_bfloat16")
    model = build_model(ModelConfig.from_official_flags({"depth_multiplier": 0.1}))
    precision("float32")
    with pytest.raises(UserError, match=r"only float32 models .*; received bfloat16"):
        use_native_layers(model)
