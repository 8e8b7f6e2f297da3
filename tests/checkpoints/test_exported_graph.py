"""Config and weights of exported models, from their graphs."""

import dataclasses
import http.server
import pathlib

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import zero_kernels
from loopback import QuietHandler, serve
from PIL import Image
from shallow_network import shallow_mobilenet_v2
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

import deeplab_tf
from deeplab_tf.checkpoints import pretrained
from deeplab_tf.checkpoints.exported_graph import read_exported_graph
from deeplab_tf.checkpoints.graphs.backbone import find_backbone
from deeplab_tf.checkpoints.graphs.convolutions import trace_convolutions
from deeplab_tf.checkpoints.graphs.frozen import FrozenGraph
from deeplab_tf.checkpoints.graphs.heads import find_config
from deeplab_tf.checkpoints.graphs.keras_model import trace_model
from deeplab_tf.checkpoints.graphs.matching import extract_weights
from deeplab_tf.checkpoints.restore import tf1_variables
from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.checkpoints.zoo import ZOO
from deeplab_tf.config import (
    ContextConfig,
    DataConfig,
    DecoderConfig,
    EvalConfig,
    ModelConfig,
)
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.serving.frozen_graph import export_frozen_graph
from deeplab_tf.serving.native_layers import NATIVE_LAYERS
from deeplab_tf.serving.saved_model import ExportOptions

SIZE = (65, 97)
TFLITE_FILE = "weights/mobilenet_v2_dm05_voc_tflite/deeplabv3_257_mv_gpu.tflite"


@pytest.fixture(scope="module")
def tflite_model(asset):
    """The model of the official TFLite file: MobileNetV2 of half width."""
    return deeplab_tf.from_pretrained(asset(TFLITE_FILE))


def test_config_of_an_official_tflite_file_comes_from_its_graph(tflite_model):
    zoo = ZOO["mobilenetv2_dm05_coco_voc_trainval"].preset.model
    assert tflite_model.model_config == zoo.at_output_stride(8)
    trained = [n for n in tf1_variables(tflite_model) if "/moving_" not in n]
    assert len(tflite_model.trainable_variables) == len(trained) == 164


def test_official_tflite_file_gives_the_logits_of_the_interpreter(tflite_model, asset):
    assert_equals_interpreter(tflite_model, asset(TFLITE_FILE).read_bytes(), asset)


@pytest.mark.slow
def test_half_pixel_resizes_are_those_of_the_interpreter(asset, tmp_path):
    model = schema.ModelT.InitFromPackedBuf(asset(TFLITE_FILE).read_bytes(), 0)
    for operator in model.subgraphs[0].operators:
        if isinstance(operator.builtinOptions, schema.ResizeBilinearOptionsT):
            operator.builtinOptions.alignCorners = False
            operator.builtinOptions.halfPixelCenters = True
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "model.tflite"
    path.write_bytes(builder.Output())
    loaded = deeplab_tf.from_pretrained(path)
    assert loaded.model_config.conventions.resizing == "half_pixel"
    assert_equals_interpreter(loaded, path.read_bytes(), asset)


