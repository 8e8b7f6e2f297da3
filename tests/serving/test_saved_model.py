"""SavedModels match `predict_labels` and replace only earlier exports."""

import dataclasses
import os
import shutil
from tempfile import gettempdir

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import value
from listing import list_outputs
from tensorflow.core.protobuf import saved_model_pb2

from deeplab_tf import strict_json
from deeplab_tf.checkpoints.restore import load_tf1_variables, tf1_variables
from deeplab_tf.checkpoints.tf1 import read_variables
from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.data import records
from deeplab_tf.data.info import dataset_info, generic_info
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs
from deeplab_tf.inference import Predictor
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.folding import fold_batch_norm
from deeplab_tf.models.normalization import BatchNormalization
from deeplab_tf.models.resampling import ResizeLike
from deeplab_tf.serving.saved_model import (
    ExportOptions,
    SavedModelPredictor,
    export_saved_model,
    read_export_info,
)
from deeplab_tf.serving.signatures import (
    Resizing,
    ResizingPredictor,
    make_features_model,
)

pytestmark = pytest.mark.usefixtures("shallow")


def photos(*shape):
    return np.random.RandomState(6).randint(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def strided_export(strided_model, tmp_path_factory):
    """An export without class names, alone in its folder."""
    path = tmp_path_factory.mktemp("strided") / "export"
    export_saved_model(strided_model, str(path))
    return path


def test_export_gives_the_same_labels_as_the_model(tiny_model, tiny_export):
    predictor = SavedModelPredictor(tiny_export)
    for shape in ((1, 33, 49), (2, 20, 17), (3, 8, 1)):
        images = photos(*shape)
        labels = predictor.labels(images)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, predict_labels(tiny_model, images))


def output_specs(signature):
    return {
        name: (spec.dtype.name, spec.shape.as_list())
        for name, spec in signature.structured_outputs.items()
    }


def test_default_signature_is_the_official_one(tiny_export):
    serve = tf.saved_model.load(tiny_export).signatures["serving_default"]
    ((name, image),) = serve.structured_input_signature[1].items()
    assert (name, image.dtype) == ("ImageTensor", tf.uint8)
    assert image.shape.as_list() == [None, None, None, 3]
    labels = {"SemanticPredictions": ("int32", [None, None, None])}
    assert output_specs(serve) == labels


def test_additional_signatures_have_expected_inputs_and_outputs(
    tiny_model, tiny_export
):
    signatures = tf.saved_model.load(tiny_export).signatures
    assert set(signatures) == {
        *("serving_default", "probabilities", "raw", "encoded", "features")
    }
    for name in ("probabilities", "raw", "features"):
        ((key, image),) = signatures[name].structured_input_signature[1].items()
        assert (key, image.dtype.name) == ("ImageTensor", "uint8")
        assert image.shape.as_list() == [None, None, None, 3]
    (strings,) = signatures["encoded"].structured_input_signature[1].items()
    assert strings == ("image_bytes", tf.TensorSpec([None], tf.string, "image_bytes"))
    low_level = tiny_model.get_layer("decoder").inputs[1].shape[-1]
    assert output_specs(signatures["probabilities"]) == {
        "SemanticProbabilities": ("float32", [None, None, None, 5])
    }
    assert output_specs(signatures["raw"]) == {
        "RawSemanticPredictions": ("float32", [None, None, None]),
        "RawSemanticProbabilities": ("float32", [None, None, None, 5]),
    }
    assert output_specs(signatures["encoded"]) == {
        "label_map_bytes": ("string", [None]),
        "error": ("string", [None]),
    }
    assert output_specs(signatures["features"]) == {
        "high_level": ("float32", [None, None, None, 16]),
        "low_level_4": ("float32", [None, None, None, low_level]),
    }


def test_probabilities_and_encoded_maps_match_the_labels(tiny_model, tiny_export):
    loaded = tf.saved_model.load(tiny_export)
    images = photos(2, 20, 31)
    probabilities = SavedModelPredictor(tiny_export).probabilities(images)
    expected = Predictor(tiny_model).probabilities(images)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    files = [tf.io.encode_png(image).numpy() for image in (*images, photos(9, 40))]
    served = loaded.signatures["encoded"](image_bytes=tf.constant([*files, b"no"]))
    *maps, nothing = served["label_map_bytes"].numpy()
    assert nothing == b"" and not any(served["error"].numpy()[:3])
    for file, label in zip(files, maps, strict=True):
        labels = predict_labels(tiny_model, tf.io.decode_png(file)[None])
        np.testing.assert_array_equal(tf.io.decode_png(label)[..., 0], labels[0])


