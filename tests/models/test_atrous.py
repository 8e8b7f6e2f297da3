"""The output stride: strides become rates, and features stay where they were."""

import numpy as np
import pytest
from golden_case import value

from deeplab_tf.checkpoints.restore import load_tf1_variables, tf1_variables
from deeplab_tf.config import ModelConfig
from deeplab_tf.models.backbones.atrous import strides_and_rates
from deeplab_tf.models.deeplab import build_model

# Layers 1 to 18 of MobileNetV2 (reference, section 1.3).
NOMINAL = [2, 1, *(2, 1), *(2, 1, 1), *(2, 1, 1, 1), *(1, 1, 1), *(2, 1, 1), 1]
STEPS = {
    32: [(stride, 1) for stride in NOMINAL],
    # Layer 15 loses its stride, the following three get rate 2.
    16: [(stride, 1) for stride in NOMINAL[:14]] + [(1, 1)] + 3 * [(1, 2)],
    # Layer 8 loses its stride, 9 to 15 get rate 2; so does 15, then rate 4.
    8: [(s, 1) for s in NOMINAL[:7]] + [(1, 1)] + 7 * [(1, 2)] + 3 * [(1, 4)],
}


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_strides_and_rates_are_the_official_ones(output_stride):
    assert list(strides_and_rates(NOMINAL, output_stride)) == STEPS[output_stride]


def test_a_unit_without_its_stride_keeps_the_rate_before_it():
    # Xception counts from its second unit: block1..3, middle, exit1, exit2 at 8 / 2.
    steps = strides_and_rates([2, 2, 2, 1, 2, 1], 4)
    assert list(steps) == [(2, 1), (2, 1), (1, 1), (1, 2), (1, 2), (1, 4)]


def backbone_at(output_stride):
    config = ModelConfig(depth_multiplier=0.5).at_output_stride(output_stride)
    model = build_model(config)
    shapes = {name: array.shape for name, array in tf1_variables(model).items()}
    load_tf1_variables(model, {n: value(n, s) for n, s in shapes.items()})
    return model.get_layer("backbone")


def test_features_of_a_smaller_stride_contain_those_of_a_larger():
    image = np.random.RandomState(0).uniform(-1, 1, (1, 65, 97, 3)).astype("float32")
    at8, at16, at32 = (np.array(backbone_at(s)(image)[0]) for s in (8, 16, 32))
    assert at8.shape == (1, 9, 13, 160)
    for dense, coarse in ((at8, at16), (at16, at32)):
        dense = dense[:, ::2, ::2]
        np.testing.assert_allclose(dense, coarse, atol=1e-5 * np.std(coarse))