def assert_equals_interpreter(model, content, asset):
    """Asserts that a model gives the logits of a TFLite file on a photo."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    folder = asset("data/voc2012_sample/VOCdevkit/VOC2012/JPEGImages")
    photo = Image.open(min(folder.iterdir())).convert("RGB")
    image = np.float32(photo.resize((257, 257)))[None]
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], image / 127.5 - 1
    )
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    logits = model(image, training=False).numpy()
    assert len(np.unique(expected.argmax(-1))) > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.std(expected))
    assert np.mean(logits.argmax(-1) == expected.argmax(-1)) >= 0.9999


def test_tflite_file_initializes_training(tflite_model, asset, capsys):
    config = dataclasses.replace(tflite_model.model_config, num_classes=3)
    report = load_tf1_checkpoint(build_model(config), str(asset(TFLITE_FILE)))
    assert {name for name, *_ in report.skipped} == {
        "logits/semantic/weights",
        "logits/semantic/biases",
    }
    assert (len(report.restored), report.missing, report.unexpected) == (270, (), ())
    assert "depth_multiplier 0.5) with output_stride 8" in capsys.readouterr().out


def quantize_per_tensor(content):
    """Returns a TFLite file whose kernels and biases are those of an old 8-bit file.

    Official quantisation-aware exports have unsigned kernels with a single scale and
    zero point. Its features stay float, which no interpreter runs. The last resize has
    half-pixel centres.
    """
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    kinds = [code.deprecatedBuiltinCode for code in model.operatorCodes]
    convolutions = (
        schema.BuiltinOperator.CONV_2D,
        schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    )
    for operator in graph.operators:
        if kinds[operator.opcodeIndex] in convolutions:
            kernel, bias = (graph.tensors[i] for i in operator.inputs[1:3])
            store_integers(model, kernel, schema.TensorType.UINT8, np.uint8)
            store_integers(model, bias, schema.TensorType.INT32, np.int32)
    graph.operators[-1].builtinOptions.alignCorners = False
    graph.operators[-1].builtinOptions.halfPixelCenters = True
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def store_integers(model, tensor, code, dtype):
    """Rounds the values of a tensor to integers with one scale and zero point."""
    values = model.buffers[tensor.buffer].data.view(np.float32)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    scale = (high - low) / 255 if dtype == np.uint8 else 1e-4
    zero = np.rint(-low / scale) if dtype == np.uint8 else 0
    integers = np.rint(values / scale + zero).astype(dtype)
    model.buffers[tensor.buffer].data = integers.view(np.uint8)
    tensor.type, tensor.quantization = code, schema.QuantizationParametersT()
    tensor.quantization.scale = np.float32([scale])
    tensor.quantization.zeroPoint = np.int64([zero])


def test_8_bit_kernels_are_dequantized(tflite_model, asset, tmp_path, capsys):
    path = tmp_path / "model.tflite"
    path.write_bytes(quantize_per_tensor(asset(TFLITE_FILE).read_bytes()))
    graph = read_exported_graph(str(path))
    arrays, expected = graph.arrays, tf1_variables(tflite_model)
    assert graph.config == tflite_model.model_config
    assert set(arrays) == set(expected)
    for name, array in arrays.items():
        spread = np.ptp([0, *expected[name].flat])
        step = spread / 255 if name.endswith("weights") else 1e-4
        np.testing.assert_allclose(array, expected[name], atol=0.51 * step + 1e-6)
    out = capsys.readouterr().out
    assert "its 8-bit weights are dequantised" in out
    assert "but are half_pixel, so labels" in out


def assert_loads_equal(path, model):
    """Asserts that a file, whose name is not needed, gives the model's logits."""
    with shallow_mobilenet_v2():
        loaded = deeplab_tf.from_pretrained(path.parent)
    assert loaded.model_config == model.model_config
    images = np.random.RandomState(0).uniform(0, 255, (1, *SIZE, 3)).astype(np.float32)
    expected = model(images, training=False).numpy()
    logits = loaded(images, training=False).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.std(expected))


