"""Int8 exports of quantised models have exactly their scales, and give their labels."""

import keras
import numpy as np
import pytest
from quantized_models import quantize_copy

import deeplab_tf
from deeplab_tf.config import ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.fake_quantization import FakeQuantization
from deeplab_tf.models.folding import fold_batch_norm
from deeplab_tf.models.variables import leaf_layers

SIZE = (65, 97)
BRANCHES = {
    f"{name}.relu.act_quant"
    for name in (
        *("aspp0", "aspp1_pointwise", "aspp2_pointwise"),
        "decoder.feature_projection0",
    )
}
_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


def photos(count):
    """Returns blocky noise that contains more than one class."""
    coarse = np.random.RandomState(3).randint(0, 256, (count, 3, 4, 3), np.uint8)
    return np.kron(coarse, np.ones((1, 32, 32, 1), np.uint8))[:, : SIZE[0], : SIZE[1]]


@pytest.fixture(scope="module")
def quantized(tiny_model):
    """`tiny_model` with the ranges of one batch."""
    return quantize_copy(tiny_model, photos(2))


@pytest.fixture(scope="module")
def feature_scales(quantized):
    """Scale and unsigned zero point of every learned range, by layer."""
    scales = {}
    for layer in leaf_layers(quantized):
        if isinstance(layer, FakeQuantization) and layer.limits is None:
            low, high = (float(limit.numpy()) for limit in (layer.min, layer.max))
            scale = (high - low) / 255
            scales[layer.name] = round_pair(scale, np.rint(-low / scale))
    return scales


@pytest.fixture(scope="module")
def weight_scales(quantized):
    """Scales of every kernel, sorted by channel, as a set of tuples."""
    return {
        sort_scales(np.abs(layer.get_weights()[0]).max(axes) / 127)
        for layer in leaf_layers(fold_batch_norm(quantized))
        for kind, axes in zip(_CONVOLUTIONS, ((0, 1, 2), (0, 1, 3)), strict=True)
        if isinstance(layer, kind)
    }


def round_pair(scale, zero):
    return float(f"{float(scale):.6g}"), int(zero)


def sort_scales(scales):
    return tuple(float(f"{scale:.5g}") for scale in np.sort(scales))


def assert_labels_agree(quantized, path, **protocol):
    expected = Predictor(quantized, **protocol).labels(photos(4)).numpy()
    labels = [deeplab_tf.load_artefact(path).labels(x[None])[0] for x in photos(4)]
    assert len(np.unique(expected)) > 1
    assert np.mean(np.array(labels) == expected) > 0.99


def test_tflite_file_is_all_integer(quantized, feature_scales, weight_scales, tmp_path):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path = str(tmp_path / "model.tflite")
    deeplab_tf.export_tflite(quantized, path, SIZE, "int8")
    interpreter = litert.Interpreter(path)
    tensors = interpreter.get_tensor_details()
    assert not any(x["dtype"] == np.float32 for x in tensors)
    scales = [x["quantization_parameters"] for x in tensors if x["dtype"] == np.int8]
    found = {sort_scales(x["scales"]) for x in scales if len(x["scales"]) > 1}
    assert found == weight_scales
    single = [x for x in scales if len(x["scales"]) == 1]
    pairs = {round_pair(x["scales"][0], x["zero_points"][0] + 128) for x in single}
    # The converter scales the branches of a concatenation like their concatenation.
    missing = {name for name, pair in feature_scales.items() if pair not in pairs}
    assert missing <= BRANCHES
    # Pixels before, during and after the normalisation, and its constants.
    assert len(pairs - set(feature_scales.values())) <= 5
    assert_labels_agree(quantized, path, crop_size=SIZE)


@pytest.mark.slow
def test_gates_of_mobilenet_v3_are_all_integer(tmp_path):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    flags = {"model_variant": "mobilenet_v3_small_seg", "depth_multiplier": 0.35}
    model = build_model(ModelConfig.from_official_flags(flags))
    path = str(tmp_path / "model.tflite")
    quantized = quantize_copy(model, photos(2))
    deeplab_tf.export_tflite(quantized, path, SIZE, "int8")
    tensors = litert.Interpreter(path).get_tensor_details()
    assert not any(x["dtype"] == np.float32 for x in tensors)


def test_onnx_file_has_the_scales(quantized, feature_scales, weight_scales, tmp_path):
    for needed in ("onnxruntime", "tf2onnx"):
        pytest.importorskip(needed)
    onnx = pytest.importorskip("onnx")
    path = str(tmp_path / "model.onnx")
    deeplab_tf.export_onnx(quantized, path, False, "int8")
    graph = onnx.load(path).graph
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    inputs = [
        [arrays[name] for name in node.input[1:]]
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    ]
    pairs = {round_pair(*pair) for pair in inputs}
    expected = set(feature_scales.values())
    assert expected < pairs and len(pairs - expected) == 1  # and that of pixels
    kernels = [x.input for x in graph.node if x.op_type == "DequantizeLinear"]
    kernels = [x for x in kernels if x[0] in arrays]
    assert all(arrays[name].dtype == np.int8 for name, _ in kernels)
    assert {sort_scales(arrays[scale]) for _, scale in kernels} == weight_scales
    assert len(kernels) == sum(node.op_type == "Conv" for node in graph.node)
    assert_labels_agree(quantized, path)


@pytest.mark.slow
def test_openvino_file_has_the_scales(quantized, feature_scales, tmp_path):
    pytest.importorskip("tf2onnx")
    openvino = pytest.importorskip("openvino")
    path = str(tmp_path / "model.xml")
    deeplab_tf.export_openvino(quantized, path, precision="int8")
    graph = openvino.Core().read_model(path)
    limits = [
        [x.input_value(i).get_node().get_data().item() for i in (1, 2)]
        for x in graph.get_ops()
        if x.get_type_name() == "FakeQuantize"
    ]
    scales = [(high - low) / 255 for low, high in limits]
    trained = [scale for scale, _ in feature_scales.values()]
    # OpenVINO moves the scaling of pixels after their rounding.
    np.testing.assert_allclose(
        np.sort(scales), np.sort([*trained, 256 / 255]), rtol=1e-4
    )
    assert_labels_agree(quantized, path)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_quantised_models_take_no_images(quantized, tmp_path, precision):
    pytest.importorskip("ai_edge_litert")
    calibration = photos(1) if precision == "int8" else None
    message = f"only be exported as int8, without .* received {precision} with"
    path = str(tmp_path / "model.tflite")
    with pytest.raises(UserError, match=message):
        deeplab_tf.export_tflite(
            quantized, path, SIZE, precision, calibration=calibration
        )