def test_images_above_8_bits_have_no_encoded_signature(strided_model, tmp_path):
    info = dataclasses.replace(generic_info(4), max_value=4095)
    export_saved_model(strided_model, str(tmp_path), info=info)
    signatures = tf.saved_model.load(str(tmp_path)).signatures
    assert set(signatures) == {"serving_default", "probabilities", "raw"}


def test_raw_outputs_include_the_padding(tiny_model, tiny_export):
    raw = tf.saved_model.load(tiny_export).signatures["raw"]
    # To the next 16 k + 1; 127.5 is 0 after scaling.
    images = photos(2, 20, 40)
    canvas = np.full((2, 33, 49, 3), 127.5, np.float32)
    canvas[:, :20, :40] = images
    expected = tf.nn.softmax(tiny_model(canvas, training=False)).numpy()
    served = raw(ImageTensor=tf.constant(images))
    probabilities = served["RawSemanticProbabilities"]
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    labels = served["RawSemanticPredictions"]
    np.testing.assert_array_equal(labels, expected.argmax(-1))


def test_features_match_the_features_model(tiny_model, tiny_export):
    features = tf.saved_model.load(tiny_export).signatures["features"]
    images = photos(2, 33, 49)
    expected = make_features_model(tiny_model)(images.astype(np.float32))
    served = features(ImageTensor=tf.constant(images))
    assert set(served) == set(expected) - {"logits"}
    for name, array in served.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-4)


def test_wrong_tensors_fail_only_their_own_call(tiny_model, tiny_export):
    signatures = tf.saved_model.load(tiny_export).signatures
    serve, encoded = signatures["serving_default"], signatures["encoded"]
    images = photos(1, 20, 31)
    expected = predict_labels(tiny_model, images)
    mistakes = [images.astype(np.float32), images[0], images[None], images[..., :2]]
    calls = [(serve, "ImageTensor", wrong) for wrong in (*mistakes, b"JPEG")]
    calls += [(encoded, "image_bytes", wrong) for wrong in (images, b"no list")]
    for signature, name, wrong in calls:
        with pytest.raises((TypeError, tf.errors.InvalidArgumentError)):
            signature(**{name: tf.constant(wrong)})
        served = serve(ImageTensor=tf.constant(images))
        np.testing.assert_array_equal(served["SemanticPredictions"], expected)


@pytest.fixture(scope="module")
def normalized_model():
    """A fast model with batch normalisation, sensitive to scale and neighbours."""
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(4, 9, 8, "same", use_bias=False, name="conv")(image)
    x = BatchNormalization(name="norm")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="logits")(x)
    model = keras.Model(image, ResizeLike()(x, image))
    for weight in model.weights:
        weight.assign(value(weight.name, weight.shape))
    model.model_config = ModelConfig(num_classes=4, output_stride=8)
    return model


@pytest.fixture(scope="module")
def custom_export(normalized_model, tmp_path_factory):
    """An export with options other than the default."""
    path = str(tmp_path_factory.mktemp("other") / "export")
    options = ExportOptions(
        window=(33, 33),
        resizing=Resizing(40),
        probabilities=True,
        fold_batch_norm=False,
        weights=False,
    )
    export_saved_model(normalized_model, path, options=options)
    return path


def test_windows_and_resizing_are_part_of_the_graph(normalized_model, custom_export):
    images = photos(1, 66, 99)
    loaded = tf.saved_model.load(custom_export)
    served = loaded.signatures["serving_default"](ImageTensor=tf.constant(images))
    predictor = ResizingPredictor(
        Predictor(normalized_model, window=(33, 33)), Resizing(40)
    )
    assert set(served) == {"SemanticPredictions", "SemanticProbabilities"}
    labels, probabilities = predictor.labels_and_probabilities(images)
    np.testing.assert_allclose(
        served["SemanticProbabilities"], probabilities, rtol=0, atol=1e-5
    )
    np.testing.assert_array_equal(served["SemanticPredictions"], labels)
    encoded = loaded.signatures["encoded"](
        image_bytes=[tf.io.encode_png(images[0]).numpy()]
    )
    label_map = tf.io.decode_png(encoded["label_map_bytes"][0])[..., 0]
    np.testing.assert_array_equal(label_map, labels[0])
    assert np.mean(labels != predict_labels(normalized_model, images)) > 0.01


