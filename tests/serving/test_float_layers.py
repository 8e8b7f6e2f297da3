"""Layers of int8 exports are left in float32 until the export passes the gate."""

import json

import pytest
from noise_images import blocky_photos

from deeplab_tf.config import EvalConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor
from deeplab_tf.serving.exporting import ExportRequest, write_and_compare
from deeplab_tf.serving.layer_errors import LayerError, rank_layers
from deeplab_tf.serving.publication import publish_artefact

INFO = DatasetInfo("toys", ("a", "b", "c", "d", "e"))
ENGINES = {".onnx": "onnxruntime", ".xml": "nncf", ".tflite": "litert_quantizer"}


class Records(list):
    """Batches with the one method of a dataset that an export calls."""

    def take(self, count):
        return self[:count]


@pytest.fixture(scope="module")
def request_int8(tiny_model):
    images = blocky_photos(2, 33, 49)
    labels = Predictor(tiny_model).labels(images).numpy()
    records = Records([(images, labels[..., None])])
    config = EvalConfig(eval_crop_size=(33, 49))
    return ExportRequest(tiny_model, config, INFO, records, precision="int8")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENGINES)
def test_layers_are_left_in_float(request_int8, tmp_path, capsys, ending):
    pytest.importorskip("tf2onnx")
    pytest.importorskip(ENGINES[ending])
    path, limit = tmp_path / f"m{ending}", 0.1
    with publish_artefact(str(path)) as unfinished:
        description, summary = write_and_compare(
            request_int8, unfinished, ending, limit
        )
    table, *rounds = capsys.readouterr().out.split("; leaving in float32: ")
    assert "layer   " in table and "points below the model's" in table
    counts = [line.splitlines()[0].count(", ") + 1 for line in rounds]
    comparison = json.loads((tmp_path / f"{path.name}.parity.json").read_text())
    assert comparison["miou"]["drop"] <= limit
    layers = [LayerError(**layer) for layer in comparison["layers"]]
    most = len(rank_layers(layers))
    assert counts == [min(2**i, most) for i in range(len(counts))] and counts
    kept = [layer.name for layer in layers if layer.is_float]
    # Those with the largest errors.
    assert set(kept) == set(rank_layers(layers)[: counts[-1]])
    assert f"in float32: {', '.join(rank_layers(layers)[: counts[-1]])}" in description
    assert summary.startswith("mIoU ")


@pytest.mark.slow
def test_all_layers_in_float_end_the_search(request_int8, tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    (images, labels), *_ = request_int8.records
    wrong = Records([(images, (labels + 1) % 5)])
    request = request_int8._replace(records=wrong)
    path = str(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"at most -200 are allowed$"):
        write_and_compare(request, path, ".onnx", -200)
    comparison = json.loads((tmp_path / "m.onnx.parity.json").read_text())
    assert all(layer["is_float"] for layer in comparison["layers"])
