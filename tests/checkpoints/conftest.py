"""One official model for all tests of checkpoints."""

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
def zeros(built_model):
    """That model with every weight 0, so that what was restored is seen."""
    for variable in official_variables(built_model).values():
        variable.assign(np.zeros(variable.shape))
    return built_model


@pytest.fixture(scope="session")
def arrays():
    """Values for all of its variables."""
    return GoldenCase.load("mobilenet_v2_os16").weights()


@pytest.fixture
def holds():
    """A function: whether a model's variable of every given name has that value."""

    def check(model, expected):
        found = tf1_variables(model)
        return all(np.array_equal(found[n], a) for n, a in expected.items())

    return check
