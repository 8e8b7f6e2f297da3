"""TFLite files give the labels of the exported model."""

import sys
import zipfile

import keras
import numpy as np
import pytest
from listing import list_outputs
from shallow_network import shallow_mobilenet_v2

import deeplab_tf
from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.config import DataConfig, DecoderConfig, EvalConfig, ModelConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.serving.tflite import TFLitePredictor
from deeplab_tf.serving.tflite_export import convert_to_tflite, export_tflite

litert = pytest.importorskip("ai_edge_litert.interpreter")
pytest.importorskip("litert_quantizer")
SIZE = (33, 49)
INFO = DatasetInfo("toys", ("a", "b", "c", "d", "e"))


def photos(*shape):
    """Returns blocky noise that contains more than one class."""
    coarse = np.random.RandomState(3).randint(0, 256, (*shape, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((1, 8, 8, 1), np.uint8))


def export(model, folder, **options):
    path = str(folder / "model.tflite")
    export_tflite(model, path, SIZE, info=INFO, **options)
    return TFLitePredictor(path)


@pytest.fixture(scope="module")
def labels_file(tiny_model, tmp_path_factory):
    """A float32 file of `tiny_model` that gives labels."""
    return export(tiny_model, tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def int8_file(tiny_model, tmp_path_factory):
    """An int8 file of `tiny_model` that gives labels."""
    batches = [(photos(2, 4, 6), "label"), photos(1, 9, 9)[0]]
    folder = tmp_path_factory.mktemp("int8")
    return export(tiny_model, folder, precision="int8", calibration=iter(batches))


@pytest.fixture(scope="module")
def expected(tiny_model):
    """`tiny_model` with images padded to the size of the files."""
    return Predictor(tiny_model, crop_size=SIZE)


def make_interpreter(predictor):
    interpreter = litert.Interpreter(predictor._path)
    interpreter.allocate_tensors()
    return interpreter


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 3, 2)])
def test_smaller_images_are_labelled_like_the_model(labels_file, expected, shape):
    labels = labels_file.labels(photos(*shape))
    assert len(np.unique(labels)) > 1
    assert (labels == expected.labels(photos(*shape))).numpy().mean() > 0.999


def test_signature_has_the_official_names(labels_file, expected):
    runner = make_interpreter(labels_file).get_signature_runner("serving_default")
    image = np.float32(photos(1, 5, 7)[:, :33, :49])
    labels = runner(ImageTensor=image)["SemanticPredictions"]
    assert (labels.dtype, labels.shape) == (np.int32, (1, *SIZE))
    assert (labels == expected.labels(image)).numpy().mean() > 0.999


def test_graph_uses_native_operations(labels_file):
    operations = {
        x["op_name"] for x in make_interpreter(labels_file)._get_ops_details()
    }
    known = {"CONV_2D", "DEPTHWISE_CONV_2D", "RESIZE_BILINEAR", "ARG_MAX"}
    # Arithmetic: pixels are scaled, residuals added. The mean is image-level pooling.
    rest = {"ADD", "MUL", "CONCATENATION", "MEAN", "DELEGATE"}
    assert known <= operations <= known | rest


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-5), ("float16", 2e-3)])
def test_exported_logits_match_the_model(strided_model, tmp_path, precision, error):
    predictor = export(strided_model, tmp_path, output="logits", precision=precision)
    assert predictor.num_classes == 4
    kinds = {x["dtype"] for x in make_interpreter(predictor).get_tensor_details()}
    assert (np.float16 in kinds) == (precision == "float16")
    images = photos(1, 3, 6)
    expected = Predictor(strided_model, crop_size=SIZE).probabilities(images)
    np.testing.assert_allclose(predictor.probabilities(images), expected, atol=error)


def test_dynamic_precision_stores_8_bit_weights(tiny_model, labels_file, tmp_path):
    predictor = export(tiny_model, tmp_path, precision="dynamic")
    labels = labels_file.labels(photos(1, 4, 6))
    assert (predictor.labels(photos(1, 4, 6)) == labels).mean() > 0.9
    details = make_interpreter(predictor).get_tensor_details()
    assert np.int8 in {detail["dtype"] for detail in details}
    assert predictor._input["dtype"] == np.float32
    assert predictor.protocol["precision"] == "dynamic"


def assert_loads_as_checkpoint(predictor, model, error):
    """Asserts that a file gives the model's logits, up to a share of their spread."""
    with shallow_mobilenet_v2():
        loaded = deeplab_tf.from_pretrained(predictor._path)
    assert loaded.model_config == model.model_config
    images = np.float32(photos(2, 4, 6))
    expected = model(images, training=False).numpy()
    difference = loaded(images, training=False).numpy() - expected
    assert np.std(difference) < error * np.std(expected)


