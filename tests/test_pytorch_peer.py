"""The same network in PyTorch: logits and gradients."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from shallow_network import narrow_network

from deeplab_tf.config import ModelConfig
from deeplab_tf.models.backbones import BACKBONES
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables

torch = pytest.importorskip("torch")

from benchmarks.peers.pytorch import TorchDeepLab  # noqa: E402

SIZE = (65, 97)
MODELS = {
    "mobilenet_v2": ModelConfig("mobilenet_v2", num_classes=5, depth_multiplier=0.35),
    "xception_41": ModelConfig("xception_41", num_classes=5),
    "resnet_v1_50_beta": ModelConfig("resnet_v1_50_beta", num_classes=5),
}


def make_model(config: ModelConfig) -> keras.Model:
    """Returns a model with random statistics and offsets."""
    model = build_model(config)
    random = np.random.default_rng(0)
    for name, variable in official_variables(model).items():
        if "moving_variance" in name:
            variable.assign(random.uniform(0.5, 2.0, variable.shape))
        elif "beta" in name or "moving_mean" in name:
            variable.assign(random.normal(0, 0.1, variable.shape))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_logits_match_the_keras_model(name, monkeypatch):
    narrow = functools.partial(BACKBONES[name], network=narrow_network(name))
    monkeypatch.setitem(BACKBONES, name, narrow)
    model = make_model(MODELS[name])
    image = np.random.default_rng(1).uniform(0, 255, (2, *SIZE, 3)).astype(np.float32)
    expected = model(image, training=False).numpy()
    module = TorchDeepLab(model, SIZE).eval()
    with torch.no_grad():
        logits = module(torch.tensor(image).permute(0, 3, 1, 2))
    actual = logits.permute(0, 2, 3, 1).numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-3 * expected.std()


def test_gradients_reach_every_parameter():
    config = dataclasses.replace(MODELS["mobilenet_v2"], batch_norm_momentum=0.9)
    model = make_model(config)
    module = TorchDeepLab(model, SIZE, is_upsampled=False).train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    image = np.random.default_rng(1).uniform(0, 255, (2, *SIZE, 3)).astype(np.float32)
    logits = module(torch.tensor(image).permute(0, 3, 1, 2))
    assert logits.shape == (2, 5, 17, 25)
    logits.square().mean().backward()
    gradients = [p.grad for p in module.parameters()]
    assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients)
    assert sum(g.numel() for g in gradients) == sum(
        np.prod(v.shape) for v in model.trainable_variables
    )
