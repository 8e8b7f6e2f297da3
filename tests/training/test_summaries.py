"""TensorBoard event files."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.evaluation.gallery import ScoredImage
from deeplab_tf.training.summaries import Summaries

INFO = DatasetInfo("colours", ("red", "green", "deep blue"))
METRICS = {
    "miou": 0.3125,
    "pixel_accuracy": 0.8,
    "iou_per_class": [0.5, 0.125, None],
    "confusion_matrix": [[12, 3, 0], [5, 0, 0], [0, 0, 0]],
}
START = tf.compat.v1.SessionLog.START


def events(folder):
    """Returns the events of the only event file of a folder."""
    (path,) = tf.io.gfile.glob(f"{folder}/events.out.tfevents.*")
    records = [record.numpy() for record in tf.data.TFRecordDataset(path)]
    return [tf.compat.v1.Event.FromString(record) for record in records]


def values(folder):
    """Returns `{(step, tag): value}` and `{tag: plugin}` of the only event file."""
    found, plugins = {}, {}
    for event in events(folder):
        for value in event.summary.value:
            assert (event.step, value.tag) not in found
            found[event.step, value.tag] = tf.make_ndarray(value.tensor)
            plugins[value.tag] = (
                value.metadata.plugin_data.plugin_name,
                value.metadata.data_class,
            )
    return found, plugins


@pytest.fixture(params=["", "ram://"])
def folder(request, tmp_path):
    """A local folder, and one of another file system such as `gs://`."""
    return request.param + str(tmp_path / "new")


def test_scalars_are_written(folder):
    summaries = Summaries(folder, INFO)
    summaries.write_scalars(10, {"train/data_loss": 2.5, "train/learning_rate": 0.007})
    summaries.write_scalars(20, {"train/data_loss": np.float64(1.5)})
    summaries.close()
    found, plugins = values(folder)
    assert found == {
        (10, "train/data_loss"): 2.5,
        (10, "train/learning_rate"): np.float32(0.007),
        (20, "train/data_loss"): 1.5,
    }
    for value in found.values():
        assert value.dtype == np.float32 and value.shape == ()
    # The number of DATA_CLASS_SCALAR in TensorFlow's summary.proto.
    assert set(plugins.values()) == {("scalars", 1)}


def test_evaluation_scalars_are_written(tmp_path):
    summaries = Summaries(str(tmp_path), INFO)
    summaries.write_evaluation(30, METRICS)
    summaries.close()
    found, _ = values(tmp_path)
    scores = {tag: float(v) for (_, tag), v in found.items() if not v.shape}
    assert scores == {
        "eval/miou": 0.3125,
        "eval/pixel_accuracy": pytest.approx(0.8),
        "eval/iou/red": 0.5,
        "eval/iou/green": 0.125,
    }


@pytest.mark.parametrize("info", [INFO, None])
def test_evaluation_images_are_written(info, tmp_path):
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (20, 30, 3)).astype(np.uint8)
    truth, prediction = random.randint(0, 3, (2, 20, 30))
    summaries = Summaries(str(tmp_path), info)
    summaries.write_evaluation(
        30, METRICS, [ScoredImage("a", image, truth, prediction, 1)] * 2
    )
    summaries.close()
    found, plugins = values(tmp_path)
    tags = {tag for tag, (plugin, _) in plugins.items() if plugin == "images"}
    assert tags == {"eval/confusion_matrix", "eval/example_0", "eval/example_1"}
    # The number of DATA_CLASS_BLOB_SEQUENCE.
    assert plugins["eval/example_0"] == ("images", 3)
    for tag in tags:
        width, height, png = found[30, tag]
        with Image.open(io.BytesIO(png)) as decoded:
            assert decoded.size == (int(width), int(height))
            shown = np.array(decoded)
        if tag != "eval/confusion_matrix":
            np.testing.assert_array_equal(shown[24:44, 4:34], image)
        elif info:
            counts = np.array(METRICS["confusion_matrix"])
            expected = visualize.plot_confusion(counts, info.class_names)
            np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize(("step", "start_step"), [(0, 1), (40, 41)])
def test_restart_writes_session_log(step, start_step, tmp_path):
    summaries = Summaries(str(tmp_path), INFO)
    summaries.restart(step)
    summaries.write_scalars(50, {"train/data_loss": 2.5})
    summaries.close()
    version, start, _ = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    # TensorBoard drops the start step, too, but step 40 is in the checkpoint.
    assert (start.session_log.status, start.step) == (START, start_step)
    assert abs(start.wall_time - version.wall_time) < 60


def test_flushed_values_are_readable_during_training(tmp_path):
    summaries = Summaries(str(tmp_path), INFO)
    for step in range(100):
        summaries.write_scalars(step, {"train/data_loss": 2.5})
    # Values are written every minute.
    assert len(values(tmp_path)[0]) < 90
    summaries.flush()
    assert len(values(tmp_path)[0]) == 100
    summaries.write_scalars(100, {"train/data_loss": 1.5})
    summaries.close()
    summaries.close()
    assert len(values(tmp_path)[0]) == 101


def test_summaries_without_folder_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summaries = Summaries(None, None)
    summaries.restart(0)
    summaries.write_scalars(10, {"train/data_loss": 2.5})
    summaries.write_evaluation(10, METRICS)
    summaries.flush()
    summaries.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tensorboard_reads_scalars(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    summaries = Summaries(str(tmp_path), INFO)
    for step in (10, 20):
        summaries.write_scalars(step, {"train/data_loss": 5.0 / step})
    summaries.close()
    found = accumulator.EventAccumulator(str(tmp_path)).Reload()
    events = found.Tensors("train/data_loss")
    assert [event.step for event in events] == [10, 20]
    assert [float(tf.make_ndarray(e.tensor_proto)) for e in events] == [0.5, 0.25]
    assert "train/data_loss" in found.PluginTagToContent("scalars")
