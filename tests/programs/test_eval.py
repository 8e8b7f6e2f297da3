"""eval.py beyond the official flags: more metrics, devices, exports, the report."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from golden_case import value
from listing import list_outputs
from program_runs import assert_refused, run

from deeplab_tf import (
    DataConfig,
    Experiment,
    ModelConfig,
    build_model,
    dataset_info,
    export_saved_model,
    save_tf1_checkpoint,
)
from deeplab_tf.checkpoints import following
from deeplab_tf.models.variables import official_variables
from deeplab_tf.training.resume import write_experiment

EVAL = "deeplab_tf.programs.eval"
SHALLOW_EVAL = (sys.executable, ROOT / "tests/shallow_network.py", "eval.py")

# Fixtures of the module compile; its tests run eagerly.
pytestmark = pytest.mark.usefixtures("shallow", "eager_execution")


@pytest.fixture(scope="module")
def artefacts(shallow, tiny_records, tmp_path_factory):
    """A folder with `logs`, the checkpoint of a narrow model, and `exported`."""
    folder = tmp_path_factory.mktemp("evaluated")
    config = ModelConfig.from_official_flags(
        {"depth_multiplier": 0.1, "num_classes": 21, "aspp_convs_filters": 16}
    )
    model = build_model(config)
    for name, variable in official_variables(model).items():
        variable.assign(value(name, variable.shape))
    save_tf1_checkpoint(model, str(folder / "logs/model.ckpt-7"))
    data = DataConfig(tiny_records, "pascal_voc_seg")
    write_experiment(Experiment(config, data), str(folder / "logs"))
    info = dataset_info("pascal_voc_seg")
    export_saved_model(model, str(folder / "exported"), info=info)
    return folder


def evaluate(source, folder, *flags):
    """Runs eval.py; returns its output and its metrics."""
    out = run(EVAL, f"--checkpoint_dir={source}", f"--eval_logdir={folder}", *flags)
    return out, json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def baseline(artefacts):
    """Output and metrics of the checkpoint with default flags."""
    return evaluate(artefacts / "logs", artefacts / "baseline")


def test_report_is_written_next_to_metrics(baseline, artefacts):
    out, metrics = baseline
    assert f"written: {artefacts}/baseline/report.html" in out
    page = (artefacts / "baseline/report.html").read_text()
    assert f"{100 * metrics['miou']:.2f}" in page
    # The two images of the split, by name.
    assert "2007_000003" in page and "2007_000004" in page


def test_report_compares_with_an_earlier_evaluation(artefacts, baseline, tmp_path):
    earlier = artefacts / "baseline/metrics.json"
    _, metrics = evaluate(artefacts / "logs", tmp_path, f"--compare={earlier}")
    assert metrics["miou_per_image"] == baseline[1]["miou_per_image"]
    assert list(metrics["miou_per_image"]) == ["2007_000003", "2007_000004"]
    page = (tmp_path / "report.html").read_text()
    assert f"Compared with {earlier}." in page
    assert "got better or worse." in page


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--compare=none.json", "--noreport"], "--compare needs --eval_logdir"),
        (["--compare=none.json"], "--compare=none.json cannot be read; give the met"),
    ],
)
def test_invalid_comparison_is_refused(artefacts, tmp_path, flags, message):
    logdir = f"--eval_logdir={tmp_path / 'eval'}"
    source = f"--checkpoint_dir={artefacts / 'logs'}"
    assert_refused(message, EVAL, source, logdir, *flags)
    assert not (tmp_path / "eval").exists()


def test_optional_metrics_are_written_and_printed(artefacts, baseline, tmp_path):
    flags = ("--trimap=void", "--boundary_iou", "--calibration")
    # The limit is large enough for complete images.
    flags = (*flags, "--memory_limit_mb=1000")
    out, metrics = evaluate(artefacts / "logs", tmp_path, *flags)
    assert metrics["confusion_matrix"] == baseline[1]["confusion_matrix"]
    assert metrics["protocol"]["memory_limit_mb"] == 1000
    assert metrics["trimap"]["around"] == "void"
    assert metrics["trimap"]["widths"][0] == 1
    # The first row of every label is void: all are within 40 pixels of it.
    pixels = np.sum(baseline[1]["confusion_matrix"])
    assert (
        0 < metrics["trimap"]["pixels"][0] < metrics["trimap"]["pixels"][-1] <= pixels
    )
    assert 0 <= metrics["boundary_iou"]["boundary_iou"] <= 1
    assert sum(metrics["calibration"]["pixels"]) == pixels
    for line in ("mIoU around void: 1 px ", "Boundary IoU ", "calibration error 0."):
        assert line in out
    page = (tmp_path / "report.html").read_text()
    assert "Boundary IoU" in page and "Calibration" in page


def test_saved_model_scores_like_its_checkpoint(artefacts, baseline, tiny_records):
    paths = f"--dataset_dir={tiny_records}"
    folder = artefacts / "of_export"
    _, metrics = evaluate(artefacts / "exported", folder, paths)
    assert metrics["confusion_matrix"] == baseline[1]["confusion_matrix"]
    assert metrics["protocol"] == {
        "artefact": "SavedModel",
        "checkpoint": str(artefacts / "exported"),
        "dataset": "pascal_voc_seg",
        "split": "val",
        "eval_batch_size": 1,
        "ignore_label": 255,
        "min_resize_value": None,
        "max_resize_value": None,
        "resize_factor": None,
    }


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--output_stride=8", "output_stride"),
        ("--eval_scales=0.5", "eval_scales"),
        ("--window_size=33,33", "window_size"),
        ("--preset=mobilenetv2_coco_voc_trainaug", "preset"),
        ("--precision=bfloat16", "precision"),
        ("--num_clones=2", "num_clones"),
        ("--eval_interval_secs=1", "eval_interval_secs"),
    ],
)
def test_model_flags_are_refused_for_exports(flag, name, artefacts, tiny_records):
    paths = f"--dataset_dir={tiny_records}"
    source = f"--checkpoint_dir={artefacts}/exported"
    assert_refused(rf"--{name} has no effect on \S+exported", EVAL, source, paths, flag)


def test_export_with_a_different_class_count_is_refused(tiny_export, tiny_records):
    paths = (f"--checkpoint_dir={tiny_export}", f"--dataset_dir={tiny_records}")
    message = "has 5 classes and 3 channels, but pascal_voc_seg has 21 and 3"
    assert_refused(message, EVAL, *paths, "--dataset=pascal_voc_seg")


def test_windows_are_part_of_the_protocol(artefacts, baseline, tmp_path):
    flags = ("--window_size=33,33", "--noreport")
    _, metrics = evaluate(artefacts / "logs", tmp_path, *flags)
    assert metrics["protocol"]["window_size"] == [33, 33]
    assert metrics["confusion_matrix"] != baseline[1]["confusion_matrix"]
    assert list_outputs(tmp_path) == ["metrics.json"]


def test_too_small_memory_limit_is_refused(artefacts, tmp_path):
    paths = (f"--checkpoint_dir={artefacts}/logs", f"--eval_logdir={tmp_path}/new")
    assert_refused("limit of 1 MiB is too small", EVAL, *paths, "--memory_limit_mb=1")
    assert not os.listdir(tmp_path)


def test_two_devices_score_like_one(artefacts, baseline, tmp_path):
    command = (*SHALLOW_EVAL, f"--checkpoint_dir={artefacts}/logs")
    result = subprocess.run(
        [*command, f"--eval_logdir={tmp_path}", "--num_clones=2"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == 2
    assert metrics["confusion_matrix"] == baseline[1]["confusion_matrix"]
    page = (tmp_path / "report.html").read_text()
    assert f"python eval.py --checkpoint_dir={artefacts}/logs --eval_logdir=" in page


def test_corruptions_are_scored_at_every_severity(artefacts, baseline, tmp_path):
    pytest.importorskip("imagecorruptions", reason="needs imagecorruptions-imaug")
    flags = ("--corruptions=contrast,shot_noise", "--severities=1,5")
    # Corruptions need 32 pixels; the smallest image has 29.
    flags = (*flags, "--min_resize_value=40", "--max_resize_value=200")
    out, metrics = evaluate(artefacts / "logs", tmp_path, *flags)
    robustness = metrics["robustness"]
    assert robustness["clean"] == metrics["miou"]
    assert robustness["severities"] == [1, 5]
    assert list(robustness["miou"]) == ["contrast", "shot_noise"]
    scores = {*robustness["miou"]["contrast"], *robustness["miou"]["shot_noise"]}
    assert len(scores - {metrics["miou"]}) > 1
    assert f"contrast: 1: {robustness['miou']['contrast'][0]:.4f}, 5: " in out
    assert "shot_noise" in (tmp_path / "report.html").read_text()


def test_metrics_survive_a_failing_corruption(artefacts, tmp_path):
    pytest.importorskip("imagecorruptions", reason="needs imagecorruptions-imaug")
    paths = (f"--checkpoint_dir={artefacts}/logs", f"--eval_logdir={tmp_path}")
    # The smaller image has 29 rows.
    message = "corruptions need images of at least 32x32 pixels; received 64x29$"
    assert_refused(message, EVAL, *paths, "--corruptions=fog", "--severities=1")
    assert "miou" in json.loads((tmp_path / "metrics.json").read_text())


def test_new_checkpoints_of_a_folder_are_scored(artefacts, tmp_path, monkeypatch):
    folder = tmp_path / "logs"

    def copy_to_9():
        assert (tmp_path / "eval/metrics.json").exists()
        for path in sorted(folder.glob("model.ckpt-7.*"), reverse=True):
            shutil.copy(path, folder / path.name.replace("ckpt-7", "ckpt-9"))

    # What happens while the program waits. As in the official archives, no file names
    # the latest checkpoint.
    events = [lambda: shutil.copytree(artefacts / "logs", folder), copy_to_9]
    polls = []

    def sleep(seconds):
        polls.append(seconds)
        if len(polls) % 2 == 0:
            events.pop(0)()

    monkeypatch.setattr(following.time, "sleep", sleep)
    follow = ("--eval_interval_secs=9", "--max_number_of_evaluations=2", "--noreport")
    paths = (f"--checkpoint_dir={folder}", f"--eval_logdir={tmp_path}/eval")
    out = run(EVAL, *paths, *follow)
    assert out.count(f"waiting for a checkpoint in {folder}\n") == 2
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text())
    assert metrics["protocol"]["checkpoint"] == f"{folder}/model.ckpt-9"


def test_eval_interval_needs_a_checkpoint_folder(tmp_path):
    (tmp_path / "file").write_text("")
    paths = (f"--checkpoint_dir={tmp_path}/file", f"--dataset_dir={tmp_path}")
    assert_refused("file is not a folder", EVAL, *paths, "--eval_interval_secs=1")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--corruptions=fogg", "no corruption 'fogg'; similar: fog"),
        ("--corruptions=fog --severities=0", "severity must be .* received 0"),
        ("--corruptions=fog --severities=one", "--severities"),
        ("--corruptions=fog --severities=", "--severities needs at least one"),
        ("--severities=1", "--severities has no effect without --corruptions"),
        ("--memory_limit_mb=0", "memory_limit_mb must be at least 1"),
        ("--eval_batch_size=0", "eval_batch_size must be at least 1"),
        ("--max_number_of_evaluations=-1", "max_number_of_evaluations"),
        ("--window_size=33", "--window_size"),
        ("--window_size=33,33 --memory_limit_mb=900", "are mutually exclusive"),
        ("--num_clones=0", "num_clones must be at least 1"),
    ],
)
def test_invalid_flags_are_refused_before_writing(flag, message, artefacts, tmp_path):
    paths = (f"--checkpoint_dir={artefacts}/logs", f"--eval_logdir={tmp_path}/new")
    assert_refused(message, EVAL, *paths, *flag.split())
    assert not os.listdir(tmp_path)