def test_files_load_as_checkpoints(labels_file, int8_file, tiny_model, capsys):
    assert_loads_as_checkpoint(labels_file, tiny_model, 1e-5)
    assert "8-bit" not in capsys.readouterr().out
    assert_loads_as_checkpoint(int8_file, tiny_model, 0.05)
    assert "its 8-bit weights are dequantised" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "error"), [("float16", 1e-3), ("dynamic", 0.05)])
def test_small_files_load_as_checkpoints(tiny_model, tmp_path, precision, error):
    predictor = export(tiny_model, tmp_path, precision=precision)
    assert_loads_as_checkpoint(predictor, tiny_model, error)


def test_int8_input_is_uint8_pixels(int8_file, labels_file):
    interpreter = make_interpreter(int8_file)
    (source,), (target,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    assert (source["dtype"], source["quantization"]) == (np.uint8, (1.0, 0))
    assert target["dtype"] == np.int32
    kinds = {detail["dtype"] for detail in interpreter.get_tensor_details()}
    assert not kinds & {np.float32, np.float16}
    labels = labels_file.labels(photos(2, 4, 6))
    assert (int8_file.labels(photos(2, 4, 6)) == labels).mean() > 0.8


@pytest.mark.parametrize("input_type", ["float32", "uint8"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(
    ("output", "shape", "types"),
    [
        ("category_mask", [1, *SIZE, 1], {"float32": np.uint8, "int8": np.uint8}),
        ("probabilities", [1, *SIZE, 4], {"float32": np.float32, "int8": np.uint8}),
    ],
)
def test_inputs_and_outputs_have_the_type_asked_for(
    strided_model, tmp_path, input_type, precision, output, shape, types
):
    # Without padding: the mean pixel is 127.5, which uint8 rounds.
    images = photos(1, 5, 7)[:, :33, :49]
    options = {"precision": precision, "output": output, "input_type": input_type}
    if precision == "int8":
        options["calibration"] = [images]
    predictor = export(strided_model, tmp_path, **options)
    interpreter = make_interpreter(predictor)
    (source,), (target,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    assert source["dtype"] == np.dtype(input_type)
    assert (target["dtype"], target["shape"].tolist()) == (types[precision], shape)
    expected = Predictor(strided_model, crop_size=SIZE)
    share = (predictor.labels(images) == expected.labels(images)).numpy().mean()
    assert share > (0.999 if precision == "float32" else 0.9)
    if output == "probabilities":
        error = predictor.probabilities(images) - expected.probabilities(images)
        assert np.abs(error).max() < (1e-5 if precision == "float32" else 0.05)


def test_layers_are_left_in_float(tiny_model, int8_file):
    def list_operations(interpreter):
        types = [x["dtype"] for x in interpreter.get_tensor_details()]
        return [x["op_name"] for x in interpreter._get_ops_details()], types

    operations, types = list_operations(make_interpreter(int8_file))
    assert np.float32 not in types
    assert "DEQUANTIZE" not in operations
    float_layers = ["aspp0", "concat_projection"]
    calibration = [photos(1, 4, 6)]
    content = convert_to_tflite(
        tiny_model, SIZE, "int8", calibration=calibration, float_layers=float_layers
    )
    operations, types = list_operations(litert.Interpreter(model_content=content))
    assert "DEQUANTIZE" in operations
    assert np.float32 in types


def test_category_mask_of_many_classes_is_refused(color_model):
    color_model = keras.models.clone_model(color_model)
    color_model.model_config = ModelConfig(num_classes=257)
    with pytest.raises(UserError, match="for 256 classes; the model has 257; export l"):
        export_tflite(color_model, "m.tflite", (9, 9), output="category_mask")


def test_uint8_scale_is_independent_of_calibration(strided_model, tmp_path):
    grey = photos(1, 5, 7) // 4 + 99
    predictor = export(
        strided_model, tmp_path, precision="int8", calibration=[grey], output="logits"
    )
    (source,) = make_interpreter(predictor).get_input_details()
    assert source["quantization"] == (1.0, 0)
    images = grey[:, :30, :40]
    expected = Predictor(strided_model, crop_size=SIZE).probabilities(images)
    np.testing.assert_allclose(predictor.probabilities(images), expected, atol=0.1)


def test_file_contains_classes_and_precision(labels_file, int8_file):
    for predictor, precision in ((labels_file, "float32"), (int8_file, "int8")):
        assert predictor.info == INFO
        assert predictor.num_classes == 5
        assert predictor.protocol == {
            "artefact": "TFLite",
            "input_size": [33, 49],
            "precision": precision,
        }
    with zipfile.ZipFile(labels_file._path) as archive:
        assert archive.read("labels.txt") == b"a\nb\nc\nd\ne\n"


def test_padding_is_the_mean_pixel():
    image = keras.Input((None, None, 3), name="image")
    model = keras.Model(image, keras.layers.Identity(name="logits")(image))
    decoder = DecoderConfig(output_strides=())
    model.model_config = ModelConfig(
        backbone="resnet_v1_50", num_classes=3, decoder=decoder
    )
    # ImageNet's red, green and blue: 123.15, 115.90 and 103.06.
    export_tflite(model, "ram://m.tflite", (2, 2), output="logits")
    predictor = TFLitePredictor("ram://m.tflite")
    result = predictor._run(np.zeros((1, 1, 2, 3), np.float32))
    np.testing.assert_allclose(result[0, 0], 0)
    np.testing.assert_allclose(result[0, 1], 2 * [model.model_config.mean_pixel])
    assert predictor.info is None


def test_equal_models_give_equal_files(color_model, tmp_path):
    paths = [tmp_path / name for name in ("a.tflite", "b.tflite")]
    for path in paths:
        export_tflite(color_model, str(path), (9, 9), info=INFO)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert list_outputs(tmp_path) == [path.name for path in paths]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "m.lite"}, r"must end in \.tflite; received m\.lite"),
        (
            {"precision": "int4"},
            "precision must be .*dynamic or int8; received 'int4'",
        ),
        (
            {"output": "maps"},
            "output must be labels, .* or probabilities; received 'maps'",
        ),
        ({"size": (9, 0)}, r"size must be two integers, .*; received \(9, 0\)"),
        ({"precision": "int8"}, "only .* int8 takes .*; received int8 without images"),
        (
            {"calibration": []},
            "only .* int8 takes .*; received float32 with images",
        ),
        ({"precision": "int8", "calibration": []}, "at least one image; received none"),
    ],
)
def test_invalid_options_are_refused(color_model, options, message):
    with pytest.raises(UserError, match=message):
        export_tflite(color_model, **{"path": "m.tflite", "size": (9, 9)} | options)


