"""OpenVINO files give the labels of the exported model."""

import pathlib
import sys

import numpy as np
import pytest
from listing import list_outputs
from noise_images import blocky_photos as photos

from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.config import DataConfig, EvalConfig, ModelConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.serving import parity
from deeplab_tf.serving.formats import is_artefact, load_artefact
from deeplab_tf.serving.onnx_file import export_onnx
from deeplab_tf.serving.openvino_file import OpenVinoPredictor, export_openvino
from deeplab_tf.serving.publication import publish_artefact

openvino = pytest.importorskip("openvino")
pytest.importorskip("tf2onnx")
INFO = DatasetInfo("toys", ("a", "b", "c", "d", "e"))


@pytest.fixture(scope="module")
def path(tiny_model, tmp_path_factory):
    """An OpenVINO file of `tiny_model` with probabilities."""
    path = str(tmp_path_factory.mktemp("openvino") / "model.xml")
    export_openvino(tiny_model, path, probabilities=True, info=INFO)
    return path


@pytest.mark.parametrize("shape", [(1, 33, 49), (3, 40, 31), (2, 17, 18), (1, 1, 70)])
def test_batches_of_any_size_are_labelled(path, tiny_model, shape):
    file, expected = load_artefact(path), Predictor(tiny_model)
    images = photos(*shape)
    labels = file.labels(images)
    assert (labels.dtype, labels.shape) == (np.int32, shape)
    assert np.mean(labels == expected.labels(images).numpy()) > 0.999
    np.testing.assert_allclose(
        file.probabilities(images), expected.probabilities(images), atol=1e-4
    )
    assert (file.info, file.num_classes, file.channels) == (INFO, 5, 3)
    assert file.protocol == {"artefact": "OpenVINO", "precision": "float32"}


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_precisions(path, tiny_model, tmp_path, precision):
    calibration = None
    if precision == "int8":
        pytest.importorskip("nncf")
        calibration = [photos(2, 40, 31), photos(1, 33, 49)[0]]
    file = tmp_path / "m.xml"
    export_openvino(tiny_model, str(file), True, precision, calibration)
    exact, images = OpenVinoPredictor(path), photos(1, 33, 49)
    reduced = OpenVinoPredictor(str(file))
    assert reduced.protocol["precision"] == precision
    error = np.abs(reduced.probabilities(images) - exact.probabilities(images)).max()
    assert error < 0.1
    if precision == "float16":
        weights = [pathlib.Path(p).with_suffix(".bin") for p in (path, file)]
        sizes = [weight.stat().st_size for weight in weights]
        assert sizes[1] < 0.51 * sizes[0]
    operations = {
        op.get_type_name() for op in openvino.Core().read_model(file).get_ops()
    }
    assert ("FakeQuantize" in operations) == (precision == "int8")


@pytest.mark.slow
def test_layer_errors_equal_those_of_onnx(tiny_model, tmp_path):
    pytest.importorskip("nncf")
    pytest.importorskip("onnxruntime")
    images = [photos(2, 33, 49)]

    def measure(export, name, float_layers):
        path = str(tmp_path / name)
        export(tiny_model, path, False, "int8", images, None, float_layers)
        layers = parity.measure_layer_errors(tiny_model, path, images)
        return {layer.name: layer.error for layer in layers}

    errors = measure(export_openvino, "m.xml", ())
    others = measure(export_onnx, "m.onnx", ())
    assert list(errors) == list(others)
    ratios = [errors[name] / others[name] for name in errors]
    assert 0.7 < np.median(ratios) < 1.3
    name = "MobilenetV2.expanded_conv_1.depthwise"
    assert measure(export_openvino, "m.xml", [name])[name] < errors[name] / 100
    assert max(measure(export_openvino, "m.xml", list(errors)).values()) < 1e-5


def test_only_int8_takes_calibration_images(tiny_model):
    for precision, images in (("int8", None), ("float16", [photos(1, 9, 9)])):
        with pytest.raises(UserError, match=r"only the precision int8 takes calib"):
            export_openvino(tiny_model, "m.xml", False, precision, images)
    pytest.importorskip("nncf")
    with pytest.raises(UserError, match="calibration needs at least one image"):
        export_openvino(tiny_model, "m.xml", False, "int8", [])