def test_our_frozen_graph_loads_with_its_config(tiny_model, tmp_path):
    path = tmp_path / "model.pb"
    export_frozen_graph(tiny_model, str(path))
    assert_loads_equal(path, tiny_model)

    class Handler(QuietHandler, http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

    with serve(Handler) as server:
        cache = str(tmp_path / "cache")
        found = pretrained.find_weights(f"{server.url}/model.pb", cache)
    assert pathlib.Path(found).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_network_of_a_graph_may_run_at_many_scales(tiny_model, tmp_path):
    path = tmp_path / "model.pb"
    options = ExportOptions(fold_batch_norm=False, window=(65, 65))
    export_frozen_graph(tiny_model, str(path), (1.0, 0.75), True, options=options)
    assert_loads_equal(path, tiny_model)


def freeze_network(config):
    """Returns the graph of a network as the official exporter writes it.

    Normalisation is not folded, and the image has a fixed size.
    """

    def copy_layer(layer):
        layer_type = NATIVE_LAYERS.get(type(layer), type(layer))
        return layer_type.from_config(layer.get_config())

    with zero_kernels():
        model = build_model(config, SIZE, 1)
        network = keras.models.clone_model(
            model, clone_function=copy_layer, recursive=True
        )
    serve = tf.function(lambda image: network(image, training=False))
    concrete = serve.get_concrete_function(tf.TensorSpec((1, *SIZE, 3)))
    graph = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
    return network, FrozenGraph(graph)


def assert_config_is_found(config):
    network, graph = freeze_network(config)
    convolutions = trace_convolutions(graph.operations)
    found = find_config(convolutions, find_backbone(convolutions))
    assert found == config
    arrays, unused = extract_weights(trace_model(found), convolutions)
    expected = {n: a.shape for n, a in tf1_variables(network).items()}
    assert ({n: a.shape for n, a in arrays.items()}, unused) == (expected, [])


@pytest.mark.slow
def test_config_of_a_gated_head_is_found():
    window = {"image_pooling_crop_size": "33,49", "image_pooling_stride": "1,2"}
    flags = {"model_variant": "mobilenet_v3_small_seg", "num_classes": 5} | window
    flags |= {"aspp_with_squeeze_and_excitation": True, "aspp_convs_filters": 64}
    flags |= {"decoder_output_stride": 8, "decoder_use_sum_merge": True}
    flags |= {"aspp_with_concat_projection": False, "decoder_filters": 32}
    assert_config_is_found(ModelConfig.from_official_flags(flags))


# Distinct configs of the zoo; pooling windows are larger than the test's images.
ZOO_CONFIGS = {
    row.preset.model: name
    for name, row in ZOO.items()
    if row.preset.model.context.image_pooling_crop_size is None
}


@pytest.mark.slow
@pytest.mark.parametrize("config", ZOO_CONFIGS, ids=ZOO_CONFIGS.get)
def test_configs_of_the_zoo_are_found(config):
    assert_config_is_found(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "resnet_v1_50_beta --multi_grid=1,2,4 --atrous_rates=6,12,18",
        "resnet_v1_18_beta --output_stride=8 --aspp_with_separable_conv=0 "
        "--decoder_output_stride=4 --decoder_use_separable_conv=0 --atrous_rates=12,24",
        "xception_41 --use_bounded_activation=1 --decoder_output_stride=4",
        "xception_65 --output_stride=8 --multi_grid=1,2,4 --add_image_level_feature=0 "
        "--atrous_rates=12,24,36 --num_classes=3",
        "mobilenet_v2 --aspp_with_batch_norm=0 --atrous_rates=6,12 "
        "--logits_kernel_size=3",
        "mobilenet_v2 --aspp_with_batch_norm=0",
        "mobilenet_v2 --decoder_output_stride=8,4 --atrous_rates=2,4",
        "mobilenet_v2 --depth_multiplier=1.4 --decoder_use_sum_merge=1 "
        "--decoder_output_stride=4",
        "mobilenet_v2 --depth_multiplier=0.5 --divisible_by=8 --output_stride=32 "
        "--decoder_output_is_logits=1 --decoder_output_stride=4 --num_classes=7 "
        "--decoder_filters=7 --decoder_use_separable_conv=0",
        "mobilenet_v3_large_seg --aspp_with_squeeze_and_excitation=1 "
        "--decoder_output_stride=8 --decoder_use_sum_merge=1 "
        "--decoder_use_separable_conv=0 --decoder_filters=64",
        "mobilenet_edgetpu --depth_multiplier=0.75",
    ],
)
def test_configs_of_official_flags_are_found(flags):
    name, *rest = flags.split()
    given = dict(flag.removeprefix("--").split("=") for flag in rest)
    config = ModelConfig.from_official_flags({"model_variant": name} | given)
    assert_config_is_found(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("xception_41", depthwise_activation=True),
        ModelConfig(
            "resnet_v1_50_beta",
            cascade_blocks=3,
            context=ContextConfig(aspp=False, rates=()),
        ),
        ModelConfig(
            "resnet_v1_18",
            cascade_blocks=1,
            output_stride=64,
            context=ContextConfig(rates=(2,)),
            decoder=DecoderConfig(output_strides=()),
        ),
    ],
    ids=["depthwise activation", "cascade", "output stride 64"],
)
def test_configs_of_the_papers_are_found(config):
    assert_config_is_found(config)


