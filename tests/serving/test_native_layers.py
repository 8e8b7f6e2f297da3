"""Native operations match the layers of `models/`."""

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.config import ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.normalization import BatchNormalization
from deeplab_tf.models.resampling import ResizeLike, WindowMean
from deeplab_tf.models.variables import leaf_layers
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


@pytest.mark.parametrize("target", [(9, 13), (1, 4), (5, 6), (3, 3)])
def test_native_resizing_matches_resize_like(target):
    x, like = tf.constant(random(1, 5, 6, 3)), tf.zeros([1, *target, 2])
    np.testing.assert_allclose(
        NativeResizeLike()(x, like), ResizeLike()(x, like), rtol=1e-5
    )


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
