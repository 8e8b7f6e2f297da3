"""The output stride: strides become rates and features keep their positions."""

import keras
import numpy as np
import pytest
from golden_case import value, zero_kernels
from shallow_network import narrow_network

from deeplab_tf import config
from deeplab_tf.models.backbones import BACKBONES
from deeplab_tf.models.backbones.atrous import strides_and_rates
from deeplab_tf.models.variables import official_variables

# Layers 1 to 18 of MobileNetV2 (reference, section 1.3).
NOMINAL = [2, 1, *(2, 1), *(2, 1, 1), *(2, 1, 1, 1), *(1, 1, 1), *(2, 1, 1), 1]
STEPS = {
    32: [(stride, 1) for stride in NOMINAL],
    # Layer 15 loses its stride, the next three get rate 2.
    16: [(stride, 1) for stride in NOMINAL[:14]] + [(1, 1)] + 3 * [(1, 2)],
    # Layer 8 loses its stride, 9 to 15 get rate 2; so does 15, then rate 4.
    8: [(s, 1) for s in NOMINAL[:7]] + [(1, 1)] + 7 * [(1, 2)] + 3 * [(1, 4)],
    # Layers 5, 8 and 15 lose their strides.
    4: [
        *([(s, 1) for s in NOMINAL[:4]] + [(1, 1)]),
        *(3 * [(1, 2)] + 7 * [(1, 4)] + 3 * [(1, 8)]),
    ],
    # And layer 3.
    2: [
        *((2, 1), (1, 1), (1, 1)),
        *(2 * [(1, 2)] + 3 * [(1, 4)] + 7 * [(1, 8)] + 3 * [(1, 16)]),
    ],
}


@pytest.mark.parametrize("output_stride", STEPS)
def test_strides_and_rates_match_official_code(output_stride):
    assert list(strides_and_rates(NOMINAL, output_stride)) == STEPS[output_stride]


def test_unit_that_loses_its_stride_keeps_previous_rate():
    # Xception counts from its second unit: block1..3, middle, exit1, exit2 at 8 / 2.
    steps = strides_and_rates([2, 2, 2, 1, 2, 1], 4)
    assert list(steps) == [(2, 1), (2, 1), (1, 1), (1, 2), (1, 2), (1, 4)]


def build_feature_models(strides, backbone, **options):
    """Returns models of high-level features by stride, with equal weights."""
    models = {}
    for stride in strides:
        image = keras.Input((None, None, 3))
        options["network"] = narrow_network(backbone)
        with zero_kernels():
            features = BACKBONES[backbone](image, stride, **options)
        models[stride] = keras.Model(image, features["high_level"])
    first, *rest = models.values()
    for name, variable in official_variables(first).items():
        variable.assign(value(name, variable.shape))
    for model in rest:
        for source, variable in zip(first.variables, model.variables, strict=True):
            assert source.shape == variable.shape
            variable.assign(source)
    return models


def random_images(sizes):
    random = np.random.RandomState(0)
    return [random.uniform(-1, 1, (1, *s, 3)).astype("float32") for s in sizes]


def assert_consistent(features):
    """Asserts that subsampled fine features equal the coarser ones.

    Args:
        features: Output stride -> `[1, height, width, channels]`.
    """
    finest = min(features)
    for stride, coarse in features.items():
        step = stride // finest
        assert np.std(coarse) > 0
        sampled = features[finest][:, ::step, ::step]
        np.testing.assert_allclose(sampled, coarse, atol=1e-4 * np.std(coarse))


ODD, EVEN = (65, 33), (64, 36)  # the first stays odd down to stride 32


@pytest.mark.parametrize(
    ("backbone", "options", "sizes"),
    [
        # The SAME padding of its strided convolutions forbids even sizes. MobileNetV3
        # squeezes and excites, so that every cell depends on every other cell.
        ("mobilenet_v2", {"depth_multiplier": 0.25}, [ODD]),
        ("mobilenet_edgetpu", {"depth_multiplier": 0.25}, [ODD]),
        ("xception_41", {"multi_grid": (1, 2, 4)}, [ODD, EVEN]),
        ("resnet_v1_18", {"multi_grid": (1, 2)}, [ODD, EVEN]),
        ("resnet_v1_50_beta", {"multi_grid": (1, 2, 4)}, [ODD, EVEN]),
    ],
)
def test_subsampled_dense_features_equal_coarse_features(backbone, options, sizes):
    least = config.BACKBONES[backbone].least_output_stride
    strides = [stride for stride in (2, 4, 8, 16, 32) if stride >= least]
    models = build_feature_models(strides, backbone, **options)
    for image in random_images(sizes):
        features = {stride: np.array(model(image)) for stride, model in models.items()}
        for stride, dense in features.items():
            cells = tuple(-(-side // stride) for side in image.shape[1:3])
            assert dense.shape[1:3] == cells
        assert_consistent(features)


def test_subsampled_cascade_features_equal_coarse_features():
    options = {"cascade_blocks": 3, "multi_grid": (1, 2)}
    strides = (8, 16, 32, 64, 128, 256)
    models = build_feature_models(strides, "resnet_v1_18", **options)
    for image in random_images([(129, 65), (96, 128)]):
        features = {stride: np.array(model(image)) for stride, model in models.items()}
        assert features[256].shape[1:3] == tuple(-(-n // 256) for n in image.shape[1:3])
        assert_consistent(features)
