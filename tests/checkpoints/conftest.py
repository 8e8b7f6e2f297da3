"""Fixtures of the checkpoint tests: an official model and values for it."""

import numpy as np
import pytest
from golden_case import GoldenCase

from deeplab_tf.checkpoints.restore import tf1_variables
from deeplab_tf.config import ModelConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables


@pytest.fixture(scope="session")
def built_model():
    """The MobileNetV2 of PASCAL VOC."""
    return build_model(ModelConfig.from_official_flags({}))


@pytest.fixture
def zero_model(built_model):
    """The model with all weights 0, so that restored weights are visible."""
    for variable in official_variables(built_model).values():
        variable.assign(np.zeros(variable.shape))
    return built_model


@pytest.fixture(scope="session")
def arrays():
    """Values for all variables of the model."""
    return GoldenCase.load("mobilenet_v2_os16").weights()


@pytest.fixture
def has_values():
    """A function that checks if a model has the expected variable values."""

    def check(model, expected):
        values = tf1_variables(model)
        return all(np.array_equal(values[n], a) for n, a in expected.items())

    return check
