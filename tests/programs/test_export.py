"""export.py: flags to signatures and to what travels along."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from program_runs import assert_refused, run

from deeplab_tf.checkpoints.tf1 import save_tf1_checkpoint
from deeplab_tf.config import Experiment
from deeplab_tf.data.info import generic_info
from deeplab_tf.inference import Predictor, predict_labels
from deeplab_tf.serving.saved_model import SavedModelPredictor

EXPORT = "deeplab_tf.programs.export"


@pytest.fixture(scope="module")
def logs(tiny_model, tmp_path_factory):
    """A folder with a checkpoint of `tiny_model` and what describes it."""
    folder = tmp_path_factory.mktemp("logs")
    save_tf1_checkpoint(tiny_model, str(folder / "model.ckpt-7"))
    experiment = Experiment(model=tiny_model.model_config, info=generic_info(5))
    (folder / "experiment.json").write_text(experiment.to_json())
    return folder


def exported(logs, folder, *arguments):
    """Returns the path of an export of `logs`."""
    path = str(folder / "exported")
    where = (f"--checkpoint_path={logs}", f"--export_path={path}")
    run(EXPORT, *where, "--output_stride=16", *arguments)
    return path


def photos(*shape):
    return np.random.RandomState(6).randint(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def plain_export(logs, tmp_path_factory):
    """An export without further flags."""
    return exported(logs, tmp_path_factory.mktemp("plain"))


def test_an_export_holds_all_it_can(plain_export, tiny_model):
    path = plain_export
    assert sorted(os.listdir(f"{path}/assets.extra")) == [
        "dataset_info.json",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "model.json",
        "tf_serving_warmup_requests",
    ]
    predictor = SavedModelPredictor(path)
    images = photos(2, 33, 49)
    labels = predictor.labels(images)
    np.testing.assert_array_equal(labels, predict_labels(tiny_model, images))
    serve = tf.saved_model.load(path).signatures["serving_default"]
    assert list(serve.structured_outputs) == ["SemanticPredictions"]


@pytest.mark.slow
def test_flags_change_what_is_exported(logs, tiny_model, tmp_path):
    path = exported(
        *(logs, tmp_path, "--export_probabilities", "--noexport_weights"),
        *("--nofold_batch_norm", "--window_size=33,33", "--inference_scales=1,0.5"),
    )
    assert "model.ckpt.index" not in os.listdir(f"{path}/assets.extra")
    loaded = tf.saved_model.load(path)
    images = photos(1, 49, 65)
    served = loaded.signatures["serving_default"](ImageTensor=tf.constant(images))
    predictor = Predictor(tiny_model, (1.0, 0.5), window=(33, 33))
    np.testing.assert_array_equal(
        served["SemanticPredictions"], predictor.labels(images)
    )
    probabilities = predictor.probabilities(images)
    np.testing.assert_allclose(
        served["SemanticProbabilities"], probabilities, rtol=0, atol=1e-5
    )
    assert np.mean(predict_labels(tiny_model, images) != predictor.labels(images)) > 0
    normalised = any("moving_mean" in v.name for v in loaded.variables)
    assert normalised


def test_images_are_resized_if_asked_for(logs, tiny_model, tmp_path):
    path = exported(logs, tmp_path, "--min_resize_value=33", "--max_resize_value=65")
    images = photos(1, 66, 99)
    labels = SavedModelPredictor(path).labels(images)
    assert labels.shape == (1, 66, 99)
    assert np.mean(labels != predict_labels(tiny_model, images)) > 0.01


@pytest.mark.slow
def test_half_precision_is_exported(logs, tiny_model, tmp_path):
    path = exported(logs, tmp_path, "--precision=bfloat16")
    graph = tf.saved_model.load(path).signatures["serving_default"].graph
    functions = graph.as_graph_def().library.function
    kinds = {
        node.attr["T"].type
        for function in functions
        for node in function.node_def
        if node.op == "Conv2D"
    }
    assert tf.bfloat16.as_datatype_enum in kinds
    images = photos(1, 65, 97)
    labels = SavedModelPredictor(path).labels(images)
    assert np.mean(labels == predict_labels(tiny_model, images)) > 0.9


def test_the_model_is_told_as_it_was_exported(plain_export, tiny_model):
    with open(f"{plain_export}/assets.extra/model.json") as file:
        text = json.dumps({"model": json.load(file)})
    assert Experiment.from_json(text).model == tiny_model.model_config


@pytest.mark.parametrize(
    ("message", "flag"),
    [
        ("need min_resize_value", "--max_resize_value=513"),
        ("need min_resize_value", "--resize_factor=16"),
        ("min_resize_value", "--min_resize_value=0"),
        ("window_size must be positive", "--window_size=0,33"),
    ],
)
def test_sizes_that_cannot_be_are_refused(logs, tmp_path, message, flag):
    where = (f"--checkpoint_path={logs}", f"--export_path={tmp_path}/exported")
    assert_refused(message, EXPORT, *where, flag)
    assert os.listdir(tmp_path) == []
