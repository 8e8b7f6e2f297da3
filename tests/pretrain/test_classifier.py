"""Classifiers: official variables, and a backbone for segmentation."""

import keras
import numpy as np
import pytest
from golden_case import manifest, value

from deeplab_tf import (
    ModelConfig,
    UserError,
    build_model,
    load_tf1_variables,
    tf1_variables,
)
from deeplab_tf.checkpoints.restore import last_layer_scopes
from deeplab_tf.models.backbones import BACKBONES
from deeplab_tf.models.complexity import build_uninitialized
from deeplab_tf.models.variables import official_variables
from deeplab_tf.pretrain.classifier import build_classifier

FAMILIES = ("xception", "resnet")
CLASSIFIED = [
    name
    for name in BACKBONES
    if name.startswith(FAMILIES) and not name.endswith(("_34", "_152", "c_50", "c_101"))
]
SMALL = ModelConfig(backbone="resnet_v1_18_beta", num_classes=7, output_stride=32)


@pytest.mark.parametrize("backbone", CLASSIFIED)
def test_classifier_has_official_variables(backbone):
    config = ModelConfig(backbone=backbone, num_classes=1000, output_stride=32)
    model = build_uninitialized(lambda: build_classifier(config))
    found = {n: tuple(v.shape) for n, v in official_variables(model).items()}
    scope = backbone.removesuffix("_beta")
    depth = 512 if "18" in backbone else 2048
    head = {
        f"{scope}/logits/weights": (1, 1, depth, 1000),
        f"{scope}/logits/biases": (1000,),
    }
    assert found == manifest(backbone) | head
    assert model.output.shape == (None, 1000)
    assert model.get_layer("logits").output.shape == (None, 1, 1, 1000)
    dropped = [x.rate for x in model.layers if isinstance(x, keras.layers.Dropout)]
    assert dropped == ([0.5] if backbone.startswith("xception") else [])


@pytest.fixture(scope="module")
def classifier():
    """A classifier in which every weight affects the output."""
    model = build_classifier(SMALL)
    arrays = {n: value(n, a.shape) for n, a in tf1_variables(model).items()}
    load_tf1_variables(model, arrays)
    return model


def test_classifier_checkpoint_initialises_backbone(classifier):
    arrays = tf1_variables(classifier)
    # As for segmentation: a different output stride and different classes.
    model = build_model(ModelConfig(backbone="resnet_v1_18_beta"))
    report = load_tf1_variables(model, arrays)
    backbone = set(manifest("resnet_v1_18_beta"))
    assert set(report.restored) == backbone
    assert not report.skipped and not report.inflated
    assert all(n.startswith(last_layer_scopes(False)) for n in report.missing)
    assert set(report.missing) == set(official_variables(model)) - backbone
    assert set(report.unexpected) == {
        "resnet_v1_18/logits/weights",
        "resnet_v1_18/logits/biases",
    }
    found = tf1_variables(model)
    assert all(np.array_equal(found[name], arrays[name]) for name in backbone)


def test_logits_are_linear_in_mean_features(classifier):
    images = np.random.RandomState(0).uniform(0, 255, (2, 65, 97, 3)).astype("float32")
    # The scaling to [-1, 1] is part of the model.
    features, *_ = classifier.get_layer("backbone")(images * (2 / 255) - 1)
    assert features.shape == (2, 3, 4, 512)
    arrays = tf1_variables(classifier)
    kernel = arrays["resnet_v1_18/logits/weights"][0, 0]
    biases = arrays["resnet_v1_18/logits/biases"]
    expected = np.asarray(features).mean((1, 2)) @ kernel + biases
    np.testing.assert_allclose(classifier(images), expected, rtol=1e-4, atol=1e-4)


def test_unsupported_backbone_is_refused():
    message = r"one of resnet_v1_18, .*xception_71 to be pre-trained; .*'mobilenet_v2'"
    with pytest.raises(UserError, match=message):
        build_classifier(ModelConfig(backbone="mobilenet_v2"))