def write_other_network(path):
    """Writes the TFLite file of a convolution."""

    @tf.function(input_signature=[tf.TensorSpec((1, 9, 9, 3))])
    def serve(x):
        return tf.nn.conv2d(x, tf.ones((3, 3, 3, 4)), 1, "SAME")

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()]
    )
    path.write_bytes(converter.convert())


def refuse(path, message):
    with pytest.raises(UserError, match=message) as error:
        deeplab_tf.from_pretrained(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"\0\0\0\0TFL3\xff\xff"])
def test_other_content_is_refused(tmp_path, content):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    refuse(path, r"model\.tflite cannot be read as a TFLite file: ")
    path = tmp_path / "model.pb"
    path.write_bytes(content)
    refuse(path, r"model\.pb (cannot be read as a frozen graph|contains no weights)")


def test_truncated_and_other_networks_are_refused(tmp_path):
    path = tmp_path / "model.tflite"
    write_other_network(path)
    refuse(path, "contains no weights of a DeepLab model: its backbone is none of mob")
    content = path.read_bytes()
    for size in (9, 100, len(content) // 2):
        path.write_bytes(content[:size])
        refuse(path, "cannot be read as a TFLite file|contains no weights")


def test_several_files_in_a_folder_are_ambiguous(tmp_path):
    for name in ("a.tflite", "b.pb"):
        (tmp_path / name).write_bytes(b"")
    refuse(tmp_path, r"several TFLite files or frozen graphs .*: .*a\.tflite, .*b\.pb$")


@pytest.mark.slow
def test_random_damage_gives_weights_or_one_line(asset, tmp_path):
    content = asset(TFLITE_FILE).read_bytes()
    path, random = tmp_path / "model.tflite", np.random.RandomState(0)
    for _ in range(150):
        damaged = bytearray(content)
        if random.randint(3) == 0:
            del damaged[random.randint(len(damaged)) :]
        else:  # the graph is at the start and the end, the kernels between them
            start = random.choice([0, len(damaged) - 60_000])
            for i in random.randint(60_000, size=random.choice([1, 20])):
                damaged[start + i] ^= 1 << random.randint(8)
        path.write_bytes(damaged)
        try:
            assert read_exported_graph(str(path)).arrays
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.slow
def test_int8_file_of_a_real_model_keeps_its_score(
    voc_checkpoint, voc_records, tmp_path
):
    pytest.importorskip("ai_edge_litert.interpreter")
    pytest.importorskip("litert_quantizer")
    data = DataConfig(dataset_dir=voc_records)
    photos = deeplab_tf.load_dataset(data, "train", training=False).take(40)
    model = deeplab_tf.from_pretrained(voc_checkpoint)
    path = str(tmp_path / "model.tflite")
    deeplab_tf.export_tflite(model, path, (513, 513), "int8", calibration=photos)
    artefact = deeplab_tf.load_artefact(path)
    artefact.num_classes = 21
    config = EvalConfig(eval_crop_size=(513, 513))
    val = deeplab_tf.load_dataset(data, "val", training=False)
    scores = [
        Evaluator(x, config).evaluate(val)["miou"]
        for x in (artefact, deeplab_tf.from_pretrained(path))
    ]
    assert scores[0] > 0.75
    assert abs(scores[1] - scores[0]) < 0.003