def test_missing_quantizer_is_reported(color_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_quantizer", None)
    message = r"m\.tflite: TFLite files need litert_quantizer; run pip install .deep"
    with pytest.raises(UserError, match=message):
        export_tflite(color_model, "m.tflite", (9, 9), "dynamic")


def test_invalid_metadata_is_refused(color_model, tmp_path):
    path = str(tmp_path / "m.tflite")
    export_tflite(color_model, path, (9, 9), info=INFO)
    with zipfile.ZipFile(path) as archive:
        start = min(x.header_offset for x in archive.infolist())
    with open(path, "r+b") as file:
        file.truncate(start)
    assert TFLitePredictor(path).info is None
    for name, text in (
        ("export.json", "{"),
        ("export.json", "[]"),
        ("export.json", '{"mean_pixel": [1, 2]}'),
        ("dataset_info.json", "[]"),
    ):
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, text)
        with pytest.raises(UserError, match=rf"m\.tflite: .*{name}"):
            TFLitePredictor(path)
        with open(path, "r+b") as file:
            file.truncate(start)


CROP = (513, 513)


@pytest.fixture(scope="module")
def official(voc_checkpoint):
    """The official network."""
    model = build_model(ModelConfig.from_official_flags({}))
    assert load_tf1_checkpoint(model, voc_checkpoint).complete
    return model


def validation(records):
    return load_dataset(DataConfig(records, batch_size=1), "val", training=False)


@pytest.fixture(scope="module")
def official_miou(official, voc_records):
    """mIoU of the official network on the real images."""
    evaluator = Evaluator(official, EvalConfig(eval_crop_size=CROP))
    return evaluator.evaluate(validation(voc_records))["miou"]


@pytest.mark.slow
def test_float32_file_matches_the_official_network(official, voc_records, tmp_path):
    path = str(tmp_path / "m.tflite")
    export_tflite(official, path, CROP)
    file, expected = TFLitePredictor(path), Predictor(official, crop_size=CROP)
    shares = [
        np.mean(file.labels(image) == expected.labels(image).numpy())
        for image, *_ in validation(voc_records)
    ]
    assert len(shares) == 60
    assert np.mean(shares) >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "points"), [("float16", 0.1), ("dynamic", 0.25), ("int8", 0.25)]
)
def test_reduced_precision_keeps_the_miou(
    official, official_miou, voc_records, tmp_path, precision, points
):
    path = str(tmp_path / "m.tflite")
    calibration = validation(voc_records).take(40) if precision == "int8" else None
    export_tflite(official, path, CROP, precision, calibration=calibration)
    predictor = TFLitePredictor(path)
    predictor.num_classes = 21
    metrics = Evaluator(predictor, EvalConfig()).evaluate(validation(voc_records))
    assert metrics["images"] == 60
    print(f"{precision}: {metrics['miou']:.4%} of {official_miou:.4%}")
    assert metrics["miou"] >= official_miou - points / 100
