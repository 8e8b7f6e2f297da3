"""export.py: flags, signatures, extra files and the comparison with the model."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from listing import list_outputs
from program_runs import assert_refused, run
from record_files import make_record, write_shards

from deeplab_tf import strict_json
from deeplab_tf.checkpoints.keras_file import load_keras_file
from deeplab_tf.checkpoints.tf1 import save_tf1_checkpoint
from deeplab_tf.config import Experiment, ModelConfig
from deeplab_tf.data.info import generic_info
from deeplab_tf.data.records import write_info
from deeplab_tf.inference import Predictor
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.serving.formats import load_artefact
from deeplab_tf.serving.frozen_graph import export_frozen_graph
from deeplab_tf.serving.saved_model import SavedModelPredictor

EXPORT = "deeplab_tf.programs.export"

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def logs(tiny_model, tmp_path_factory):
    """A folder with a checkpoint and `experiment.json` of `tiny_model`."""
    folder = tmp_path_factory.mktemp("logs")
    save_tf1_checkpoint(tiny_model, str(folder / "model.ckpt-7"))
    experiment = Experiment(model=tiny_model.model_config, info=generic_info(5))
    (folder / "experiment.json").write_text(experiment.to_json())
    return folder


def export(logs, folder, *arguments):
    """Exports `logs`; returns the path."""
    path = str(folder / "exported")
    paths = (f"--checkpoint_path={logs}", f"--export_path={path}")
    run(EXPORT, *paths, "--output_stride=16", *arguments)
    return path


@pytest.fixture(scope="module")
def validation(tiny_model, tmp_path_factory):
    """Records of three images, labelled by `tiny_model`."""
    folder = tmp_path_factory.mktemp("validation")
    images = [make_images(33, 49), make_images(40, 30), make_images(49, 65)]
    labels = [predict_labels(tiny_model, image[None])[0] for image in images]
    pairs = zip(images, labels, strict=True)
    contents = [
        make_record(x, y.astype(np.uint8), f"{i}") for i, (x, y) in enumerate(pairs)
    ]
    write_shards(folder, *contents, split="val")
    write_info(generic_info(5), str(folder))
    return str(folder)


def export_and_compare(logs, validation, path, *arguments):
    """Exports and compares with the model; returns the output and the comparison."""
    paths = (f"--checkpoint_path={logs}", f"--export_path={path}")
    records = f"--dataset_dir={validation}"
    out = run(EXPORT, *paths, "--output_stride=16", records, *arguments)
    return out, json.loads((path.parent / f"{path.name}.parity.json").read_text())


def make_images(*shape):
    return np.random.RandomState(6).randint(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def default_export(logs, validation, tmp_path_factory):
    """Path, output and comparison of an export with default flags."""
    path = tmp_path_factory.mktemp("plain") / "export"
    return path, *export_and_compare(logs, validation, path, "--max_miou_drop=0.1")


def test_default_export_has_all_extra_files(default_export, tiny_model):
    path = str(default_export[0])
    assert list_outputs(f"{path}/assets.extra") == [
        "dataset_info.json",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "model.json",
        "tf_serving_warmup_requests",
    ]
    predictor = SavedModelPredictor(path)
    images = make_images(2, 33, 49)
    labels = predictor.labels(images)
    np.testing.assert_array_equal(labels, predict_labels(tiny_model, images))
    serve = tf.saved_model.load(path).signatures["serving_default"]
    assert list(serve.structured_outputs) == ["SemanticPredictions"]


@pytest.mark.slow
def test_flags_change_the_export(logs, tiny_model, tmp_path):
    path = export(
        *(logs, tmp_path, "--export_probabilities", "--noexport_weights"),
        *("--nofold_batch_norm", "--window_size=33,33", "--inference_scales=1,0.5"),
    )
    assert "model.ckpt.index" not in os.listdir(f"{path}/assets.extra")
    loaded = tf.saved_model.load(path)
    images = make_images(1, 49, 65)
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


def test_export_resizes_images(logs, tiny_model, tmp_path):
    flags = ("--min_resize_value=33", "--max_resize_value=65", "--max_pixels=5000")
    path = export(logs, tmp_path, *flags)
    images = make_images(1, 66, 99)
    labels = SavedModelPredictor(path).labels(images)
    assert labels.shape == (1, 66, 99)
    encode = tf.saved_model.load(path).signatures["encoded"]
    (error,) = encode(image_bytes=tf.io.encode_png(images[0])[None])["error"].numpy()
    assert b"has at most 5000 pixels" in error
    assert np.mean(labels != predict_labels(tiny_model, images)) > 0.01


@pytest.mark.slow
def test_export_runs_in_bfloat16(logs, tiny_model, tmp_path):
    path = export(logs, tmp_path, "--precision=bfloat16")
    graph = tf.saved_model.load(path).signatures["serving_default"].graph
    functions = graph.as_graph_def().library.function
    dtypes = {
        node.attr["T"].type
        for function in functions
        for node in function.node_def
        if node.op == "Conv2D"
    }
    assert dtypes == {tf.bfloat16.as_datatype_enum, tf.float32.as_datatype_enum}
    images = make_images(1, 65, 97)
    labels = SavedModelPredictor(path).labels(images)
    assert np.mean(labels == predict_labels(tiny_model, images)) > 0.9


def test_model_json_holds_the_model_config(default_export, tiny_model):
    with open(f"{default_export[0]}/assets.extra/model.json") as file:
        config = strict_json.from_json(ModelConfig, file.read(), "model.json")
    assert config == tiny_model.model_config


@pytest.mark.parametrize(
    ("message", "flag"),
    [
        ("need min_resize_value", "--max_resize_value=513"),
        ("need min_resize_value", "--resize_factor=16"),
        ("min_resize_value", "--min_resize_value=0"),
        ("window_size must be two integers, each at least 1", "--window_size=0,33"),
    ],
)
def test_invalid_sizes_are_refused(logs, tmp_path, message, flag):
    paths = (f"--checkpoint_path={logs}", f"--export_path={tmp_path}/exported")
    assert_refused(message, EXPORT, *paths, flag)
    assert os.listdir(tmp_path) == []


def test_saved_model_is_compared_with_its_checkpoint(default_export):
    path, out, comparison = default_export
    assert f"model 1.0000, on 3 images: {path}.parity.json" in out
    assert comparison["images"] == 3
    assert comparison["miou"]["artefact"] > 0.999
    assert comparison["max_miou_drop"] == 0.1
    assert list_outputs(path.parent) == ["export", "export.parity.json"]


@pytest.mark.slow
def test_comparison_resizes_images_like_the_export(logs, validation, tmp_path):
    resized = ("--min_resize_value=33", "--max_resize_value=65", "--max_miou_drop=0.1")
    _, comparison = export_and_compare(logs, validation, tmp_path / "export", *resized)
    # Resized images get other labels.
    assert comparison["miou"]["model"] < 0.99
    assert comparison["protocol"]["model"]["resizing"] == [33, 65, None]


def test_onnx_export_is_compared_with_its_checkpoint(logs, validation, tmp_path):
    pytest.importorskip("tf2onnx")
    path = tmp_path / "model.onnx"
    out, comparison = export_and_compare(
        logs, validation, path, "--export_probabilities"
    )
    assert "ImageTensor uint8 [batch, height, width, 3] -> SemanticPred" in out
    assert comparison["miou"]["model"] == 1.0
    assert comparison["miou"]["artefact"] > 0.99
    assert load_artefact(str(path)).gives_probabilities


def test_exported_graph_is_a_checkpoint(tiny_model, tmp_path):
    source, path = tmp_path / "m.pb", tmp_path / "m.keras"
    export_frozen_graph(tiny_model, str(source))
    out = run(EXPORT, f"--checkpoint_path={source}", f"--export_path={path}")
    assert "batch normalisation is folded, so train it with --batch_norm=freeze" in out
    assert load_keras_file(str(path)).model_config == tiny_model.model_config


def test_keras_file_is_exported_with_a_different_output_stride(tiny_model, tmp_path):
    source, path = tmp_path / "m.keras", tmp_path / "dense.keras"
    tiny_model.save(source)
    paths = (f"--checkpoint_path={source}", f"--export_path={path}")
    out = run(EXPORT, *paths, "--output_stride=8")
    assert "output stride 8; image float32 [batch, height, width, 3] -> logits" in out
    model = load_keras_file(str(path))
    assert model.model_config == tiny_model.model_config.at_output_stride(8)
    for value, expected in zip(model.weights, tiny_model.weights, strict=True):
        np.testing.assert_array_equal(value, expected)
    images, artefact = make_images(1, 33, 49), load_artefact(str(path))
    labels = artefact.labels(images)
    np.testing.assert_array_equal(labels, predict_labels(model, images))
    np.testing.assert_array_equal(artefact.probabilities(images).argmax(-1), labels)


def test_tflite_export_runs_larger_images_in_windows(
    logs, validation, tiny_model, tmp_path
):
    pytest.importorskip("ai_edge_litert.interpreter")
    path = tmp_path / "model.tflite"
    flags = ("--crop_size=33,33", "--tflite_output=logits", "--tflite_input=uint8")
    out, comparison = export_and_compare(logs, validation, path, *flags)
    assert "uint8 [1, 33, 33, 3] -> SemanticLogits float32 [1, 33, 33, 5]" in out
    assert abs(comparison["miou"]["drop"]) < 0.1
    images = make_images(1, 49, 65)
    predictor = Predictor(tiny_model, crop_size=(33, 33), window=(33, 33))
    labels = load_artefact(str(path)).labels(images)
    assert np.mean(labels == predictor.labels(images).numpy()) > 0.999


def test_tflite_file_that_is_too_small_for_its_records_is_refused(
    logs, validation, tmp_path
):
    pytest.importorskip("ai_edge_litert")
    path = tmp_path / "model.tflite"
    paths = (f"--checkpoint_path={logs}", f"--export_path={path}")
    message = (
        "images of val have up to 49 rows and 65 columns, but .*model.tflite takes "
        "33x97; give --crop_size=49,97 or larger, or --tflite_output=logits to slide "
    )
    records = (f"--dataset_dir={validation}", "--crop_size=33,97")
    assert_refused(message, EXPORT, *paths, *records)
    assert list_outputs(tmp_path) == []


def test_openvino_export_is_compared_with_its_checkpoint(logs, validation, tmp_path):
    for needed in ("openvino", "tf2onnx", "nncf"):
        pytest.importorskip(needed)
    path = tmp_path / "model.xml"
    flags = ("--quantize=int8", "--calibration_images=2", "--max_miou_drop=100")
    out, comparison = export_and_compare(logs, validation, path, *flags)
    assert "int8; ImageTensor uint8 [batch, height, width, 3] -> SemanticPred" in out
    assert comparison["protocol"]["artefact"]["precision"] == "int8"
    names = ("model.bin", "model.xml", "model.xml.parity.json")
    assert tuple(list_outputs(tmp_path)) == names


@pytest.mark.slow
def test_int8_export_is_calibrated_on_records(logs, validation, tmp_path):
    pytest.importorskip("litert_quantizer")
    path, size = tmp_path / "model.tflite", "--crop_size=65,65"
    flags = ("--tflite_precision=int8", "--calibration_images=2", size)
    out, _ = export_and_compare(logs, validation, path, *flags, "--max_miou_drop=100")
    assert "int8; ImageTensor uint8 [1, 65, 65, 3] -> SemanticPredictions int32" in out
    content = path.read_bytes()
    paths = (f"--checkpoint_path={logs}", f"--export_path={path}")
    records = (f"--dataset_dir={validation}", "--output_stride=16")
    message = r"points below the model's .*%; at most 0.0 are allowed"
    assert_refused(message, EXPORT, *paths, *records, *flags, "--max_miou_drop=0")
    assert path.read_bytes() == content
    names = ("", ".parity.json", ".refused.json")
    assert list_outputs(tmp_path) == [f"model.tflite{name}" for name in names]


@pytest.mark.parametrize(
    ("message", "name", "flags"),
    [
        ("model.onnx runs one", "model.onnx", ["--inference_scales=1,2"]),
        ("runs one inference pass", "model.tflite", ["--add_flipped_images"]),
        ("runs one inference pass", "model.tflite", ["--window_size=33,33"]),
        ("--crop_size has no effect on ", "model.onnx", ["--crop_size=33,33"]),
        ("--resize_factor has no effect", "model.onnx", ["--resize_factor=16"]),
        ("--export_weights has no eff", "model.tflite", ["--noexport_weights"]),
        ("--max_pixels has no effect on", "m.pb", ["--max_pixels=9"]),
        ("--tflite_output has no effect", "export", ["--tflite_output=logits"]),
        ("--tflite_input has no effect", "m.onnx", ["--tflite_input=uint8"]),
        ("int8 needs --dataset_dir", "model.tflite", ["--tflite_precision=int8"]),
        ("--quantize=dynamic is not possible ", "m.xml", ["--quantize=dynamic"]),
        ("--quantize=bfloat16 is not possible ", "m.onnx", ["--quantize=bfloat16"]),
        ("int8 needs --dataset_dir", "m.onnx", ["--quantize=int8"]),
        ("--quantize has no effect", "export", ["--quantize=int8"]),
        (
            "--calibration_images has no effect",
            "model.tflite",
            ["--calibration_images=3"],
        ),
        ("runs one inference pass", "model.keras", ["--inference_scales=1,2"]),
        ("--crop_size has no effect on ", "model.keras", ["--crop_size=33,33"]),
        ("ending in .tflite, .onnx, .xml, .pb, .keras or .html, or", "model.h5", []),
        ("demo.html needs none/dist/ort", "demo.html", ["--web_runtime=none"]),
        ("demo.html is not compared with ", "demo.html", ["--dataset_dir=records"]),
        ("--web_runtime has no effect on ", "model.keras", ["--web_runtime=none"]),
        ("model.HDF5 has the extension of a different format", "model.HDF5", []),
        ("--max_miou_drop needs --dataset_dir", "export", ["--max_miou_drop=1"]),
        ("--eval_split needs --dataset_dir", "export", ["--eval_split=test"]),
        ("float32 models can be converted", "model.tflite", ["--precision=bfloat16"]),
    ],
)
def test_flags_without_effect_on_a_format_are_refused(
    logs, tmp_path, message, name, flags
):
    modules = {
        ".onnx": ["tf2onnx"],
        ".tflite": ["ai_edge_litert", "litert_quantizer"],
        ".xml": ["tf2onnx", "openvino"],
    }
    for needed in modules.get(os.path.splitext(name)[1], []):
        pytest.importorskip(needed)
    paths = (f"--checkpoint_path={logs}", f"--export_path={tmp_path}/{name}")
    assert_refused(message, EXPORT, *paths, "--output_stride=16", *flags)
    assert os.listdir(tmp_path) == []


def test_records_with_other_classes_are_refused(logs, tiny_records, tmp_path):
    paths = (f"--checkpoint_path={logs}", f"--export_path={tmp_path}/export")
    message = "the model has 5 classes and 3 channels, but pascal_voc_seg has 21"
    records = (f"--dataset_dir={tiny_records}", "--num_classes=5")
    assert_refused(message, EXPORT, *paths, "--output_stride=16", *records)
    assert os.listdir(tmp_path) == []
