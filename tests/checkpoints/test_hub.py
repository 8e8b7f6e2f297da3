"""Models are loaded from and uploaded to hubs, by their real clients."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from fake_hub import COMMIT, FakeHub
from loopback import serve
from torch_files import make_tensor, write_safetensors, write_zip

import deeplab_tf
from deeplab_tf.checkpoints import hub
from deeplab_tf.checkpoints.model_card import format_model_card
from deeplab_tf.checkpoints.pytorch.weights import read_torch_file
from deeplab_tf.checkpoints.restore import tf1_variables
from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.errors import UserError

METRICS = {
    "images": 7,
    "miou": 0.76041,
    "pixel_accuracy": 0.9,
    "protocol": {"dataset": "pascal_voc_seg", "split": "val", "eval_scales": [1.0]},
}
NO_DECODER = DecoderConfig(output_strides=())
NO_ASPP = ContextConfig(aspp=False, rates=())
CARD = """---
library_name: deeplab_tf
license: "cc-by-4.0"
pipeline_tag: image-segmentation
tags:
- deeplab
- image-segmentation
- semantic-segmentation
---

# roads

DeepLabv3+ with mobilenet_v2 x 0.1: 5 classes, output stride 16, 3 channels (0..255).

```python
import deeplab_tf

model = deeplab_tf.from_pretrained("hf://me/roads")
labels = model.predict_labels("photo.jpg")
```

## Evaluation

| | |
|---|---|
| miou | 0.7604 |
| pixel_accuracy | 0.9000 |
| images | 7 |
| dataset | pascal_voc_seg |
| split | val |
| eval_scales | [1.0] |

Command:

```bash
python eval.py --checkpoint_dir=logs
```
"""

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture
def fake_hub(monkeypatch):
    """A server that stands for Hugging Face."""
    constants = pytest.importorskip("huggingface_hub.constants")
    template = "/{repo_id}/resolve/{revision}/{filename}"
    with serve(FakeHub) as server:
        server.repositories = {}
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template
        )
        yield server


def assert_equal_weights(model, expected):
    found = tf1_variables(model)
    for name, value in tf1_variables(expected).items():
        np.testing.assert_array_equal(found[name], value)


def test_uploaded_model_is_loaded(fake_hub, tiny_model, tmp_path):
    url = deeplab_tf.push_to_hub(
        tiny_model,
        "hf://me/roads",
        license="cc-by-4.0",
        metrics=METRICS,
        command="python eval.py --checkpoint_dir=logs",
    )
    assert url == f"{fake_hub.url}/me/roads"
    files = fake_hub.repositories["me/roads"]
    assert sorted(files) == ["README.md", "model.keras"]
    assert files["README.md"].decode() == CARD
    model = deeplab_tf.from_pretrained("hf://me/roads", cache_dir=str(tmp_path))
    assert model.model_config == tiny_model.model_config
    assert_equal_weights(model, tiny_model)
    files["model.keras"] = b"a later upload"
    handle = f"hf://me/roads@{COMMIT}"
    model = deeplab_tf.from_pretrained(handle, cache_dir=str(tmp_path))
    assert_equal_weights(model, tiny_model)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_pytorch_are_downloaded(fake_hub, tmp_path, weights):
    path = tmp_path / weights
    if path.suffix == ".bin":
        write_zip(path, {"x": make_tensor((1,))}, {"0": bytes(4)})
    else:
        write_safetensors(path, {"x": ("F32", [1], bytes(4))})
    files = {weights: path.read_bytes(), "config.json": b'{"model_type": "x"}'}
    fake_hub.repositories["me/torch"] = files
    cache = str(tmp_path / "cache")
    found = read_torch_file(hub.download("hf://me/torch", cache))
    assert found.arrays == {"x": np.zeros(1)}
    assert found.description == {"model_type": "x"}
    files[weights] = b"a later upload"
    assert hub.download(f"hf://me/torch@{COMMIT}", cache) == found.path


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, "DeepLabv3+"),
        ({"decoder": NO_DECODER}, "DeepLabv3"),
        ({"decoder": NO_DECODER, "context": NO_ASPP}, "DeepLabv3"),
        (
            {"decoder": NO_DECODER, "context": replace(NO_ASPP, rates=(2, 4))},
            "DeepLabv2",
        ),
        ({"context": ContextConfig(squeeze_and_excitation=True, rates=())}, "LR-ASPP"),
    ],
)
def test_model_card_names_the_architecture(config, name):
    card = format_model_card(ModelConfig(**config), "hf://me/roads", "mit", None, None)
    assert f"\n{name} with mobilenet_v2" in card


def test_missing_models_and_files_are_refused(fake_hub, tmp_path):
    fake_hub.repositories["me/empty"] = {"README.md": b"no model"}
    for handle, reason in (("hf://me/none", "Repository"), ("hf://me/empty", "Entry")):
        with pytest.raises(UserError, match=f"^{handle}: 404 .*{reason} Not") as error:
            deeplab_tf.from_pretrained(handle, cache_dir=str(tmp_path))
        assert "\n" not in str(error.value)


def test_upload_without_permission_is_refused(fake_hub, tiny_model):
    with pytest.raises(UserError, match=r"^hf://other/x: .*403.* logged in") as error:
        deeplab_tf.push_to_hub(tiny_model, "hf://other/x", license="mit")
    assert "\n" not in str(error.value)


def test_kaggle_model_is_found_in_the_cache_of_the_client(
    tiny_model, tmp_path, monkeypatch
):
    """With a version, the client asks no server."""
    pytest.importorskip("kagglehub")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    variation = tmp_path / "models/me/roads/keras/small"
    (variation / "1").mkdir(parents=True)
    (variation / "1.complete").touch()
    handle = "kaggle://me/roads/keras/small/1"
    with pytest.raises(UserError, match=r"must have one .keras file; found none"):
        hub.download(handle)
    path = variation / "1/any_name.keras"
    tiny_model.save(path)
    assert hub.download(handle) == str(path)
    shutil.copy(path, variation / "1/other.keras")
    with pytest.raises(UserError, match=r"found any_name\.keras, other\.keras$"):
        hub.download(handle)
    with pytest.raises(UserError, match="set the environment variable KAGGLEHUB_CACHE"):
        hub.download(handle, cache_dir=str(tmp_path))


@pytest.mark.parametrize("handle", ["hf://roads", "hf://a/b@", "kaggle://me/roads"])
def test_invalid_handle_is_refused(handle):
    with pytest.raises(UserError, match=f"a handle must be .*; received {handle}$"):
        deeplab_tf.from_pretrained(handle)


@pytest.mark.parametrize(
    ("handle", "client"),
    [("hf://me/roads", "huggingface_hub"), ("kaggle://me/a/keras/b", "kagglehub")],
)
def test_missing_client_is_named(handle, client, monkeypatch):
    monkeypatch.setitem(sys.modules, client, None)
    message = rf'^{handle} needs {client}; run pip install "deeplab_tf\[hub\]" '
    with pytest.raises(UserError, match=message):
        deeplab_tf.from_pretrained(handle)


@pytest.mark.parametrize("handle", ["kaggle://me/a/keras/b", "me/roads", "hf://me/a@b"])
def test_models_are_only_uploaded_to_hugging_face(tiny_model, handle):
    with pytest.raises(UserError, match="handle must be hf://user/repo; received "):
        deeplab_tf.push_to_hub(tiny_model, handle, license="mit")
