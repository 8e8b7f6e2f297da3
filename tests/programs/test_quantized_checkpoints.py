"""Programs use checkpoints of quantisation-aware training with or without rounding."""

import json

import numpy as np
import pytest
from program_runs import assert_refused, run
from quantized_models import quantize_copy
from record_files import make_record, write_shards

from deeplab_tf import load_artefact, predict_labels
from deeplab_tf.checkpoints.tf1 import save_tf1_checkpoint
from deeplab_tf.config import Experiment
from deeplab_tf.data.info import generic_info
from deeplab_tf.data.records import write_info

EXPORT = "deeplab_tf.programs.export"

pytestmark = pytest.mark.usefixtures("shallow")


def make_images(*shape):
    return np.random.RandomState(6).randint(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def quantized(tiny_model):
    return quantize_copy(tiny_model, make_images(2, 33, 49))


@pytest.fixture(scope="module")
def logs(quantized, tmp_path_factory):
    """A folder with a quantised checkpoint."""
    folder = tmp_path_factory.mktemp("logs")
    save_tf1_checkpoint(quantized, str(folder / "model.ckpt-7"))
    experiment = Experiment(model=quantized.model_config, info=generic_info(5))
    (folder / "experiment.json").write_text(experiment.to_json())
    return folder


@pytest.fixture(scope="module")
def records(quantized, tmp_path_factory):
    """A record with the labels of the quantised model."""
    folder, image = tmp_path_factory.mktemp("records"), make_images(33, 49)
    label = predict_labels(quantized, image).astype(np.uint8)
    write_shards(folder, make_record(image, label, "a"), split="val")
    write_info(generic_info(5), str(folder))
    return str(folder)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [((), "simulated int8"), (("--quantize_delay_step=-1",), "float32")],
)
def test_evaluation_rounds_by_default(logs, records, tmp_path, flags, precision):
    paths = (f"--checkpoint_dir={logs}", f"--eval_logdir={tmp_path}")
    run(
        "deeplab_tf.programs.eval",
        *paths,
        f"--dataset_dir={records}",
        "--output_stride=16",
        *flags,
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["protocol"]["precision"] == precision
    assert (metrics["pixel_accuracy"] == 1) == (precision == "simulated int8")


@pytest.mark.parametrize("flags", [(), ("--quantize_delay_step=0",)])
def test_saved_model_rounds_on_request(tiny_model, quantized, logs, tmp_path, flags):
    path, image = str(tmp_path / "export"), make_images(1, 33, 49)
    paths = (f"--checkpoint_path={logs}", f"--export_path={path}")
    run(EXPORT, *paths, "--output_stride=16", *flags)
    labels = load_artefact(path).labels(image)
    shares = [
        np.mean(labels == predict_labels(model, image))
        for model in (tiny_model, quantized)
    ]
    assert shares[bool(flags)] > max(0.99, shares[not flags])


@pytest.mark.parametrize(
    ("message", "name", "flags"),
    [
        ("m.tflite cannot hold the rounded", "m.tflite", ["--quantize_delay_step=0"]),
        ("m.keras cannot hold the rounded", "m.keras", ["--quantize_delay_step=0"]),
        (
            "--calibration_images has no effect on",
            "m.tflite",
            ["--quantize=int8", "--calibration_images=3"],
        ),
        (
            "the records with the images to calibrate",
            "m.tflite",
            ["--quantize=int8", "--quantize_delay_step=-1"],
        ),
        (
            "needs --precision=float32",
            "m",
            ["--precision=bfloat16", "--quantize_delay_step=0"],
        ),
    ],
)
def test_impossible_exports_are_refused(logs, tmp_path, message, name, flags):
    pytest.importorskip("ai_edge_litert.interpreter")
    paths = (f"--checkpoint_path={logs}", f"--export_path={tmp_path}/{name}")
    assert_refused(message, EXPORT, *paths, "--output_stride=16", *flags)


def test_exact_checkpoint_cannot_be_rounded(tiny_model, logs, tmp_path):
    save_tf1_checkpoint(tiny_model, str(tmp_path / "model.ckpt"))
    (tmp_path / "experiment.json").write_bytes((logs / "experiment.json").read_bytes())
    paths = (f"--checkpoint_path={tmp_path}", f"--export_path={tmp_path}/m")
    message = "was not trained with quantisation .*no .*/min.; train with --quantize_d"
    flags = ("--output_stride=16", "--quantize_delay_step=0")
    assert_refused(message, EXPORT, *paths, *flags)