def test_graph_and_weights_are_published_together(strided_model, tmp_path):
    images = photos(1, 33, 49)
    labels = Predictor(strided_model).labels(images)[..., None]
    path = tmp_path / "m.xml"
    for _ in range(2):  # the second replaces the first
        with publish_artefact(str(path)) as unfinished:
            export_openvino(strided_model, unfinished)
            parity.gate(strided_model, unfinished, [(images, labels)], max_miou_drop=0)
        assert list_outputs(tmp_path) == ["m.bin", "m.xml", "m.xml.parity.json"]
    assert is_artefact(str(path))
    artefact = load_artefact(str(path))
    artefact.num_classes = 4
    metrics = Evaluator(artefact, shows_progress=False).evaluate([(images, labels)])
    assert metrics["pixel_accuracy"] > 0.999
    before = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    with pytest.raises(KeyboardInterrupt), publish_artefact(str(path)) as unfinished:
        export_openvino(strided_model, unfinished)
        raise KeyboardInterrupt
    assert (path.read_bytes(), path.with_suffix(".bin").read_bytes()) == before


def test_foreign_weights_are_kept(strided_model, tmp_path):
    (tmp_path / "m.bin").write_text("mine")
    with pytest.raises(UserError, match=r"m\.bin .* not written by deeplab_tf"):
        export_openvino(strided_model, str(tmp_path / "m.xml"))
    assert list_outputs(tmp_path) == ["m.bin"]


def test_killed_publication_never_combines_graph_and_weights(
    strided_model, tmp_path, monkeypatch
):
    path = tmp_path / "m.xml"
    export_openvino(strided_model, str(path))
    replace = pathlib.os.replace

    def stop_at_graph(source, target):
        if str(target) == str(path):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", stop_at_graph)
    with pytest.raises(KeyboardInterrupt):
        export_openvino(strided_model, str(path))
    assert list_outputs(tmp_path) == ["m.bin"]
    with pytest.raises(UserError, match=r"^there is no file .*m\.xml$"):
        load_artefact(str(path))


def test_unreadable_files_are_refused(path, tmp_path):
    graph, weights = (
        pathlib.Path(path).read_bytes(),
        pathlib.Path(path).with_suffix(".bin"),
    )
    file = tmp_path / "m.xml"
    file.write_bytes(graph)
    with pytest.raises(UserError, match=r"^there is no file .*m\.bin$"):
        load_artefact(str(file))
    for content, rest in (
        (b"", b""),
        (b"garbage" * 99, b""),
        (graph[:-999], weights.read_bytes()),
        (graph, weights.read_bytes()[:-99]),
        # Can be read, but not compiled.
        (graph.replace(b"align_corners", b"asymmetric!!!"), weights.read_bytes()),
    ):
        file.write_bytes(content)
        file.with_suffix(".bin").write_bytes(rest)
        with pytest.raises(UserError, match=r"m\.xml cannot be read as") as error:
            load_artefact(str(file))
        assert "\n" not in str(error.value)


def test_foreign_graph_is_refused(tmp_path):
    x = openvino.opset13.parameter([1], name="x")
    model = openvino.Model([openvino.opset13.relu(x)], [x])
    openvino.save_model(model, tmp_path / "m.xml")
    with pytest.raises(UserError, match=r"m\.xml has the inputs .*; ImageTensor and"):
        load_artefact(str(tmp_path / "m.xml"))


def test_missing_extra_and_wrong_suffix_are_refused(tiny_model, monkeypatch):
    with pytest.raises(UserError, match=r"must end in \.xml; received m\.bin"):
        export_openvino(tiny_model, "m.bin")
    for missing, precision, images in (
        ("nncf", "int8", [photos(1, 9, 9)]),
        ("openvino", "float32", None),
    ):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(UserError, match=rf'{missing}; run pip install "deeplab_tf'):
            export_openvino(tiny_model, "m.xml", False, precision, images)
    with pytest.raises(UserError, match=r'openvino; run pip install "deeplab_tf'):
        load_artefact("m.xml")


@pytest.mark.slow
def test_official_network_labels_real_images(voc_checkpoint, voc_records, tmp_path):
    pytest.importorskip("nncf")
    model = build_model(ModelConfig.from_official_flags({}))
    assert load_tf1_checkpoint(model, voc_checkpoint).complete
    dataset = load_dataset(DataConfig(voc_records, batch_size=1), "val", training=False)
    path = str(tmp_path / "m.xml")
    export_openvino(model, path)
    file, expected = OpenVinoPredictor(path), Predictor(model)
    for image, *_ in dataset.take(12):
        labels = expected.labels(image).numpy()
        assert np.mean(file.labels(image) == labels) >= 0.999
    export_openvino(model, path, False, "int8", dataset.take(40))
    comparison = parity.gate(model, path, dataset, EvalConfig(), 0.25)
    print(comparison["miou"])
    assert comparison["images"] == 60


def test_another_malloc_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "libjemalloc.so.2")
    with pytest.raises(UserError, match="unset LD_PRELOAD"):
        OpenVinoPredictor(str(tmp_path / "model.xml"))
