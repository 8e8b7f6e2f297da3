"""Official weights in other formats: a frozen graph and a TFLite model."""

import numpy as np
import pytest
import tensorflow as tf
from golden_case import value
from PIL import Image
from shallow_network import shallow_mobilenet_v2

from deeplab_tf.checkpoints.restore import class_count, load_tf1_variables
from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint, read_variables, resolve
from deeplab_tf.config import ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables
from deeplab_tf.presets import PRESETS
from deeplab_tf.serving.formats import load_artefact


def read_images(folder, count, size=None):
    """Yields evenly spaced images of a folder, uint8 `[1, height, width, 3]`."""
    paths = sorted(folder.glob("*.jpg"))
    for path in paths[:: len(paths) // count][:count]:
        image = Image.open(path).convert("RGB")
        yield np.array(image.resize(size[::-1]) if size else image)[None]


@pytest.fixture(scope="module")
def frozen_folder(asset):
    return asset("weights/mobilenet_v3_small_lraspp_frozen")


@pytest.fixture(scope="module")
def street_config():
    """The model of the frozen graph: MobileNetV3-small, LR-ASPP, 5 classes."""
    config = PRESETS["mobilenetv3_small_cityscapes_trainfine"].model
    flags = {"num_classes": 5, "image_pooling_crop_size": "385,769"}
    return config.with_official_flags(flags)


def test_frozen_graph_weights_give_the_labels_of_the_graph(
    frozen_folder, street_config, asset
):
    path = frozen_folder / "frozen_inference_graph.pb"
    official = load_artefact(str(path))
    model = build_model(street_config)
    assert load_tf1_checkpoint(model, str(path)).complete
    predictor = Predictor(model, crop_size=(513, 1025))
    counts = np.zeros(5, int)
    for image in read_images(asset("data/camvid/test"), 8):
        labels = official.labels(image)
        assert np.mean(predictor.labels(image).numpy() == labels) >= 0.999
        counts += np.bincount(labels.ravel(), minlength=5)
    assert np.count_nonzero(counts > 1000) >= 4


def test_folder_resolves_to_its_frozen_graph(frozen_folder):
    prefix = resolve(str(frozen_folder))
    assert prefix.endswith("frozen_inference_graph.pb")
    arrays = read_variables(prefix)
    assert len(arrays) == 217
    assert class_count(arrays) == 5


def test_export_folder_is_refused_as_a_checkpoint(tmp_path):
    for name in ("saved_model.pb", "fingerprint.pb"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"is an export \(SavedModel\); give the check"):
        resolve(str(tmp_path))


def test_hidden_macos_files_are_ignored(tmp_path):
    for name in ("a.pb", "._a.pb"):
        (tmp_path / name).write_bytes(b"")
    assert resolve(str(tmp_path)) == str(tmp_path / "a.pb")
    for name in ("model.ckpt-7.index", "._model.ckpt-9.index"):
        (tmp_path / name).write_bytes(b"")
    assert resolve(str(tmp_path)) == str(tmp_path / "model.ckpt-7")


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pb").write_bytes(b"")
    assert resolve("~/a.pb") == str(tmp_path / "a.pb")


def test_several_frozen_graphs_are_ambiguous(tmp_path):
    for name in ("a.pb", "b.pb"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        UserError, match=r"several frozen graphs in .*give one: .*a\.pb, .*b\.pb$"
    ):
        resolve(str(tmp_path))


def write_graph(path, arrays):
    with tf.Graph().as_default() as graph:
        for name, array in arrays.items():
            tf.constant(array, name=name)
        tf.constant(2, name="strided_slice/stack")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return str(path)


def test_other_constants_of_a_graph_are_ignored(arrays, zero_model, tmp_path):
    path = write_graph(tmp_path / "frozen_inference_graph.pb", arrays)
    assert set(read_variables(path)) == set(arrays)
    assert load_tf1_checkpoint(zero_model, path).complete


def test_graph_without_weights_is_refused(tmp_path):
    path = write_graph(tmp_path / "frozen.pb", {})
    with pytest.raises(UserError, match=r"frozen\.pb contains no weights"):
        read_variables(path)


@pytest.mark.parametrize("content", [b"no graph at all", b"\x0a\xff\xff\xff\xff"])
def test_error_names_invalid_graph_file(content, tmp_path):
    path = tmp_path / "frozen.pb"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"frozen\.pb cannot be read as a frozen graph"):
        read_variables(str(path))


def test_graph_of_a_different_architecture_is_refused(arrays, street_config, tmp_path):
    path = write_graph(tmp_path / "frozen.pb", arrays)
    with pytest.raises(
        UserError, match="differs in architecture from mobilenet_v3_small"
    ):
        load_tf1_checkpoint(build_model(street_config), path)


