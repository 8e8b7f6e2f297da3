"""ONNX files give the labels of the exported model."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from listing import list_outputs
from noise_images import blocky_photos as photos

from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.config import DataConfig, EvalConfig, ModelConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.layers import q_sigmoid
from deeplab_tf.serving import parity
from deeplab_tf.serving.onnx_file import (
    NativeActivation,
    NativeConv2D,
    NativeDepthwiseConv2D,
    OnnxPredictor,
    export_onnx,
)
from deeplab_tf.serving.onnx_quantization import find_layers
from deeplab_tf.serving.publication import publish_artefact

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")
INFO = DatasetInfo("toys", ("a", "b", "c", "d", "e"))
# Images of a batch have one size; these are around `k * 16 + 1`.
SHAPES = [(1, 33, 49), (3, 40, 31), (2, 17, 18), (1, 1, 70)]


@pytest.fixture(scope="module")
def path(tiny_model, tmp_path_factory):
    """An ONNX file of `tiny_model` with probabilities."""
    path = str(tmp_path_factory.mktemp("onnx") / "model.onnx")
    export_onnx(tiny_model, path, probabilities=True, info=INFO)
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_batches_of_any_size_are_labelled(path, tiny_model, shape):
    file, expected = OnnxPredictor(path), Predictor(tiny_model)
    images = photos(*shape)
    labels = file.labels(images)
    assert (labels.dtype, labels.shape) == (np.int32, shape)
    assert np.mean(labels == expected.labels(images).numpy()) > 0.999
    np.testing.assert_allclose(
        file.probabilities(images), expected.probabilities(images), atol=1e-4
    )
    # Fractions are rounded.
    np.testing.assert_array_equal(file.labels(images + np.float32(0.3)), labels)


def test_file_has_metadata_and_official_names(path):
    file = OnnxPredictor(path)
    assert (file.info, file.num_classes, file.channels) == (INFO, 5, 3)
    graph = onnx.load(path).graph
    (source,) = graph.input
    axes = [
        side.dim_param or side.dim_value for side in source.type.tensor_type.shape.dim
    ]
    assert (source.name, axes) == ("ImageTensor", ["batch", "height", "width", 3])
    assert [x.name for x in graph.output] == [
        "SemanticPredictions",
        "SemanticProbabilities",
    ]


def test_graph_uses_native_operations(path):
    operations = [node.op_type for node in onnx.load(path).graph.node]
    assert operations.count("Resize") == 3
    # Normalisation is folded, atrous convolutions are intact, and no resize is a matrix
    # product.
    decomposed = {"BatchNormalization", "SpaceToDepth", "DepthToSpace", "MatMul"}
    assert not decomposed & set(operations)


def test_native_layers_match_keras():
    x = tf.constant(np.random.RandomState(1).normal(0, 3, (2, 9, 11, 4)), tf.float32)
    for layer, kind in (
        (layers.Activation(q_sigmoid), NativeActivation),
        (layers.Activation("relu"), NativeActivation),
        (layers.Conv2D(5, 3, dilation_rate=(2, 4), padding="same"), NativeConv2D),
        (layers.Conv2D(5, 3, strides=2, activation="relu"), NativeConv2D),
        (layers.DepthwiseConv2D(3, padding="same"), NativeDepthwiseConv2D),
    ):
        layer.build(x.shape)
        # The bias starts at 0.
        layer.set_weights([weight + 0.1 for weight in layer.get_weights()])
        native = kind.from_config(layer.get_config())
        native.build(x.shape)
        native.set_weights(layer.get_weights())
        np.testing.assert_allclose(native(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_precisions(path, tiny_model, tmp_path, precision):
    calibration = None
    if precision == "int8":
        calibration = [photos(2, 40, 31), photos(1, 33, 49)[0]]
    file = tmp_path / "m.onnx"
    export_onnx(tiny_model, str(file), True, precision, calibration, INFO)
    exact, reduced = OnnxPredictor(path), OnnxPredictor(str(file))
    assert reduced.protocol == {"artefact": "ONNX", "precision": precision}
    assert reduced.info == INFO
    for images in (photos(1, 33, 49), photos(2, 17, 18)):
        error = np.abs(reduced.probabilities(images) - exact.probabilities(images))
        assert 0 < error.max() < 0.1
    weights = [
        sum(len(x.raw_data) for x in onnx.load(p).graph.initializer)
        for p in (path, file)
    ]
    assert weights[1] < 0.55 * weights[0]


def test_layers_are_quantised_one_by_one(path, tiny_model, tmp_path):
    graph = onnx.load(path).graph
    layers = find_layers(graph)
    names = [layer.name for layer in layers]
    assert names[:2] == ["MobilenetV2.Conv", "MobilenetV2.expanded_conv.depthwise"]
    assert names[-1] == "logits.semantic"
    assert len(set(names)) == len(names)
    convolutions = {node.name for node in graph.node if node.op_type == "Conv"}
    assert convolutions < {name for layer in layers for name in layer.nodes}

    def measure(float_layers):
        file, images = str(tmp_path / "m.onnx"), photos(2, 33, 49)
        export_onnx(tiny_model, file, False, "int8", [images], None, float_layers)
        errors = parity.measure_layer_errors(tiny_model, file, [images])
        assert [layer.name for layer in errors] == names
        return {layer.name: layer.error for layer in errors}

    errors = measure(())
    assert 0.001 < min(errors.values()) < max(errors.values()) < 0.1
    name = max(errors, key=errors.__getitem__)
    left = measure([name])
    assert left.pop(name) < errors.pop(name) / 100
    # Rounding in one layer does not change the rest.
    assert sum(left[x] == pytest.approx(errors[x], rel=1e-3) for x in left) > 10
    assert max(measure(names).values()) < 1e-5


def test_labels_only_file_has_no_probabilities(strided_model, tmp_path):
    export_onnx(strided_model, str(tmp_path / "m.onnx"))
    assert list_outputs(tmp_path) == ["m.onnx"]
    file = OnnxPredictor(str(tmp_path / "m.onnx"))
    assert (file.info, file.num_classes) == (None, None)
    images = photos(1, 30, 40)
    labels = file.labels(images)
    assert np.mean(labels == Predictor(strided_model).labels(images).numpy()) > 0.999
    file.num_classes = 2
    with pytest.raises(
        UserError, match=r"returns the label 3, but with 2 classes the last"
    ):
        file.labels(images)
    with pytest.raises(UserError, match=r"m\.onnx returns only labels, no prob"):
        file.probabilities(images)
    with pytest.raises(UserError, match=r"width, 3\]; received \[1, 4, 4, 1\]"):
        file.labels(np.zeros((1, 4, 4, 1)))


def test_file_in_memory_passes_the_gate(strided_model):
    images = photos(1, 33, 49)
    labels = Predictor(strided_model).labels(images)[..., None]
    with publish_artefact("ram://onnx/m.onnx") as unpublished:
        export_onnx(strided_model, unpublished)
        parity.gate(strided_model, unpublished, [(images, labels)], max_miou_drop=0.1)
    assert list_outputs("ram://onnx") == ["m.onnx", "m.onnx.parity.json"]


def test_unreadable_files_are_refused(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(UserError, match=r"^there is no file .*m\.onnx$"):
        OnnxPredictor(str(path))
    for content in (b"", b"garbage" * 99):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"m\.onnx cannot be read as") as error:
            OnnxPredictor(str(path))
        assert "\n" not in str(error.value)


def test_external_data_are_refused(path, tmp_path, monkeypatch):
    """Also with files that exist, and with those next to the program."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load(path)
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    for location in ("secret", "../secret", str(tmp_path / "secret")):
        weight = max(model.graph.initializer, key=lambda x: len(x.raw_data))
        onnx.external_data_helper.set_external_data(weight, location)
        content = model.SerializeToString()
        nested = onnx.helper.make_node("If", ["x"], ["y"], then_branch=model.graph)
        model.graph.node.append(nested)
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(UserError, match=r"m\.onnx reads .* from another file"):
            OnnxPredictor(str(tmp_path / "m.onnx"))


