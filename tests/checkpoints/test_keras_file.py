"""`.keras` files are checkpoints that describe their model."""

import dataclasses
import http.server
import json
import zipfile

import keras
import loopback
import numpy as np
import pytest

import deeplab_tf
from deeplab_tf.checkpoints.pretrained import find_weights
from deeplab_tf.checkpoints.restore import tf1_variables
from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import DeepLab

LOGITS = {"logits/semantic/weights", "logits/semantic/biases"}

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def keras_file(tiny_model, tmp_path_factory):
    """A file of `tiny_model`, saved while frozen, as after fine-tuning."""
    path = tmp_path_factory.mktemp("keras") / "m.keras"
    tiny_model.trainable = False
    tiny_model.save(path)
    tiny_model.trainable = True
    return path


def find_differing(model, other):
    """Returns the names of the variables that differ between two models."""
    a, b = tf1_variables(model), tf1_variables(other)
    assert set(a) == set(b)
    return {name for name in a if not np.array_equal(a[name], b[name])}


def test_keras_file_is_loaded_as_a_trainable_model(keras_file, tiny_model):
    model = deeplab_tf.from_pretrained(keras_file)
    assert type(model) is DeepLab
    assert model.model_config == tiny_model.model_config
    assert find_differing(model, tiny_model) == set()
    trainable = [len(x.trainable_variables) for x in (model, tiny_model)]
    assert trainable[0] == trainable[1] > 0
    # As `train.py --tf_initial_checkpoint` loads it.
    assert load_tf1_checkpoint(model, find_weights(keras_file)).complete


def test_keras_file_is_loaded_with_new_classes_and_output_stride(
    keras_file, tiny_model, capsys
):
    model = deeplab_tf.from_pretrained(keras_file, num_classes=3, output_stride=8)
    expected = dataclasses.replace(tiny_model.model_config, num_classes=3)
    assert model.model_config == expected.at_output_stride(8)
    assert find_differing(model, tiny_model) == LOGITS
    assert "2 skipped because of their shape (logits/" in capsys.readouterr().out


def test_url_of_a_keras_file_is_loaded(keras_file, tiny_model, tmp_path):
    class Handler(loopback.QuietHandler, http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(keras_file.parent))

    with loopback.serve(Handler) as server:
        url = f"{server.url}/{keras_file.name}"
        model = deeplab_tf.from_pretrained(url, cache_dir=str(tmp_path))
    assert find_differing(model, tiny_model) == set()


def rewrite(path, target, **members):
    """Copies a ZIP archive; replaces members, and leaves those out that are None."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            content = members.get(name.partition(".")[0], source.read(name))
            if content is not None:
                copy.writestr(name, content)


def truncate(path, target):
    target.write_bytes(path.read_bytes()[:1000])


def flip_bits(path, target):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 255
    target.write_bytes(content)


def write_text(_, target):
    target.write_text("<html>login</html>")


def remove_weights(path, target):
    rewrite(path, target, model=None)


def remove_layers(path, target):
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    del config["config"]["layers"][1:]
    rewrite(path, target, config=json.dumps(config))


DAMAGES = [truncate, flip_bits, write_text, remove_weights, remove_layers]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_file_is_refused(keras_file, tmp_path, damage):
    path = tmp_path / "damaged.keras"
    damage(keras_file, path)
    with pytest.raises(
        UserError, match=r"damaged.keras cannot .* \(.+\); .* save"
    ) as e:
        deeplab_tf.from_pretrained(path)
    assert "\n" not in str(e.value)


def test_other_models_are_refused_before_they_are_loaded(keras_file, tmp_path):
    image = keras.Input((4, 4, 3))
    other = keras.Model(image, keras.layers.Lambda(lambda x: x)(image))
    other.save(tmp_path / "other.keras")
    with pytest.raises(
        UserError, match=r"other.keras contains .* Functional, not DeepLab"
    ):
        deeplab_tf.from_pretrained(tmp_path / "other.keras")
    rewrite(keras_file, tmp_path / "list.keras", config="[]")
    with pytest.raises(UserError, match=r"list.keras contains .* None, not DeepLab"):
        deeplab_tf.from_pretrained(tmp_path / "list.keras")


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "m.weights.h5"])
def test_hdf5_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(
        UserError, match=rf"{name} is an HDF5 file.*save .*\.keras file"
    ):
        deeplab_tf.from_pretrained(tmp_path / name)


def test_missing_file_is_named():
    with pytest.raises(UserError, match=r"^there is no file missing\.keras$"):
        deeplab_tf.from_pretrained("missing.keras")
