"""Exports of every format give the labels of the model on real images."""

import concurrent.futures
import functools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from golden_case import value

from deeplab_tf.checkpoints import restore
from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.config import ModelConfig
from deeplab_tf.images.inputs import read_image
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.serving.formats import load_artefact
from deeplab_tf.serving.frozen_graph import export_frozen_graph
from deeplab_tf.serving.onnx_file import export_onnx
from deeplab_tf.serving.openvino_file import export_openvino
from deeplab_tf.serving.saved_model import export_saved_model
from deeplab_tf.serving.tflite_export import export_tflite

pytestmark = pytest.mark.slow
# k * 16 + 1; photos are resized to it, as a TFLite file has one size.
SIZE = (321, 321)
NETWORKS = {
    "mobilenet_v2": {},
    "mobilenet_v3_large_seg": {"model_variant": "mobilenet_v3_large_seg"},
    "resnet_v1_50": {"model_variant": "resnet_v1_50", "output_stride": 16},
}
FORMATS = {
    "export": (export_saved_model, ()),
    "m.keras": (lambda model, path: model.save(path), ()),
    "m.onnx": (export_onnx, ("tf2onnx", "onnxruntime")),
    "m.pb": (export_frozen_graph, ()),
    "m.tflite": (functools.partial(export_tflite, size=SIZE), ("ai_edge_litert",)),
    "m.xml": (export_openvino, ("tf2onnx", "openvino")),
}


@pytest.fixture(scope="module")
def photos(voc_root):
    """The 60 validation images, uint8 `[1, *SIZE, 3]`."""
    listed = voc_root / "ImageSets/Segmentation/val.txt"
    images = [
        tf.image.resize(read_image(str(voc_root / f"JPEGImages/{stem}.jpg")), SIZE)
        for stem in pathlib.Path(listed).read_text().split()
    ]
    assert len(images) == 60
    return [tf.cast(tf.round(image), tf.uint8).numpy()[None] for image in images]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, photos, voc_checkpoint):
    """A model, and its labels of the photos."""
    model = build_model(ModelConfig.from_official_flags(NETWORKS[request.param]))
    if request.param == "mobilenet_v2":
        assert load_tf1_checkpoint(model, voc_checkpoint).complete
    else:
        shapes = {name: a.shape for name, a in restore.tf1_variables(model).items()}
        weights = {name: value(name, shape) for name, shape in shapes.items()}
        restore.load_tf1_variables(model, weights)
        # With random weights, one class has the highest logits everywhere.
        logits = np.concatenate([model(image) for image in photos[:8]])
        weights["logits/semantic/biases"] -= logits.mean((0, 1, 2))
        restore.load_tf1_variables(model, weights)
    labels = [Predictor(model).labels(image).numpy() for image in photos]
    assert len(np.unique(labels)) > 3
    return model, labels


@pytest.mark.parametrize("name", FORMATS)
def test_labels_of_float32_exports_equal_those_of_the_model(
    network, photos, tmp_path, name
):
    export, needed = FORMATS[name]
    for module in needed:
        pytest.importorskip(module)
    (model, expected), path = network, str(tmp_path / name)
    export(model, path)
    artefact = load_artefact(path)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(artefact.labels, photos))
    shares = [np.mean(a == b) for a, b in zip(found, expected, strict=True)]
    print(f"{model.model_config.backbone} {name}: {np.mean(shares):.4%}")
    assert np.mean(shares) >= 0.999
