"""Fixtures of the tests of models."""

import pytest
from reference_heads import strided_backbone

from deeplab_tf.models.backbones import BACKBONES


@pytest.fixture(scope="module")
def stub_backbone():
    """Replaces the backbone by one layer for tests of the heads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "mobilenet_v2", strided_backbone)
        yield
