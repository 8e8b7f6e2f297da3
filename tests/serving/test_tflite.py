"""TFLite files match the Keras model with the same weights."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from checkpoints.test_official_files import read_images, unfold_batch_norm

from deeplab_tf.checkpoints.restore import load_tf1_variables
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.presets import PRESETS
from deeplab_tf.serving.tflite import TFLitePredictor

litert = pytest.importorskip("ai_edge_litert.interpreter")
# k * 8 + 1, the sizes where the stand-in's features and pixels align.
SIZE = (33, 49)


def photos(*shape):
    return np.random.RandomState(6).randint(0, 256, (*shape, 3)).astype(np.uint8)


def convert(path, function, *inputs, quantized=None):
    """Converts a function to a TFLite file, fully quantised if given a dtype.

    Calibration uses the range of our `ImageTensor`, or -1..1.
    """
    module = tf.Module()
    module.function = tf.function(function, list(inputs), autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.function.get_concrete_function()], module
    )
    if quantized:
        random = np.random.RandomState(0)
        low, high = (0, 255) if inputs[0].name == "ImageTensor" else (-1, 1)
        samples = random.uniform(low, high, (8, 1, *SIZE, 3)).astype(np.float32)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = quantized
        converter.inference_output_type = quantized
    path.write_bytes(converter.convert())
    return TFLitePredictor(str(path))


def image_spec(name="ImageTensor", dtype=tf.float32, size=SIZE, channels=3):
    return tf.TensorSpec([1, *size, channels], dtype, name)


def logits_function(strided_model):
    """Returns a function from pixels 0..255 to coarse logits."""
    network = keras.Model(strided_model.input, strided_model.get_layer("logits").output)
    return lambda image: network(tf.cast(image, tf.float32))


@pytest.fixture(scope="module")
def strided_file(strided_model, tmp_path_factory):
    """A file of logits with the input of our exports."""
    path = tmp_path_factory.mktemp("strided") / "model.tflite"
    return convert(path, logits_function(strided_model), image_spec())


def assert_same(predictor, expected, images):
    labels = predictor.labels(images)
    assert labels.dtype == np.int32
    assert len(np.unique(labels)) > 2
    np.testing.assert_array_equal(labels, expected.labels(images))
    probabilities = predictor.probabilities(images)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected.probabilities(images), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 33, 49), (2, 20, 49), (1, 33, 7), (3, 9, 10)])
def test_smaller_image_is_padded(strided_file, strided_model, shape):
    assert_same(strided_file, Predictor(strided_model, crop_size=SIZE), photos(*shape))


@pytest.mark.parametrize("shape", [(1, 34, 49), (2, 70, 90), (1, 20, 160)])
def test_larger_image_is_split_into_windows(strided_file, strided_model, shape):
    expected = Predictor(strided_model, crop_size=SIZE, window=SIZE)
    assert_same(strided_file, expected, photos(*shape))


def test_float_images_are_not_rounded(strided_file, strided_model):
    images = photos(1, 20, 30) * np.float32(0.37)
    expected = Predictor(strided_model, crop_size=SIZE)
    np.testing.assert_allclose(
        strided_file.probabilities(images), expected.probabilities(images), atol=1e-5
    )


def test_properties_of_a_file_without_notes_are_read(strided_file):
    assert (strided_file.num_classes, strided_file.channels) == (4, 3)
    assert strided_file.info is None
    assert strided_file.protocol == {"artefact": "TFLite", "input_size": [33, 49]}


def test_float_input_of_other_name_is_scaled_to_minus_1_to_1(strided_model, tmp_path):
    layer = strided_model.get_layer("logits")
    predictor = convert(tmp_path / "m.tflite", layer, image_spec("sub_7"))
    assert_same(predictor, Predictor(strided_model, crop_size=SIZE), photos(1, 25, 49))


def test_uint8_input_is_not_scaled(strided_model, tmp_path):
    spec = image_spec("image", tf.uint8)
    predictor = convert(tmp_path / "m.tflite", logits_function(strided_model), spec)
    expected = Predictor(strided_model, crop_size=SIZE)
    images = photos(1, *SIZE)
    assert_same(predictor, expected, images)
    labels = predictor.labels(images)
    np.testing.assert_array_equal(predictor.labels(images + np.float32(0.4)), labels)
    np.testing.assert_array_equal(predictor.labels(images - np.float32(0.4)), labels)


# The converter warns about its older quantiser.
@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected")
@pytest.mark.parametrize("dtype", [tf.int8, tf.uint8])
def test_quantised_inputs_and_outputs_are_scaled(strided_model, tmp_path, dtype):
    layer = strided_model.get_layer("logits")
    path = tmp_path / "m.tflite"
    predictor = convert(path, layer, image_spec("image"), quantized=dtype)
    images = photos(1, 30, 60)
    expected = Predictor(strided_model, crop_size=SIZE, window=SIZE)
    difference = predictor.probabilities(images) - expected.probabilities(images)
    assert np.abs(difference).max() < 0.03
    assert (predictor.labels(images) == expected.labels(images)).numpy().mean() > 0.97


@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected")
def test_zero_points_are_applied_to_pixels_and_probabilities(tmp_path):
    # Both are far from 0: 0..255 and 0..1 become -128..127.
    predictor = convert(
        tmp_path / "m.tflite",
        lambda x: tf.nn.softmax(x / 64),
        image_spec(),
        quantized=tf.int8,
    )
    images = photos(1, *SIZE)
    difference = predictor.probabilities(images) - tf.nn.softmax(images / 64).numpy()
    assert np.abs(difference).max() < 0.02


def test_probabilities_have_no_second_softmax(strided_file, strided_model, tmp_path):
    logits = logits_function(strided_model)
    path = tmp_path / "m.tflite"
    predictor = convert(path, lambda x: tf.nn.softmax(logits(x)), image_spec())
    images = photos(1, 33, 80)
    probabilities = predictor.probabilities(images)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    # Interpolated before or after the softmax; another softmax would leave 0.25 to 0.5.
    assert probabilities.max() > 0.8
    difference = probabilities - strided_file.probabilities(images)
    assert np.abs(difference).mean() < 0.05


KINDS = {
    "int32": lambda x: tf.argmax(x, -1, tf.int32),
    "int64, with a channel": lambda x: tf.argmax(x, -1)[..., None],
    "uint8": lambda x: tf.cast(tf.argmax(x, -1, tf.int32), tf.uint8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_label_only_model_has_no_probabilities(tmp_path, kind):
    spec = image_spec(size=(9, 13), channels=5)
    predictor = convert(tmp_path / "m.tflite", KINDS[kind], spec)
    assert (predictor.num_classes, predictor.channels) == (None, 5)
    images = np.random.RandomState(4).randint(0, 256, (2, 8, 11, 5), np.uint8)
    labels = predictor.labels(images)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, images.argmax(-1))
    predictor.num_classes = 4
    with pytest.raises(
        UserError, match="returns the label 4, but with 4 classes the last"
    ):
        predictor.labels(images)
    with pytest.raises(UserError, match=r"m\.tflite returns only labels, no prob"):
        predictor.probabilities(images)
    larger = np.zeros((1, 10, 12, 5), np.uint8)
    message = (
        "only returns labels, for images of up to 9x13; received 10x12; export with "
        "--crop_size=10,13 or larger, or with --tflite_output=logits to "
    )
    with pytest.raises(UserError, match=message):
        predictor.labels(larger)
    with pytest.raises(UserError, match=r"takes .*width, 5\]; received \[1, 4, 6, 3\]"):
        predictor.labels(photos(1, 4, 6))


def test_scores_are_preferred_over_labels(tmp_path):
    predictor = convert(
        tmp_path / "m.tflite",
        lambda x: {"a": tf.argmax(x, -1, tf.int32), "b": x / 255, "c": x[0, 0, 0, 0]},
        image_spec(),
    )
    assert predictor.num_classes == 3
    images = photos(1, 40, 20)
    np.testing.assert_array_equal(predictor.labels(images), images.argmax(-1))


def test_file_is_loaded_from_ram_file_system(strided_file, strided_model, tmp_path):
    convert(tmp_path / "m.tflite", logits_function(strided_model), image_spec())
    tf.io.gfile.copy(str(tmp_path / "m.tflite"), "ram://model.tflite", overwrite=True)
    images = photos(1, 20, 30)
    np.testing.assert_array_equal(
        TFLitePredictor("ram://model.tflite").labels(images),
        strided_file.labels(images),
    )


@pytest.mark.parametrize("content", [b"", b"garbage" * 99])
def test_invalid_file_error_names_the_file(tmp_path, content):
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.tflite cannot be read as a TFLite file"):
        TFLitePredictor(str(tmp_path / "m.tflite"))


def test_missing_file_error_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"^there is no file .*m\.tflite$"):
        TFLitePredictor(str(tmp_path / "m.tflite"))


def test_missing_interpreter_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UserError, match=r'run pip install "deeplab_tf\[export\]"'):
        TFLitePredictor("m.tflite")


@pytest.mark.parametrize(
    ("function", "inputs", "message"),
    [
        (lambda x: x, [image_spec(size=(None, 9))], r"shape \[1, -1, 9, 3\]; it m"),
        (lambda x: x + 1, [tf.TensorSpec([2, 5, 5, 3])], r"shape \[2, 5, 5, 3\]; i"),
        (lambda x: x + 1, [tf.TensorSpec([5])], r"shape \[5\]; it must"),
        (lambda x, y: x + y, [image_spec("x"), image_spec("y")], "shape .*33.*and.*33"),
        (lambda x: x + 1, [image_spec(dtype=tf.int32)], "takes int32; pixels must be"),
        (
            lambda x: x[..., 0] / 2,
            [image_spec()],
            r"returns float32 \[1, 33, 49\]; sco",
        ),
        (
            lambda x: tf.argmax(x[:, ::2], -1, tf.int32),
            [image_spec()],
            r"returns int32 \[1, 17, 49\]; .* integer labels \[1, 33, 49\]",
        ),
    ],
)
def test_unsupported_tflite_input_or_output_is_refused(
    tmp_path, function, inputs, message
):
    with pytest.raises(UserError, match=message) as error:
        convert(tmp_path / "m.tflite", function, *inputs)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def official(asset):
    """The official half-width model for PASCAL VOC: its file, and our model."""
    path = str(
        asset("weights/mobilenet_v2_dm05_voc_tflite/deeplabv3_257_mv_gpu.tflite")
    )
    interpreter = litert.Interpreter(path)
    interpreter.allocate_tensors()
    model = build_model(PRESETS["mobilenetv2_dm05_coco_voc_trainval"].eval_model)
    assert load_tf1_variables(model, unfold_batch_norm(interpreter, model)).complete
    return TFLitePredictor(path), model


def agreement(images, predictor, expected):
    """Returns the lowest share of equal labels, and the predicted classes."""
    shares, classes = [], set()
    for image in images:
        labels = predictor.labels(image)
        shares.append((labels == expected.labels(image)).numpy().mean())
        classes |= set(np.unique(labels))
    return min(shares), classes


@pytest.mark.slow
def test_official_file_matches_our_model(official, asset):
    predictor, model = official
    assert predictor.num_classes == 21
    folder = asset("data/voc2012_sample/VOCdevkit/VOC2012/JPEGImages")
    images = [image[:, 40:297, 60:280] for image in read_images(folder, 6)]
    share, classes = agreement(
        images, predictor, Predictor(model, crop_size=(257, 257))
    )
    assert share >= 0.999
    assert len(classes) > 3


@pytest.mark.slow
def test_official_file_matches_our_model_on_large_images(official, asset):
    predictor, model = official
    folder = asset("data/voc2012_sample/VOCdevkit/VOC2012/JPEGImages")
    images = list(read_images(folder, 4))
    assert min(min(image.shape[1:3]) for image in images) > 257
    expected = Predictor(model, window=(257, 257))
    share, classes = agreement(images, predictor, expected)
    assert share >= 0.999
    assert len(classes) > 3
