"""What is exported takes its place when it is whole, and nobody else's."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.checkpoints.pretrained import from_pretrained
from deeplab_tf.errors import UserError
from deeplab_tf.inference import predict_labels
from deeplab_tf.serving.publication import comparison_path, unpublished
from deeplab_tf.serving.saved_model import SavedModelPredictor, export_saved_model


def write_saved_model(folder, content):
    """Writes what looks like a SavedModel from outside."""
    variables = f"{folder}/variables"
    tf.io.gfile.makedirs(variables)
    for path in (f"{folder}/saved_model.pb", f"{variables}/variables.index"):
        with tf.io.gfile.GFile(path, "w") as file:
            file.write(content)


def read(path):
    with tf.io.gfile.GFile(path) as file:
        return file.read()


def test_a_comparison_goes_with_its_artefact(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_text("earlier")
    pathlib.Path(comparison_path(str(path))).write_text("earlier")
    with unpublished(str(path)) as unproven:
        pathlib.Path(unproven).write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("cat")
    with (
        pytest.raises(UserError, match="photos is there and is no SavedModel"),
        unpublished(str(tmp_path / "photos")),
    ):
        pass
    assert (tmp_path / "photos/cat.jpg").exists()


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
def test_a_folder_named_like_a_file_is_left_alone(name, tmp_path):
    (tmp_path / name).mkdir()
    kind = name.partition(".")[2]
    with (
        pytest.raises(UserError, match=f"{name} is there and is no {kind}; give a new"),
        unpublished(str(tmp_path / name)),
    ):
        pass
    assert (tmp_path / name).is_dir()


def test_a_file_in_the_place_of_a_folder_is_left_alone(tmp_path):
    (tmp_path / "export").write_text("mine")
    with (
        pytest.raises(UserError, match="export is there and is no SavedModel"),
        unpublished(str(tmp_path / "export")),
    ):
        pass
    assert (tmp_path / "export").read_text() == "mine"


@pytest.mark.parametrize("place", ["{}", "ram://publication"])
def test_a_folder_is_replaced_by_a_whole_one(place, tmp_path):
    folder = place.format(tmp_path)
    path = f"{folder}/new/export"
    for content in ("first", "second"):
        with unpublished(path) as unfinished:
            write_saved_model(unfinished, content)
        assert read(f"{path}/saved_model.pb") == content
        assert read(f"{path}/variables/variables.index") == content
        assert [x.rstrip("/") for x in tf.io.gfile.listdir(f"{folder}/new")] == [
            "export"
        ]
    with pytest.raises(KeyboardInterrupt), unpublished(path) as unfinished:
        write_saved_model(unfinished, "third")
        raise KeyboardInterrupt
    assert read(f"{path}/saved_model.pb") == "second"
    assert len(tf.io.gfile.listdir(f"{folder}/new")) == 1


def test_an_earlier_one_comes_back_if_the_new_one_cannot_take_its_place(tmp_path):
    write_saved_model(tmp_path / "export", "first")
    with pytest.raises(FileNotFoundError), unpublished(str(tmp_path / "export")):
        pass  # nothing was written
    assert (tmp_path / "export/saved_model.pb").read_text() == "first"
    assert [x.name for x in tmp_path.iterdir()] == ["export"]


def test_a_link_stays_one(tmp_path):
    write_saved_model(tmp_path / "3", "first")
    (tmp_path / "current").symlink_to("3")
    with unpublished(str(tmp_path / "current")) as unfinished:
        write_saved_model(unfinished, "second")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "3/saved_model.pb").read_text() == "second"


def test_the_folder_that_one_is_in_is_replaced(tmp_path, monkeypatch):
    write_saved_model(tmp_path / "export", "first")
    monkeypatch.chdir(tmp_path / "export")
    with unpublished(".") as unfinished:
        write_saved_model(unfinished, "second")
    assert (tmp_path / "export/saved_model.pb").read_text() == "second"
    assert [x.name for x in tmp_path.iterdir()] == ["export"]


def test_what_a_killed_program_left_is_removed(tmp_path):
    write_saved_model(tmp_path / ".unfinished.export/export", "half")
    (tmp_path / "unfinished.export").mkdir()  # of somebody else
    with unpublished(str(tmp_path / "export")) as unfinished:
        write_saved_model(unfinished, "whole")
    names = sorted(x.name for x in tmp_path.iterdir())
    assert names == ["export", "unfinished.export"]


def test_a_model_is_exported_to_where_no_folders_are(tiny_model):
    images = np.random.RandomState(3).randint(0, 256, (1, 20, 30, 3)).astype(np.uint8)
    path = "ram://exports/served/1"
    export_saved_model(tiny_model, path)
    labels = SavedModelPredictor(path).labels(images)
    np.testing.assert_array_equal(labels, predict_labels(tiny_model, images))
    again = from_pretrained(path)
    np.testing.assert_array_equal(labels, predict_labels(again, images))
