"""Frozen graphs work with clients of the official ones."""

import numpy as np
import pytest
import tensorflow as tf
from listing import list_outputs

from deeplab_tf.inference import Predictor
from deeplab_tf.serving.frozen_graph import write_frozen_graph
from deeplab_tf.serving.saved_model import ExportOptions, export_saved_model


def fetch(path, images, *names):
    """Fetches outputs of a graph as a TensorFlow 1 client does."""
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        assert not [op for op in graph.get_operations() if "VarHandle" in op.type]
        return session.run([f"{name}:0" for name in names], {"ImageTensor:0": images})


def photos(*shape):
    return np.random.RandomState(6).randint(0, 256, (*shape, 3)).astype(np.uint8)


def test_old_client_gets_labels_by_official_names(tiny_model, tiny_export, tmp_path):
    path = tmp_path / "frozen_inference_graph.pb"
    write_frozen_graph(tiny_export, str(path))
    assert list_outputs(tmp_path) == [path.name]
    for shape in ((1, 33, 49), (2, 20, 17)):
        images = photos(*shape)
        (labels,) = fetch(path, images, "SemanticPredictions")
        expected = Predictor(tiny_model).labels(images)
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.slow
def test_windows_scales_and_probabilities_are_frozen(tiny_model, tmp_path):
    options = ExportOptions(window=(33, 33), probabilities=True)
    export = str(tmp_path / "export")
    export_saved_model(tiny_model, export, (1.0, 0.5), True, options=options)
    path = tmp_path / "graph.pb"
    write_frozen_graph(export, str(path))
    images = photos(1, 40, 70)
    outputs = fetch(path, images, "SemanticPredictions", "SemanticProbabilities")
    expected = Predictor(tiny_model, (1.0, 0.5), True, window=(33, 33))
    np.testing.assert_array_equal(outputs[0], expected.labels(images))
    probabilities = expected.probabilities(images)
    np.testing.assert_allclose(outputs[1], probabilities, rtol=0, atol=1e-5)