def test_batch_norm_is_folded_by_default(tiny_export, custom_export):
    for path, normalised in ((tiny_export, False), (custom_export, True)):
        signature = tf.saved_model.load(path).signatures["serving_default"]
        functions = signature.graph.as_graph_def().library.function
        kinds = {node.op for function in functions for node in function.node_def}
        assert {"Conv2D", "DepthwiseConv2dNative"} <= kinds
        assert ("Rsqrt" in kinds) == normalised


def count_constants(path):
    """Returns the number of elements in float constants that are not scalars."""
    with open(f"{path}/saved_model.pb", "rb") as file:
        (graphs,) = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
    shapes = [
        tf.TensorShape(node.attr["value"].tensor.tensor_shape)
        for function in graphs.graph_def.library.function
        for node in function.node_def
        if node.op == "Const" and node.attr["dtype"].type == tf.float32
    ]
    return sum(shape.num_elements() for shape in shapes if shape.rank)


def count_weights(path):
    """Returns how many numbers the variables of an export hold."""
    variables = tf.train.list_variables(f"{path}/variables/variables")
    return sum(int(np.prod(shape)) for _, shape in variables if shape)


def test_weights_are_written_once(
    tiny_model, tiny_export, normalized_model, custom_export
):
    """As variables, folded or not; constants would be copied at loading."""
    folded = fold_batch_norm(tiny_model).count_params()
    assert count_weights(tiny_export) == folded
    assert count_constants(tiny_export) < 0.01 * folded
    assert count_weights(custom_export) == normalized_model.count_params()
    # Biases are packed into one variable, so an export has fewer variables to load.
    kernels = [v for v in fold_batch_norm(tiny_model).weights if len(v.shape) > 1]
    assert len(tf.saved_model.load(tiny_export).variables) == len(kernels) + 1


