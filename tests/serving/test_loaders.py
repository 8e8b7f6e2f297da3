"""All loaders of SavedModels get the labels of the Keras model from an export."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from noise_images import photos

from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.config import ModelConfig
from deeplab_tf.images.inputs import read_image
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.serving.saved_model import export_saved_model
from deeplab_tf.serving.signatures import make_features_model

CLI = "tensorflow.python.tools.saved_model_cli"


def label_function(loaded):
    # A signature alone does not keep its variables alive.
    return lambda images: loaded.signatures["serving_default"](
        ImageTensor=tf.constant(images)
    )["SemanticPredictions"]


def load_with_tensorflow(path, _):
    return label_function(tf.saved_model.load(path))


def load_with_keras(path, _):
    layer = keras.layers.TFSMLayer(path, call_endpoint="serving_default")
    return lambda images: layer(tf.constant(images))["SemanticPredictions"]


def load_with_hub(path, _):
    hub = pytest.importorskip("tensorflow_hub")
    return label_function(hub.load(path))


def load_with_cli(path, folder):
    def labels(images):
        np.save(folder / "images.npy", images)
        subprocess.run(
            [
                *(sys.executable, "-m", CLI, "run", "--dir", path),
                *("--tag_set", "serve", "--signature_def", "serving_default"),
                *("--inputs", f"ImageTensor={folder}/images.npy"),
                *("--outdir", str(folder), "--overwrite"),
            ],
            check=True,
            capture_output=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        return np.load(folder / "SemanticPredictions.npy")

    return labels


def load_with_session(path, _):
    """Runs the export as TensorFlow Serving does."""

    def labels(images):
        return run_in_session(path, "serving_default", images)["SemanticPredictions"]

    return labels


def run_in_session(path, name, value):
    """Runs a signature of one input and returns its outputs."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], path)
        signature = meta.signature_def[name]
        (source,) = signature.inputs.values()
        fetches = {key: info.name for key, info in signature.outputs.items()}
        return session.run(fetches, {source.name: value})


LOADERS = [
    load_with_tensorflow,
    load_with_keras,
    load_with_hub,
    load_with_session,
    pytest.param(load_with_cli, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("loader", LOADERS)
def test_labels_match_the_model(loader, tiny_model, tiny_export, tmp_path):
    labels = loader(tiny_export, tmp_path)
    for shape in ((2, 33, 49), (1, 20, 17)):
        images = photos(*shape)
        expected = predict_labels(tiny_model, images)
        assert expected.max() > expected.min()
        np.testing.assert_array_equal(labels(images), expected)


def test_all_signatures_run_in_a_session(tiny_model, tiny_export):
    images = photos(2, 20, 17)
    expected = predict_labels(tiny_model, images)
    outputs = run_in_session(tiny_export, "probabilities", images)
    probabilities = outputs["SemanticProbabilities"]
    np.testing.assert_array_equal(probabilities.argmax(-1), expected)
    features = run_in_session(tiny_export, "features", images)
    assert features["high_level"].shape == (2, 2, 2, 16)
    files = [*(tf.io.encode_png(image).numpy() for image in images), b"", b"no"]
    outputs = run_in_session(tiny_export, "encoded", files)
    assert [bool(error) for error in outputs["error"]] == [False, False, True, True]
    maps = [tf.io.decode_png(label)[..., 0] for label in outputs["label_map_bytes"][:2]]
    np.testing.assert_array_equal(maps, expected)


def test_export_can_be_a_layer_of_another_model(tiny_model, tiny_export):
    encoder = keras.layers.TFSMLayer(tiny_export, call_endpoint="features")
    image = keras.Input((33, 49, 3), dtype="uint8")
    average = keras.layers.GlobalAveragePooling2D()(encoder(image)["high_level"])
    classifier = keras.Model(image, keras.layers.Dense(2)(average))
    images = photos(2, 33, 49)
    assert classifier(images).shape == (2, 2)
    expected = make_features_model(tiny_model)(images.astype(np.float32))["high_level"]
    np.testing.assert_allclose(
        keras.Model(image, average)(images), np.mean(expected, (1, 2)), atol=1e-5
    )


@pytest.fixture(scope="module")
def real_model(voc_checkpoint):
    model = build_model(ModelConfig.from_official_flags({}))
    load_tf1_checkpoint(model, voc_checkpoint)
    return model


@pytest.fixture(scope="module")
def real_export(real_model, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("real") / "export")
    export_saved_model(real_model, path)
    return path


@pytest.fixture(scope="module")
def batches(voc_root):
    """Images of every size in the split, up to two per batch."""
    names = (voc_root / "ImageSets/Segmentation/val.txt").read_text().split()
    sizes = {}
    for name in names:
        image = read_image(str(voc_root / f"JPEGImages/{name}.jpg"))
        sizes.setdefault(image.shape, []).append(image)
    return [np.stack(images[:2]) for images in sizes.values()]


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
def test_labels_of_real_images_match_the_model(
    loader, real_model, real_export, batches, tmp_path
):
    if loader is load_with_cli:
        batches = batches[:3]  # each call loads the model
    labels = loader(real_export, tmp_path)
    equal = []
    for images in batches:
        expected = predict_labels(real_model, images)
        equal += [np.ravel(np.asarray(labels(images)) == expected)]
    assert len(equal) >= 3 and max(map(len, batches)) == 2
    assert np.mean(np.concatenate(equal)) >= 0.9999
