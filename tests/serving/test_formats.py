"""Exported models can be evaluated like Keras models."""

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.config import EvalConfig
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.serving.formats import is_artefact, load_artefact
from deeplab_tf.serving.saved_model import SavedModelPredictor, export_saved_model


@pytest.fixture(scope="module")
def export_path(strided_model, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("exported") / "export")
    export_saved_model(strided_model, path)
    return path


def test_artefact_formats_are_recognized_by_file_name(export_path, tmp_path):
    assert is_artefact(export_path)
    assert is_artefact(str(tmp_path / "model.tflite"))
    assert is_artefact(str(tmp_path / "model.onnx"))
    (tmp_path / "logs.tflite").mkdir()
    others = ("logs.tflite", "model.ckpt-0", "model.keras")
    for path in (tmp_path, *(tmp_path / name for name in others)):
        assert not is_artefact(str(path))


def test_folder_is_loaded_as_a_saved_model(export_path):
    assert isinstance(load_artefact(export_path), SavedModelPredictor)


@pytest.mark.parametrize(
    ("name", "kind", "needs"),
    [
        ("model.keras", "a .keras", "keras"),
        ("model.tflite", "a TFLite", "ai_edge_litert.interpreter"),
        ("model.onnx", "an ONNX", "onnxruntime"),
    ],
)
def test_suffix_selects_the_loader(name, kind, needs, tmp_path):
    pytest.importorskip(needs)
    (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(UserError, match=f"{name} cannot be read as {kind} file"):
        load_artefact(str(tmp_path / name))


def test_artefact_scores_like_its_model(strided_model, export_path):
    random = np.random.RandomState(3)
    images = random.randint(0, 256, (3, 33, 49, 3)).astype(np.float32)
    labels = random.randint(0, 4, (3, 33, 49, 1)).astype(np.uint8)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)
    config = EvalConfig(eval_batch_size=2)
    expected = Evaluator(strided_model, config, shows_progress=False).evaluate(dataset)
    artefact = load_artefact(export_path)
    artefact.num_classes = 4
    metrics = Evaluator(artefact, config, shows_progress=False).evaluate(dataset)
    assert metrics["confusion_matrix"] == expected["confusion_matrix"]
    assert np.count_nonzero(np.sum(metrics["confusion_matrix"], 0)) > 1
    assert metrics["protocol"]["artefact"] == "SavedModel"


def test_empty_batch_is_refused(export_path):
    with pytest.raises(UserError, match=r"needs at least one image; received \[0, 9,"):
        load_artefact(export_path).labels(np.zeros((0, 9, 9, 3), np.uint8))
