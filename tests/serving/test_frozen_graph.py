"""Frozen graphs work with clients of the official ones."""

import numpy as np
import pytest
import tensorflow as tf
from listing import list_outputs

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor
from deeplab_tf.serving.formats import is_artefact, load_artefact
from deeplab_tf.serving.frozen_graph import export_frozen_graph
from deeplab_tf.serving.saved_model import ExportOptions
from deeplab_tf.serving.signatures import Resizing, ResizingPredictor

INFO = DatasetInfo("toys", ("a", "b", "c", "d", "e"))


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


def test_clients_and_loader_get_the_labels_of_the_model(tiny_model, tmp_path):
    path = tmp_path / "frozen_inference_graph.pb"
    export_frozen_graph(tiny_model, str(path), info=INFO)
    assert list_outputs(tmp_path) == [path.name]
    assert is_artefact(str(path))
    artefact = load_artefact(str(path))
    assert (artefact.info, artefact.num_classes, artefact.channels) == (INFO, 5, 3)
    assert artefact.protocol == {"artefact": "frozen graph"}
    for shape in ((1, 33, 49), (2, 20, 17)):
        images = photos(*shape)
        expected = Predictor(tiny_model).labels(images)
        (labels,) = fetch(path, images, "SemanticPredictions")
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(artefact.labels(images), expected)
        probabilities = artefact.probabilities(images)
        np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(probabilities.argmax(-1), expected)


OUTPUTS = [
    *("SemanticPredictions", "SemanticProbabilities"),
    *("RawSemanticPredictions", "RawSemanticProbabilities"),
]


def resize_nearest(labels, size):
    """Returns `[h, w]` resized: half is rounded up, corners on corners."""
    places = [
        np.floor(np.arange(new) * ((old - 1) / (new - 1)) + 0.5).astype(int)
        for old, new in zip(labels.shape, size, strict=True)
    ]
    return labels[np.ix_(*places)]


def test_outputs_are_those_of_the_official_export(tiny_model, tmp_path):
    # Official rule: resize (here to 20x30: the short side becomes 20), pad with 127.5
    # to the crop, predict (raw), cut to the resized size and resize back.
    path, image = tmp_path / "graph.pb", photos(1, 30, 45)
    options = ExportOptions(resizing=Resizing(20))
    export_frozen_graph(tiny_model, str(path), crop_size=(33, 41), options=options)
    labels, probabilities, raw_labels, raw = fetch(path, image, *OUTPUTS)
    resized = tf.raw_ops.ResizeBilinear(images=image, size=(20, 30), align_corners=True)
    canvas = np.full((1, 33, 41, 3), 127.5, np.float32)
    canvas[:, :20, :30] = resized
    logits = np.array(tiny_model(canvas, training=False))
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(raw, expected, atol=1e-5)
    assert raw_labels.dtype == np.float32
    np.testing.assert_array_equal(raw_labels, logits.argmax(-1))
    assert labels.dtype == np.int32
    nearest = resize_nearest(raw_labels[0, :20, :30], (30, 45))
    np.testing.assert_array_equal(labels[0], nearest)
    valid = raw[:, :20, :30]
    expected = tf.raw_ops.ResizeBilinear(
        images=valid, size=(30, 45), align_corners=True
    )
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_labels_from_small_logits_are_frozen(tiny_model, tmp_path):
    options = ExportOptions(upsampled_logits=False)
    export_frozen_graph(tiny_model, str(tmp_path / "graph.pb"), options=options)
    images = photos(1, 30, 45)
    labels, probabilities, *_ = fetch(tmp_path / "graph.pb", images, *OUTPUTS)
    predictor = Predictor(tiny_model, upsampled_logits=False)
    np.testing.assert_array_equal(labels, predictor.labels(images))
    np.testing.assert_allclose(
        probabilities, predictor.probabilities(images), atol=1e-5
    )
    assert (labels != np.array(Predictor(tiny_model).labels(images))).any()


@pytest.mark.slow
def test_windows_scales_and_probabilities_are_frozen(tiny_model, tmp_path):
    options = ExportOptions(window=(33, 33))
    path = tmp_path / "graph.pb"
    export_frozen_graph(tiny_model, str(path), (1.0, 0.5), True, options=options)
    images = photos(1, 40, 70)
    outputs = fetch(path, images, "SemanticPredictions", "SemanticProbabilities")
    expected = Predictor(tiny_model, (1.0, 0.5), True, window=(33, 33))
    np.testing.assert_array_equal(outputs[0], expected.labels(images))
    probabilities = expected.probabilities(images)
    np.testing.assert_allclose(outputs[1], probabilities, rtol=0, atol=1e-5)
    loaded = load_artefact(str(path)).probabilities(images)
    np.testing.assert_array_equal(loaded, outputs[1])


@pytest.mark.slow
def test_resizing_is_frozen(tiny_model, tmp_path):
    resizing, path = Resizing(33, 65), tmp_path / "graph.pb"
    options = ExportOptions(resizing=resizing)
    export_frozen_graph(tiny_model, str(path), options=options)
    expected = ResizingPredictor(Predictor(tiny_model), resizing)
    images = photos(1, 50, 40)
    labels = load_artefact(str(path)).labels(images)
    np.testing.assert_array_equal(labels, expected.labels(images.astype(np.float32)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", r"m\.pb cannot be read as a frozen graph"),
        (b"", r"m\.pb must have the tensors ImageTensor:0 and SemanticPredictions:0"),
        (None, "there is no file .*m.pb"),
    ],
)
def test_invalid_graph_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "m.pb").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_artefact(str(tmp_path / "m.pb"))
    assert "\n" not in str(error.value)


def test_graph_of_unknown_operations_is_refused(tmp_path):
    graph = tf.compat.v1.GraphDef()
    graph.node.add(op="NoSuchOperation", name="ImageTensor")
    (tmp_path / "m.pb").write_bytes(graph.SerializeToString())
    with pytest.raises(UserError, match="cannot be read as a frozen graph") as error:
        load_artefact(str(tmp_path / "m.pb"))
    assert "\n" not in str(error.value)


def test_other_name_is_refused(color_model):
    with pytest.raises(UserError, match=r"must end in \.pb; received graph"):
        export_frozen_graph(color_model, "graph")


@pytest.mark.slow
def test_official_graph_takes_one_image_at_a_time(asset):
    folder = asset("weights/mobilenet_v3_small_lraspp_frozen")
    path = str(folder / "frozen_inference_graph.pb")
    # In programs it is a checkpoint, to which all options of a model apply.
    assert not is_artefact(path)
    artefact = load_artefact(path)
    assert (artefact.num_classes, artefact.channels, artefact.info) == (5, 3, None)
    images = photos(2, 65, 97)
    labels = artefact.labels(images)
    assert (labels.dtype, labels.shape) == (np.int32, (2, 65, 97))
    probabilities = artefact.probabilities(images)
    np.testing.assert_array_equal(probabilities.argmax(-1), labels)
    np.testing.assert_array_equal(artefact.labels(images[1:]), labels[1:])
