"""Exports are published atomically, together with their comparison."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from shallow_network import shallow_mobilenet_v2

from deeplab_tf.checkpoints.pretrained import from_pretrained
from deeplab_tf.errors import UserError
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.serving.publication import comparison_path, publish_artefact
from deeplab_tf.serving.saved_model import SavedModelPredictor, export_saved_model


def write_saved_model(folder, content):
    """Writes the files of a SavedModel with placeholder content."""
    variables = f"{folder}/variables"
    tf.io.gfile.makedirs(variables)
    for path in (f"{folder}/saved_model.pb", f"{variables}/variables.index"):
        with tf.io.gfile.GFile(path, "w") as file:
            file.write(content)


def read(path):
    with tf.io.gfile.GFile(path) as file:
        return file.read()


def export(path, content):
    """Publishes an export whose files have the given content."""
    with publish_artefact(str(path)) as unfinished:
        if str(path).endswith((".tflite", ".onnx")):
            pathlib.Path(unfinished).write_text(content)
        else:
            write_saved_model(unfinished, content)


def visible_files(folder):
    return sorted(x.name for x in folder.iterdir() if not x.name.startswith("."))


def test_stale_comparison_is_removed(tmp_path):
    path = tmp_path / "m.tflite"
    with publish_artefact(str(path)) as unfinished:
        pathlib.Path(unfinished).write_text("earlier")
        pathlib.Path(comparison_path(unfinished)).write_text("earlier")
    assert visible_files(tmp_path) == ["m.tflite", "m.tflite.parity.json"]
    export(path, "new")
    assert path.read_text() == "new"
    assert visible_files(tmp_path) == ["m.tflite"]


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
def test_folder_named_like_a_file_is_refused(name, tmp_path):
    (tmp_path / name).mkdir()
    kind = name.partition(".")[2]
    with pytest.raises(UserError, match=f"{name} exists but is a folder, not a {kind}"):
        export(tmp_path / name, "new")
    assert (tmp_path / name).is_dir()


@pytest.mark.parametrize("root", ["{}", "ram://publication"])
def test_earlier_export_is_replaced_by_a_complete_one(root, tmp_path):
    folder = root.format(tmp_path)
    path = f"{folder}/new/export"
    for content in ("first", "second"):
        export(path, content)
        assert read(f"{path}/saved_model.pb") == content
        assert read(f"{path}/variables/variables.index") == content
        assert [x.rstrip("/") for x in tf.io.gfile.listdir(f"{folder}/new")] == [
            "export"
        ]
    with pytest.raises(KeyboardInterrupt), publish_artefact(path) as unfinished:
        write_saved_model(unfinished, "third")
        raise KeyboardInterrupt
    assert read(f"{path}/saved_model.pb") == "second"
    assert len(tf.io.gfile.listdir(f"{folder}/new")) == 1


def test_model_is_exported_to_a_file_system_without_folders(tiny_model):
    images = np.random.RandomState(3).randint(0, 256, (1, 20, 30, 3)).astype(np.uint8)
    path = "ram://exports/served/1"
    export_saved_model(tiny_model, path)
    labels = SavedModelPredictor(path).labels(images)
    np.testing.assert_array_equal(labels, predict_labels(tiny_model, images))
    with shallow_mobilenet_v2():
        again = from_pretrained(path)
    np.testing.assert_array_equal(labels, predict_labels(again, images))
