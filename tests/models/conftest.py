"""Fixtures of the tests of models."""

import pytest
from plain_heads import strided_backbone

from deeplab_tf.models.backbones import BACKBONES


@pytest.fixture(scope="module")
def quick_backbone():
    """Puts one layer in the place of fifty: the heads are tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "mobilenet_v2", strided_backbone)
        yield
