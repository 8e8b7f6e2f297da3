"""Experiment trackers get what TensorBoard gets; their clients really run."""

import json
import struct
import time

import numpy as np
import program_runs
import pytest
import tensorflow as tf
from toy_model import toy_model

from deeplab_tf.config import TrainConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.training.summaries import Summaries
from deeplab_tf.training.trackers import TRACKER_FILE, Tracker
from deeplab_tf.training.trainer import Trainer

INFO = DatasetInfo("colours", ("red", "green (light)"))
METRICS = {
    "miou": 0.3125,
    "pixel_accuracy": 0.8,
    "iou_per_class": [0.5, 0.125],
    "confusion_matrix": [[12, 3], [5, 0]],
}


def read_events(folder):
    """Returns the scalars `{(tag, step): value}` of the event files of a folder."""
    found = {}
    for path in tf.io.gfile.glob(f"{folder}/events.out.tfevents.*"):
        for record in tf.data.TFRecordDataset(path):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                array = tf.make_ndarray(value.tensor)
                if not array.shape:
                    found[value.tag, event.step] = pytest.approx(float(array))
    return found


def read_mlflow(folder, run_id):
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    found = {
        (name, metric.step): metric.value
        for name in run.data.metrics
        for metric in client.get_metric_history(run_id, name)
    }
    return run.data.params, found


def read_wandb(folder, run_id):
    """Reads the offline files of a run: LevelDB logs of protocol buffers."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    config, found = {}, {}
    for path in sorted(folder.glob(f"wandb/offline-run-*-{run_id}/run-*.wandb")):
        content, offset = path.read_bytes(), 7  # after the header of the file
        while offset < len(content):
            _, size, kind = struct.unpack_from("<IHB", content, offset)
            assert kind == 1  # in one piece
            offset += 7
            record = messages.Record.FromString(content[offset : offset + size])
            offset += size
            for item in record.run.config.update:
                config[item.key] = json.loads(item.value_json)
            row = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            for name in row.keys() - {"step"}:
                if not name.startswith("_"):
                    found[name, row["step"]] = row[name]
    return config, found


READERS = {"mlflow": read_mlflow, "wandb": read_wandb}


@pytest.fixture(params=READERS)
def tracker_name(request, monkeypatch, tmp_path):
    pytest.importorskip(request.param)
    monkeypatch.chdir(tmp_path)  # without a server, MLflow writes to ./mlruns
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield request.param
    if request.param == "mlflow":
        forget_server(monkeypatch)


def forget_server(monkeypatch):
    """Undoes `mlflow.set_tracking_uri`, which also sets an environment variable."""
    pytest.importorskip("mlflow").set_tracking_uri(None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def fail(line):
    raise AssertionError(line)


def test_tracker_gets_the_scalars_of_tensorboard(tracker_name, tmp_path):
    folder = tmp_path / "logs"
    for step in (10, 20):  # the second run resumes the first one
        time.sleep(1.1)  # wandb names the files of offline runs by the second
        settings = {"base_learning_rate": 0.007}
        tracker = Tracker(tracker_name, str(folder), settings, fail)
        tracker.start()
        summaries = Summaries(str(folder), INFO, tracker)
        summaries.write_scalars(step, {"train/data_loss": np.float32(5 / step)})
        summaries.write_evaluation(step, METRICS)
        summaries.close()
        tracker.finish()
    run_id = json.loads((folder / TRACKER_FILE).read_text())["run"]
    config, found = READERS[tracker_name](folder, run_id)
    assert float(config["base_learning_rate"]) == 0.007
    expected = read_events(folder)
    assert len(expected) == 2 * 5
    if tracker_name == "mlflow":  # refuses parentheses
        expected = {
            (n.replace("(light)", "_light_"), s): v for (n, s), v in expected.items()
        }
    assert found == expected


def test_training_reports_to_the_tracker(tracker_name, tmp_path):
    config = TrainConfig(
        training_number_of_steps=2,
        log_steps=1,
        train_logdir=str(tmp_path / "logs"),
        tracker=tracker_name,
    )
    images = np.zeros((2, 33, 33, 3), np.float32)
    batch = tf.data.Dataset.from_tensors((images, np.zeros((2, 33, 33, 1), np.uint8)))
    Trainer(toy_model(), config).train(batch.repeat())
    run_id = json.loads((tmp_path / "logs" / TRACKER_FILE).read_text())["run"]
    _, found = READERS[tracker_name](tmp_path / "logs", run_id)
    assert found == read_events(tmp_path / "logs")
    assert len(found) == 2 * 5


def test_unreachable_server_is_reported_once(monkeypatch, tmp_path):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lines = []
    tracker = Tracker("mlflow", str(tmp_path), {}, lines.append)
    tracker.start()
    tracker.log(1, {"train/data_loss": 1.0})
    tracker.finish()
    (line,) = lines
    start = "warning: mlflow failed, and training continues without it: "
    assert line.startswith(start) and "127.0.0.1" in line
    assert not (tmp_path / TRACKER_FILE).exists()


def test_missing_client_is_refused_before_training(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    message = r'--tracker=wandb needs wandb; run pip install "deeplab_tf\[wandb\]"'
    flags = (f"--dataset_dir={tmp_path}", f"--train_logdir={tmp_path}/logs")
    program_runs.assert_refused(
        message, "deeplab_tf.programs.train", *flags, "--tracker=wandb"
    )
    with pytest.raises(UserError, match=message):
        Tracker("wandb", None, {}, fail)
