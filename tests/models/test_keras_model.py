"""What every Keras model does, for every backbone and head."""

import json
import os
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from reference_heads import strided_backbone
from shallow_network import shallow_mobilenet_v2

from deeplab_tf import config
from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.models.backbones import BACKBONES
from deeplab_tf.models.deeplab import DeepLab, build_model
from deeplab_tf.models.variables import batch_normalizations
from deeplab_tf.training.losses import SegmentationLoss
from deeplab_tf.training.momentum import Momentum

CLASSES = 3
HEADS = {
    "deeplabv3": {"context": ContextConfig(rates=(1, 2), filters=8)},
    "deeplabv3plus": {
        "context": ContextConfig(rates=(1, 2), filters=8),
        "decoder": DecoderConfig(output_strides=(4,), filters=8),
    },
    "lr_aspp": {
        "context": ContextConfig(
            rates=(), filters=8, squeeze_and_excitation=True, projection=False
        ),
        "decoder": DecoderConfig(
            output_strides=(8,), sum_merge=True, outputs_logits=True, filters=CLASSES
        ),
    },
    "deeplabv2": {"context": ContextConfig(aspp=False, rates=(2, 4))},
}
# Heads with a small backbone, backbones with one head.
QUICK, SLOW = [*HEADS], [*config.BACKBONES]
IMAGES = np.random.RandomState(0).randint(0, 256, (2, 33, 41, 3)).astype(np.float32)
LABELS = np.random.RandomState(1).randint(0, CLASSES, (2, 33, 41)).astype(np.uint8)
LABELS[:, :3] = 255
# Of one step, without the pipeline that Keras makes of arrays for each epoch.
BATCH = tf.data.Dataset.from_tensors((IMAGES, LABELS))


def build(name: str) -> DeepLab:
    if name not in HEADS:
        has_low_level = bool(config.BACKBONES[name].decoder_strides)
        head = HEADS["deeplabv3plus" if has_low_level else "deeplabv3"]
        return build_model(ModelConfig(name, num_classes=CLASSES, **head))
    with shallow_mobilenet_v2(), pytest.MonkeyPatch.context() as patch:
        if name != "deeplabv3plus":
            patch.setitem(BACKBONES, "mobilenet_v2", strided_backbone)
        return build_model(ModelConfig(num_classes=CLASSES, **HEADS[name]))


