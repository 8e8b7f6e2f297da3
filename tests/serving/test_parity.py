"""The parity gate refuses artefacts that score worse than their model."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.config import EvalConfig
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.files.outputs import LEDGER, write_text
from deeplab_tf.inference import Predictor
from deeplab_tf.serving import parity
from deeplab_tf.serving.publication import publish_artefact
from deeplab_tf.serving.saved_model import export_saved_model
from deeplab_tf.serving.tflite_export import export_tflite

pytest.importorskip("ai_edge_litert.interpreter")
SIZE = (33, 49)
CONFIG = EvalConfig(eval_crop_size=SIZE)


def shift_bias(model):
    """Returns a copy of `strided_model` with a different bias."""
    worse = keras.models.clone_model(model)
    kernel, bias = model.get_layer("logits").get_weights()
    worse.get_layer("logits").set_weights([kernel, bias + np.eye(4)[3] / 2])
    worse.model_config = model.model_config
    return worse


@pytest.fixture(scope="module")
def dataset(strided_model):
    """Two images and the labels that `strided_model` gives them."""
    images = np.random.RandomState(6).randint(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    labels = Predictor(strided_model, crop_size=SIZE).labels(images)
    return [
        (image[None], label[None, ..., None])
        for image, label in zip(images, labels, strict=True)
    ]


def visible_files(folder):
    return sorted(x.name for x in folder.iterdir() if x.name != LEDGER)


def export(model, path):
    export_tflite(model, path, SIZE)


def test_equal_score_passes(strided_model, dataset, tmp_path):
    path = str(tmp_path / "m.tflite")
    with publish_artefact(path) as unpublished:
        export(strided_model, unpublished)
        comparison = parity.gate(strided_model, unpublished, dataset, CONFIG, 0.1)
        assert not tf.io.gfile.exists(path)
    written = json.loads((tmp_path / "m.tflite.parity.json").read_text())
    assert written == json.loads(json.dumps(comparison))
    assert written["images"] == 2
    assert written["miou"]["model"] == 1.0
    assert written["miou"]["artefact"] > 0.999
    assert written["max_miou_drop"] == 0.1
    assert written["protocol"]["artefact"]["precision"] == "float32"
    assert written["protocol"]["model"]["eval_crop_size"] == [33, 49]
    assert visible_files(tmp_path) == ["m.tflite", "m.tflite.parity.json"]


def test_worse_score_is_refused_and_earlier_file_kept(strided_model, dataset, tmp_path):
    path = tmp_path / "m.tflite"
    write_text("earlier", str(path))
    with (
        pytest.raises(
            UserError,
            match=r"\.\d\d points below .*100.00%; at most 5 .* see .*refused.json$",
        ) as error,
        publish_artefact(str(path)) as unpublished,
    ):
        export(shift_bias(strided_model), unpublished)
        parity.gate(strided_model, unpublished, dataset, CONFIG, 5)
    assert "\n" not in str(error.value)
    assert path.read_text() == "earlier"
    kept = json.loads((tmp_path / "m.tflite.refused.json").read_text())
    assert kept["miou"]["drop"] > 5
    assert visible_files(tmp_path) == ["m.tflite", "m.tflite.refused.json"]
    with publish_artefact(str(path)) as unpublished:
        export(strided_model, unpublished)
        parity.gate(strided_model, unpublished, dataset, CONFIG, 5)
    assert visible_files(tmp_path) == ["m.tflite", "m.tflite.parity.json"]


def test_worse_score_passes_a_wide_gate(strided_model, dataset, tmp_path):
    path = str(tmp_path / "m.tflite")
    worse = shift_bias(strided_model)
    export(worse, path)
    comparison = parity.gate(strided_model, path, dataset, CONFIG, 100)
    scored = Evaluator(worse, CONFIG).evaluate(dataset)
    assert comparison["miou"]["drop"] == pytest.approx(100 * (1 - scored["miou"]))
    assert comparison["miou"]["drop"] > 5
    # Swapped, the artefact is the better one.
    swapped = parity.compare_metrics(
        scored, Evaluator(strided_model, CONFIG).evaluate(dataset)
    )
    assert swapped["miou"]["drop"] == pytest.approx(-comparison["miou"]["drop"])


def test_folders_are_published(strided_model, dataset, tmp_path):
    path = tmp_path / "export"
    for _ in range(2):
        with publish_artefact(f"{path}/") as unpublished:
            export_saved_model(strided_model, unpublished, crop_size=SIZE)
            parity.gate(strided_model, unpublished, dataset, CONFIG, 0.1)
    assert (path / "saved_model.pb").exists()
    assert visible_files(tmp_path) == ["export", "export.parity.json"]


def test_metrics_of_different_images_are_not_compared():
    with pytest.raises(UserError, match="on 3 images and the artefact on 2"):
        parity.compare_metrics({"images": 3}, {"images": 2})


def test_refused_int8_file_reports_layer_errors(
    strided_model, dataset, tmp_path, capsys
):
    path = str(tmp_path / "m.tflite")
    # Calibrated on black images, it clips everything brighter.
    dark = [np.zeros((1, *SIZE, 3))]
    export_tflite(strided_model, path, SIZE, "int8", calibration=dark)
    with pytest.raises(UserError, match="points below"):
        parity.gate(strided_model, path, dataset, CONFIG, 1)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["layer", "error"]
    errors = {row.split()[0]: float(row.split()[1].rstrip("%")) for row in rows}
    assert any("logits" in name for name in errors)
    assert max(errors.values()) > 20
    comparison = json.loads((tmp_path / "m.tflite.parity.json").read_text())
    assert len(comparison["layers"]) == len(rows)


def test_layer_errors_of_a_calibrated_int8_file_are_small(
    strided_model, dataset, tmp_path
):
    path = str(tmp_path / "m.tflite")
    export_tflite(strided_model, path, SIZE, "int8", calibration=[dataset[0]])
    layers = parity.measure_layer_errors(strided_model, path, dataset, SIZE)
    assert len(layers) >= 2
    errors = [layer.error for layer in layers]
    assert errors[-1] > 0.001 and max(errors) < 0.12