def test_foreign_onnx_file_is_refused(tmp_path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=9),
        str(tmp_path / "m.onnx"),
    )
    with pytest.raises(UserError, match=r"inputs \['x'\] and outputs \['y'\]; ImageT"):
        OnnxPredictor(str(tmp_path / "m.onnx"))


def test_missing_extra_and_wrong_suffix_are_refused(color_model, monkeypatch):
    with pytest.raises(UserError, match=r"must end in \.onnx; received m\.pb"):
        export_onnx(color_model, "m.pb")
    for missing in ("tf2onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, missing, None)
    message = r'm\.onnx: ONNX files need .*; run pip install "deeplab_tf\[export\]"'
    with pytest.raises(UserError, match=message):
        export_onnx(color_model, "m.onnx")
    with pytest.raises(UserError, match=message):
        OnnxPredictor("m.onnx")


@pytest.mark.slow
def test_official_network_labels_real_images(voc_checkpoint, voc_records, tmp_path):
    openvino = pytest.importorskip("openvino")
    model = build_model(ModelConfig.from_official_flags({}))
    assert load_tf1_checkpoint(model, voc_checkpoint).complete
    path = str(tmp_path / "m.onnx")
    export_onnx(model, path)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    dataset = load_dataset(DataConfig(voc_records, batch_size=1), "val", training=False)
    file, expected = OnnxPredictor(path), Predictor(model)
    for image, *_ in dataset.take(12):
        labels = expected.labels(image).numpy()
        pixels = np.uint8(np.rint(image))
        assert np.mean(file.labels(image) == labels) >= 0.999
        openvino_labels = compiled({"ImageTensor": pixels})["SemanticPredictions"]
        assert np.mean(openvino_labels == labels) >= 0.999
    for precision, calibration, drop in (
        ("float32", None, 0.01),
        ("float16", None, 0.02),
        ("int8", dataset.take(40), 0.25),
    ):
        export_onnx(model, path, False, precision, calibration)
        comparison = parity.gate(model, path, dataset, EvalConfig(), drop)
        print(precision, comparison["miou"])
        assert comparison["images"] == 60