@pytest.fixture(
    scope="module",
    params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def model(request):
    """A model with untypical moving statistics; tests must not change it."""
    keras.utils.set_random_seed(0)
    model = build(request.param)
    for layer in batch_normalizations(model):
        layer.moving_mean.assign(np.random.uniform(-0.1, 0.1, layer.moving_mean.shape))
    return model


@pytest.fixture
def clone(model):
    """A copy of the model that a test may change."""
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def logits(model) -> np.ndarray:
    return np.array(model(IMAGES))


def assert_equal_weights(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def compile_eagerly(model, learning_rate=0.05):
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    model.compile(optimizer, SegmentationLoss(), run_eagerly=True)


def test_clone_keeps_class_config_and_structure(model, clone):
    assert type(clone) is DeepLab
    assert clone.model_config == model.model_config
    assert [x.name for x in clone.layers] == [x.name for x in model.layers]
    np.testing.assert_array_equal(logits(clone), logits(model))


def drop_tensors(config):
    """Removes the connections of layers, whose tensors Keras numbers."""
    if isinstance(config, list):
        return [drop_tensors(value) for value in config]
    if isinstance(config, dict):
        kept = {k: v for k, v in config.items() if k != "inbound_nodes"}
        return {key: drop_tensors(value) for key, value in kept.items()}
    return config


def test_config_and_weights_round_trip(model, tmp_path):
    config = model.get_config()
    assert config["model_config"]["num_classes"] == CLASSES
    for again in (
        DeepLab.from_config(config),
        keras.models.model_from_json(model.to_json()),
    ):
        assert again.model_config == model.model_config
        configs = (again.get_config(), config)
        found, expected = (json.dumps(drop_tensors(x)) for x in configs)
        assert found == expected
    path = str(tmp_path / "model.weights.h5")
    model.save_weights(path)
    again.load_weights(path)
    np.testing.assert_array_equal(logits(again), logits(model))


def test_pickled_model_is_equal(model):
    np.testing.assert_array_equal(
        logits(pickle.loads(pickle.dumps(model))), logits(model)
    )


def test_features_equal_those_inside_the_model(model):
    found = model.features()(IMAGES)
    assert next(iter(found)) == "backbone"
    np.testing.assert_array_equal(
        found["logits"],
        keras.Model(model.input, model.get_layer("logits").output)(IMAGES),
    )
    backbone = keras.Model(model.input, model.get_layer("backbone").output)
    high_level, *_ = keras.tree.flatten(backbone(IMAGES))
    np.testing.assert_array_equal(found["backbone"], high_level)
    again, *_ = keras.tree.flatten(model.backbone(model.get_layer("normalize")(IMAGES)))
    np.testing.assert_array_equal(again, high_level)


def test_predict_equals_call(model):
    found = model.predict(IMAGES, batch_size=1, verbose=0)
    assert found.dtype == np.float32
    # TensorFlow's graph optimisations round differently from eager execution.
    np.testing.assert_allclose(found, logits(model), atol=1e-4 * np.std(found))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_quantize_keeps_layers_that_keras_cannot_quantize(clone):
    before = logits(clone)
    clone.quantize("int8")
    np.testing.assert_array_equal(logits(clone), before)


def test_plot_names_all_layers(model):
    pytest.importorskip("pydot")
    graph = keras.utils.model_to_dot(model, show_shapes=True, show_layer_names=True)
    text = graph.to_string()
    for layer in model.layers:
        assert layer.name in text, layer.name


def test_fit_reduces_the_loss_and_keeps_a_frozen_backbone(clone):
    compile_eagerly(clone)
    losses = clone.fit(BATCH, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    clone.backbone.trainable = False
    before = clone.backbone.get_weights()
    variable = clone.trainable_variables[-1]
    untrained = np.array(variable)
    compile_eagerly(clone)
    clone.fit(IMAGES, LABELS, verbose=0)
    assert_equal_weights(clone.backbone.get_weights(), before)
    assert np.any(np.array(variable) != untrained)
    assert not clone.get_layer("backbone").trainable_weights


def test_wrong_inputs_are_refused(model):
    with pytest.raises(ValueError, match=r"expected shape=\(None, None, None, 3\)"):
        model(IMAGES[..., :2])
    with pytest.raises(ValueError, match=r"Expected shape \(None, None, None, 3\)"):
        model(IMAGES[0])


LOAD = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
{imports}
import numpy as np
folder = sys.argv[1]
images = np.load(folder + "/images.npy")
for name in sys.argv[2:]:
    model = keras.saving.load_model(f"{{folder}}/{{name}}.keras")
    model.model_config.at_output_stride(8)
    np.save(f"{{folder}}/{{name}}.npy", model(images))
"""
# TensorFlow looks for Keras before it imports it.
FIND_KERAS = """
import deeplab_tf
import importlib.util
importlib.util.find_spec('keras')
import keras
"""
IMPORT_KERAS_FIRST = """
import keras
try:
    keras.saving.load_model(f"{sys.argv[1]}/{sys.argv[2]}.keras")
except TypeError as error:
    assert "'requires': 'import deeplab_tf'" in str(error)
else:
    raise AssertionError("loaded without deeplab_tf")
import deeplab_tf
"""


# The pickles above are the same files, of all heads.
@pytest.mark.parametrize(
    ("names", "imports"),
    [
        (["deeplabv3plus"], FIND_KERAS),
        (["deeplabv2"], IMPORT_KERAS_FIRST),
        pytest.param(SLOW, FIND_KERAS, marks=pytest.mark.slow),
    ],
    ids=["quick", "keras_first", "slow"],
)
def test_saved_models_load_in_a_fresh_process(names, imports, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    expected = {}
    for name in names:
        model = build(name)
        model.save(tmp_path / f"{name}.keras")
        expected[name] = logits(model)
    run = subprocess.run(
        [sys.executable, "-c", LOAD.format(imports=imports), str(tmp_path), *names],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for name in names:
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected[name])


def test_training_state_is_kept_by_save_and_clone(tmp_path):
    model = build("deeplabv3")
    model.freeze_batch_norm()
    model.set_weight_decay(4e-5)
    model.get_layer("aspp0").trainable = False
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for copy in (loaded, keras.models.clone_model(model)):
        assert all(layer.frozen for layer in batch_normalizations(copy))
        assert not copy.get_layer("aspp0").trainable
        assert copy.get_layer("aspp1_pointwise").trainable
    assert len(loaded.losses) == len(model.losses) > 0
    np.testing.assert_array_equal(sum(loaded.losses), sum(model.losses))
    model.set_weight_decay(0.0)
    assert model.losses == []


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_kept(policy, precision, tmp_path):
    precision(policy)
    model = build("deeplabv3")
    precision("float32")
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for copy in (model, loaded, keras.models.clone_model(model)):
        assert copy.get_layer("aspp0").compute_dtype == policy.removeprefix("mixed_")
        assert copy.get_layer("aspp0").variable_dtype == "float32"
        assert copy.output.dtype == "float32"
    np.testing.assert_array_equal(logits(loaded), logits(model))
    precision(policy)
    loaded.compile(Momentum(0.02), SegmentationLoss(), run_eagerly=True)
    losses = loaded.fit(BATCH, epochs=2, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("crop_size", [None, (33, 33)])
def test_image_pyramid_is_kept(crop_size, stub_backbone, tmp_path):
    context = ContextConfig(image_pooling_crop_size=crop_size, rates=(1,), filters=8)
    config = ModelConfig(num_classes=CLASSES, image_pyramid=(0.5, 1.0), context=context)
    model = build_model(config)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.model_config == config
    assert len(loaded.weights) == len(model.weights)
    np.testing.assert_array_equal(logits(loaded), logits(model))
    assert list(loaded.features().output) == ["logits"]
    assert loaded.backbone.count_params() == model.backbone.count_params() > 0
    if crop_size:
        # Each scale has its own pooling window, so Keras clones the rest twice.
        with pytest.raises(UserError, match=r"use build_model\(model.model_config\)"):
            keras.models.clone_model(model)
    else:
        assert len(keras.models.clone_model(model).weights) == len(model.weights)


def test_model_of_features_is_saved_and_loaded(tmp_path):
    model = build("deeplabv3plus")
    features = model.features("low_level_4", "decoder")
    features.save(tmp_path / "m.keras")
    found = keras.saving.load_model(tmp_path / "m.keras")(IMAGES)
    for name, expected in features(IMAGES).items():
        np.testing.assert_array_equal(found[name], expected)


def test_layers_are_found_by_name():
    model = build("deeplabv3plus")
    assert model.get_layer("aspp0").kernel.shape[-1] == 8
    assert model.get_layer("aspp") is model.get_layer("context")
    assert model.get_layer(index=-1).name == "resize"
    backbone = keras.Model(model.backbone.input, model.backbone.output)
    assert backbone.count_params() == model.backbone.count_params()
    with pytest.raises(UserError, match=r"'aspp00'; similar: aspp0.*: image, normal"):
        model.get_layer("aspp00")
    with pytest.raises(UserError, match=r"'low_level_8'; it has backbone, low_level_4"):
        model.features("low_level_8")


def test_model_predicts_labels():
    model = build("deeplabv3")
    labels = model.predict_labels(IMAGES.astype(np.uint8), flip=True)
    expected = predict_labels(model, IMAGES.astype(np.uint8), flip=True)
    assert labels.shape == (2, 33, 41)
    np.testing.assert_array_equal(labels, expected)


def test_summary_has_a_line_for_each_part():
    lines = []
    build("deeplabv3plus").summary(print_fn=lines.append)
    text = "\n".join(lines)
    names = ("normalize", "backbone", "context", "decoder", "logits", "resize")
    assert all(f" {name}" in text for name in names)
    assert "aspp0" not in text


def test_xla_is_not_used_on_a_cpu():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("has a GPU")
    model = build("deeplabv3")
    model.compile("sgd", SegmentationLoss())
    assert not model.jit_compile
    model.compile("sgd", SegmentationLoss(), jit_compile=True)
    assert model.jit_compile


def run_saved_model(path):
    loaded = tf.saved_model.load(path)
    return lambda x: loaded.serve(x)


def run_onnx(path):
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


def run_openvino(path):
    compiled = pytest.importorskip("openvino").Core().compile_model(path, "CPU")
    return lambda x: compiled(x)[0]


def run_litert(path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(path)
    run = interpreter.get_signature_runner()
    (name,) = run.get_input_details()
    return lambda x: run(**{name: x})["output_0"]


EXPORTS = {
    "tf_saved_model": ("folder", run_saved_model),
    "onnx": ("m.onnx", run_onnx),
    "openvino": ("m.xml", run_openvino),
    "litert": ("m.tflite", run_litert),
}


# Keras imports tf2onnx, which reads `np.object`.
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
@pytest.mark.parametrize(
    "format",
    [
        "tf_saved_model",
        *(pytest.param(f, marks=pytest.mark.slow) for f in [*EXPORTS][1:]),
    ],
)
def test_keras_export_equals_the_model(format, stub_backbone, tmp_path):
    name, load = EXPORTS[format]
    config = ModelConfig(num_classes=CLASSES, **HEADS["deeplabv3plus"])
    model = build_model(config, (33, 41), 2)
    expected = logits(model)
    path = str(tmp_path / name)
    model.export(path, format=format, verbose=False)
    found = np.array(load(path)(IMAGES))
    assert np.abs(found - expected).max() < 1e-5 * expected.std()