def unfold_batch_norm(interpreter, model):
    """Returns the float tensors of a TFLite model under their official names.

    Batch normalisation is folded into kernels and biases, so it becomes the
    identity, with the bias as beta.
    """
    tensors = {
        detail["name"]: interpreter.get_tensor(detail["index"])
        for detail in interpreter.get_tensor_details()
        if detail["name"].endswith(("weights", "bias"))
    }
    arrays = {}
    for name, variable in official_variables(model).items():
        scope, _, leaf = name.rpartition("/")
        scope = scope.removesuffix("/BatchNorm")
        kind = "depthwise_bias" if scope.endswith("depthwise") else "Conv2D_bias"
        if leaf in ("weights", "depthwise_weights"):
            # [filters, h, w, channels]; a depthwise kernel has one filter.
            arrays[name] = tensors[name].transpose(1, 2, 3, 0)
        elif leaf in ("beta", "biases"):
            arrays[name] = tensors[f"{scope}/{kind}"]
        else:
            # gamma / sqrt(moving_variance + 1e-3) = 1, or 1.001e-5 in the heads.
            epsilon = 1e-3 if scope.startswith("MobilenetV2") else 1.001e-5
            constant = {"gamma": 1.0, "moving_mean": 0.0}.get(leaf, 1.0 - epsilon)
            arrays[name] = np.full(variable.shape, constant, np.float32)
    return arrays


@pytest.mark.slow
def test_half_width_model_matches_logits_of_its_tflite_file(asset):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path = asset("weights/mobilenet_v2_dm05_voc_tflite/deeplabv3_257_mv_gpu.tflite")
    interpreter = litert.Interpreter(str(path))
    interpreter.allocate_tensors()
    model = build_model(PRESETS["mobilenetv2_dm05_coco_voc_trainval"].eval_model)
    report = load_tf1_variables(model, unfold_batch_norm(interpreter, model))
    assert report.complete
    (source,), (target,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    folder = asset("data/voc2012_sample/VOCdevkit/VOC2012/JPEGImages")
    for image in read_images(folder, 8, (257, 257)):
        scaled = image.astype(np.float32) * np.float32(2 / 255) - 1
        interpreter.set_tensor(source["index"], scaled)
        interpreter.invoke()
        logits = interpreter.get_tensor(target["index"])
        ours = model(image.astype(np.float32)).numpy()
        assert np.std(logits) > 1
        assert np.abs(ours - logits).max() < 1e-3


def build_small(channels=3):
    with shallow_mobilenet_v2():
        return build_model(ModelConfig(depth_multiplier=0.1, channels=channels))


def inflate_kernel(channels, source=3):
    """Loads a model of `source` channels into one of `channels`.

    Returns the first kernel before and after loading, and the report.
    """
    rgb = build_small(source)
    name = "MobilenetV2/Conv/weights"
    arrays = {n: np.array(v) for n, v in official_variables(rgb).items()}
    model = build_small(channels)
    report = load_tf1_variables(model, arrays)
    return arrays[name], np.array(official_variables(model)[name]), report


def test_new_channels_start_with_the_mean_of_rgb():
    kernel, loaded, report = inflate_kernel(5)
    assert loaded.shape == (3, 3, 5, kernel.shape[-1])
    np.testing.assert_array_equal(loaded[:, :, :3], kernel)
    for channel in (3, 4):
        np.testing.assert_allclose(loaded[:, :, channel], kernel.mean(2), rtol=1e-6)
    assert report.inflated == (("MobilenetV2/Conv/weights", 5),)
    assert "MobilenetV2/Conv/weights inflated to 5 channels" in str(report)
    assert not report.complete
    assert not (report.skipped or report.missing or report.unexpected)


@pytest.mark.parametrize("channels", [1, 2])
def test_greyscale_image_matches_logits_of_its_rgb_copy(channels):
    rgb = build_small()
    for name, variable in official_variables(rgb).items():
        variable.assign(value(name, variable.shape))
    model = build_small(channels)
    load_tf1_variables(
        model, {n: np.array(v) for n, v in official_variables(rgb).items()}
    )
    grey = np.random.RandomState(0).uniform(0, 255, (1, 33, 49, 1)).astype("float32")
    expected = rgb(np.repeat(grey, 3, -1)).numpy()
    logits = model(np.repeat(grey, channels, -1)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.std(expected))


def test_weights_with_equal_channels_are_not_inflated():
    kernel, loaded, report = inflate_kernel(4, source=4)
    np.testing.assert_array_equal(loaded, kernel)
    assert report.inflated == ()
    assert report.complete


def test_excluded_weights_are_not_inflated():
    rgb, model = build_small(3), build_small(4)
    arrays = {n: np.array(v) for n, v in official_variables(rgb).items()}
    report = load_tf1_variables(model, arrays, exclude=("MobilenetV2/Conv/",))
    assert report.inflated == ()
    assert len(report.restored) == len(arrays) - 5


def test_only_rgb_weights_are_inflated():
    with pytest.raises(UserError, match=r"Conv/weights 3x3x4x\d+ into 3x3x5x"):
        inflate_kernel(5, source=4)