def test_network_is_stored_once(tiny_export):
    """All signatures call the same function."""
    with open(f"{tiny_export}/saved_model.pb", "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    functions = saved.meta_graphs[0].graph_def.library.function
    counts = [sum(n.op == "Conv2D" for n in f.node_def) for f in functions]
    assert sum(count > 0 for count in counts) == 1


def test_weights_are_included_by_official_name(tiny_model, tiny_export, custom_export):
    arrays = read_variables(f"{tiny_export}/assets.extra/model.ckpt")
    expected = tf1_variables(tiny_model)
    assert set(arrays) == set(expected) | {"global_step"}
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    assert not tf.io.gfile.glob(f"{custom_export}/assets.extra/model.ckpt*")


def test_model_config_is_included(tiny_model, tiny_export):
    with open(f"{tiny_export}/assets.extra/model.json") as file:
        config = strict_json.from_json(ModelConfig, file.read(), "model.json")
    assert config == tiny_model.model_config


def test_class_names_are_an_asset(tiny_export, strided_export):
    with open(f"{tiny_export}/assets/class_names.txt") as file:
        assert file.read() == "sky\nbuilding\npole\nroad\npavement\n"
    assert not (strided_export / "assets/class_names.txt").exists()


def test_local_paths_are_not_written(tiny_export):
    for folder, _, files in os.walk(tiny_export):
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:
                content = file.read()
            for path in (os.getcwd(), os.path.dirname(tiny_export), gettempdir()):
                assert path.encode() not in content, name


def test_scales_flip_and_crop_size_are_part_of_the_graph(strided_model, tmp_path):
    options = {"scales": (0.5, 1.25), "flip": True, "crop_size": (40, 40)}
    path = str(tmp_path / "export")
    export_saved_model(strided_model, path, **options)
    images = photos(2, 21, 30)
    exported, predictor = SavedModelPredictor(path), Predictor(strided_model, **options)
    expected = predictor.labels(images)
    np.testing.assert_array_equal(exported.labels(images), expected)
    given, probabilities = (
        exported.probabilities(images),
        predictor.probabilities(images),
    )
    np.testing.assert_allclose(given, probabilities, rtol=0, atol=1e-5)
    for name in options:
        fewer = {k: v for k, v in options.items() if k != name}
        assert (
            (Predictor(strided_model, **fewer).labels(images) != expected).numpy().any()
        )


def test_class_names_and_colours_are_included(tiny_export, strided_export):
    info = read_export_info(tiny_export)
    assert info.class_names == ("sky", "building", "pole", "road", "pavement")
    assert info.colors[0] == (128, 128, 128)
    assert read_export_info(str(strided_export)) is None


def test_export_leaves_no_other_files(strided_export):
    assert list_outputs(strided_export.parent) == ["export"]


@pytest.fixture
def earlier_export(strided_export, tmp_path):
    """An export with a file that a new one does not have."""
    path = shutil.copytree(strided_export, tmp_path / "export")
    (path / "old.txt").touch()
    outputs.write_ledger(str(path))
    return path


def test_earlier_export_is_replaced_completely(strided_model, earlier_export):
    export_saved_model(strided_model, f"{earlier_export}/", info=dataset_info("camvid"))
    assert not (earlier_export / "old.txt").exists()
    assert read_export_info(str(earlier_export)) == dataset_info("camvid")
    assert list_outputs(earlier_export.parent) == ["export"]


def test_earlier_export_is_kept_until_the_new_one_is_complete(
    strided_model, earlier_export, monkeypatch
):
    def full_disk(info, folder):
        raise OSError("no space left")

    monkeypatch.setattr(records, "write_info", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export_saved_model(
            strided_model, str(earlier_export), info=dataset_info("camvid")
        )
    assert (earlier_export / "old.txt").exists()
    labels = SavedModelPredictor(str(earlier_export)).labels(photos(1, 5, 6))
    assert labels.shape == (1, 5, 6)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_foreign_files_are_not_overwritten(strided_model, tmp_path, kind):
    path = tmp_path / "export"
    if kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    else:
        path.write_text("years of work")
    with pytest.raises(UserError, match="was not written by deeplab_tf"):
        export_saved_model(strided_model, str(path))
    kept = path / "thesis.tex" if kind == "folder" else path
    assert kept.read_text() == "years of work"
    assert list_outputs(tmp_path) == ["export"]


def test_empty_folder_is_accepted(strided_model, tmp_path):
    export_saved_model(strided_model, str(tmp_path))
    assert (tmp_path / "saved_model.pb").exists()


def test_foreign_saved_model_is_refused(tmp_path):
    module = tf.Module()
    module.double = tf.function(lambda x: 2 * x, [tf.TensorSpec([], tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path), signatures={"double": module.double})
    with pytest.raises(
        UserError, match="no signature serving_default from ImageTensor"
    ):
        SavedModelPredictor(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_error_names_invalid_saved_model(tmp_path, content):
    (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read as a SavedModel"):
        SavedModelPredictor(str(tmp_path))


@pytest.fixture(scope="module")
def windowed_model():
    """LR-ASPP, whose pooling window follows the scale of the image."""
    config = ModelConfig(
        num_classes=4,
        depth_multiplier=0.25,
        context=ContextConfig(
            rates=(),
            filters=16,
            image_pooling_crop_size=(33, 33),
            projection=False,
            squeeze_and_excitation=True,
        ),
        decoder=DecoderConfig((8,), sum_merge=True, outputs_logits=True),
    )
    model = build_model(config)
    shapes = {name: array.shape for name, array in tf1_variables(model).items()}
    load_tf1_variables(model, {name: value(name, s) for name, s in shapes.items()})
    return model


def test_pooling_windows_follow_the_scale_in_an_export(windowed_model, tmp_path):
    path = str(tmp_path / "export")
    export_saved_model(windowed_model, path, scales=(0.5, 1.0))
    images = photos(1, 65, 97)
    labels = predict_labels(windowed_model, images, (0.5, 1.0))
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(SavedModelPredictor(path).labels(images), labels)


def test_export_has_the_channels_of_its_model(tmp_path):
    image = keras.Input((None, None, 5), name="image")
    model = keras.Model(image, keras.layers.Identity(name="logits")(image))
    model.model_config = ModelConfig(num_classes=5, channels=5)
    path = str(tmp_path / "export")
    export_saved_model(model, path)
    predictor = SavedModelPredictor(path)
    assert predictor.channels == 5
    images = np.random.RandomState(2).randint(0, 256, (2, 4, 6, 5), np.uint8)
    np.testing.assert_array_equal(predictor.labels(images), images.argmax(-1))
    with pytest.raises(UserError, match=r"takes .*width, 5\]; received \[1, 4, 6, 3\]"):
        predictor.labels(photos(1, 4, 6))


def test_metadata_is_read_from_an_export(tiny_export, strided_export):
    named, bare = (SavedModelPredictor(str(p)) for p in (tiny_export, strided_export))
    assert (named.num_classes, named.channels) == (5, 3)
    assert named.info == read_export_info(tiny_export)
    assert (bare.num_classes, bare.info) == (4, None)
    assert named.protocol == bare.protocol == {"artefact": "SavedModel"}


def test_labels_only_model_has_no_probabilities(tmp_path):
    module = Shares(None)
    tf.saved_model.save(module, str(tmp_path), {"serving_default": module.labels})
    predictor = SavedModelPredictor(str(tmp_path))
    assert predictor.num_classes is None
    with pytest.raises(UserError, match=f"{tmp_path} returns only labels"):
        predictor.probabilities(photos(1, 4, 6))


def test_float_images_are_rounded_and_clipped(strided_export):
    predictor = SavedModelPredictor(str(strided_export))
    images = photos(1, 33, 49)
    labels = predictor.labels(images)
    moved = images + np.float32(0.4) * np.where(images % 2, 1, -1).astype(np.float32)
    moved[images == 0] = -3
    moved[images == 255] = 258
    assert moved.min() < 0 and moved.max() > 255
    np.testing.assert_array_equal(predictor.labels(moved), labels)


def test_label_out_of_range_is_refused(strided_export):
    predictor = SavedModelPredictor(str(strided_export))
    images = photos(1, 33, 49)
    assert predictor.labels(images).max() == 3
    predictor.num_classes = 4
    predictor.labels(images)
    predictor.num_classes = 3
    message = (
        f"{strided_export} returns the label 3, but with 3 classes the last label is 2"
    )
    with pytest.raises(UserError, match=message):
        predictor.labels(images)


class Shares(tf.Module):
    """A model whose class probabilities are the shares of red, green and blue."""

    def __init__(self, batch, dtype=tf.uint8):
        image = tf.TensorSpec([batch, None, None, 3], dtype, "ImageTensor")
        self.labels = tf.function(self._labels, [image])
        self.shares = tf.function(self._shares, [image])
        self.both = tf.function(
            lambda x: self._labels(x) | self._shares(x), input_signature=[image]
        )

    def _labels(self, ImageTensor):
        return {"SemanticPredictions": tf.argmax(ImageTensor, -1)}

    def _shares(self, ImageTensor):
        colors = tf.cast(ImageTensor, tf.float32)
        shares = colors / tf.reduce_sum(colors, -1, keepdims=True)
        return {"SemanticProbabilities": shares}


@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("together", [True, False])
def test_probabilities_are_read_from_either_signature(tmp_path, together, batch):
    module = Shares(batch)
    signatures = {"serving_default": module.both if together else module.labels}
    if not together:
        signatures["probabilities"] = module.shares
    tf.saved_model.save(module, str(tmp_path), signatures)
    predictor = SavedModelPredictor(str(tmp_path))
    assert predictor.num_classes == 3
    images = np.maximum(photos(2, 4, 6), 1)
    expected = images / images.sum(-1, keepdims=True, dtype=np.float32)
    probabilities = predictor.probabilities(images)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
    labels = predictor.labels(images)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, images.argmax(-1))


def test_float_input_is_not_rounded(tmp_path):
    module = Shares(None, tf.float32)
    tf.saved_model.save(module, str(tmp_path), {"serving_default": module.both})
    image = np.array([[[[10.2, 10.4, 10.3]]]], np.float32)
    assert SavedModelPredictor(str(tmp_path)).labels(image) == 1
