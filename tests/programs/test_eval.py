"""eval.py beyond the official command line: measures, devices, artefacts, a report."""

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
from deeplab_tf.models.variables import official_variables
from deeplab_tf.training.resume import write_experiment

EVAL = "deeplab_tf.programs.eval"
SHALLOW_EVAL = (sys.executable, ROOT / "tests/shallow_network.py", "eval.py")

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def trained(shallow, tiny_records, tmp_path_factory):
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
    """Returns what eval.py prints and writes."""
    out = run(EVAL, f"--checkpoint_dir={source}", f"--eval_logdir={folder}", *flags)
    return out, json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def plain(trained):
    """What eval.py makes of the checkpoint without any more flags."""
    return evaluate(trained / "logs", trained / "plain")


def test_the_report_lies_beside_the_metrics(plain, trained):
    out, metrics = plain
    assert f"written: {trained}/plain/report.html" in out
    page = (trained / "plain/report.html").read_text()
    assert f"{100 * metrics['miou']:.2f}" in page
    # The two images of the split, by name.
    assert "2007_000003" in page and "2007_000004" in page


def test_no_report_where_it_is_not_wanted(trained, tmp_path):
    evaluate(trained / "logs", tmp_path, "--noreport")
    assert list_outputs(tmp_path) == ["metrics.json"]


def test_measures_are_written_and_told(trained, plain, tmp_path):
    flags = ("--trimap=void", "--boundary_iou", "--calibration")
    out, metrics = evaluate(trained / "logs", tmp_path, *flags)
    assert metrics["confusion_matrix"] == plain[1]["confusion_matrix"]
    assert metrics["trimap"]["around"] == "void"
    assert metrics["trimap"]["widths"][0] == 1
    # The first row of every label is void: all are within 40 pixels of it.
    pixels = np.sum(plain[1]["confusion_matrix"])
    assert (
        0 < metrics["trimap"]["pixels"][0] < metrics["trimap"]["pixels"][-1] <= pixels
    )
    assert 0 <= metrics["boundary_iou"]["boundary_iou"] <= 1
    assert sum(metrics["calibration"]["pixels"]) == pixels
    for line in ("mIoU around void: 1 px ", "Boundary IoU ", "calibration error 0."):
        assert line in out
    page = (tmp_path / "report.html").read_text()
    assert "Boundary IoU" in page and "Calibration" in page


def test_a_saved_model_scores_what_its_checkpoint_does(trained, plain, tiny_records):
    where = f"--dataset_dir={tiny_records}"
    folder = trained / "of_export"
    _, metrics = evaluate(trained / "exported", folder, where)
    assert metrics["confusion_matrix"] == plain[1]["confusion_matrix"]
    assert metrics["protocol"] == {
        "artefact": "SavedModel",
        "checkpoint": str(trained / "exported"),
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
def test_what_was_exported_cannot_be_changed(flag, name, trained, tiny_records):
    where = f"--dataset_dir={tiny_records}"
    source = f"--checkpoint_dir={trained}/exported"
    assert_refused(rf"--{name} has no effect on \S+exported", EVAL, source, where, flag)


def test_an_artefact_of_other_classes_is_refused(tiny_export, tiny_records):
    where = (f"--checkpoint_dir={tiny_export}", f"--dataset_dir={tiny_records}")
    message = "has 5 classes and 3 channels, but pascal_voc_seg has 21 and 3"
    assert_refused(message, EVAL, *where, "--dataset=pascal_voc_seg")


def test_windows_are_of_the_protocol(trained, plain, tmp_path):
    _, metrics = evaluate(trained / "logs", tmp_path, "--window_size=33,33")
    assert metrics["protocol"]["window_size"] == [33, 33]
    assert metrics["confusion_matrix"] != plain[1]["confusion_matrix"]
    _, metrics = evaluate(trained / "logs", tmp_path, "--memory_limit_mb=1000")
    assert metrics["protocol"]["memory_limit_mb"] == 1000
    assert metrics["confusion_matrix"] == plain[1]["confusion_matrix"]


def test_a_limit_too_small_is_refused(trained, tmp_path):
    where = (f"--checkpoint_dir={trained}/logs", f"--eval_logdir={tmp_path}/new")
    assert_refused("limit of 1 MiB is too small", EVAL, *where, "--memory_limit_mb=1")
    assert not os.listdir(tmp_path)


def test_devices_share_the_images(trained, plain, tmp_path):
    command = (*SHALLOW_EVAL, f"--checkpoint_dir={trained}/logs")
    ended = subprocess.run(
        [*command, f"--eval_logdir={tmp_path}", "--num_clones=2"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == 2
    assert metrics["confusion_matrix"] == plain[1]["confusion_matrix"]
    page = (tmp_path / "report.html").read_text()
    assert f"python eval.py --checkpoint_dir={trained}/logs --eval_logdir=" in page


def test_corruptions_are_scored_at_every_severity(trained, plain, tmp_path):
    pytest.importorskip("imagecorruptions", reason="needs imagecorruptions-imaug")
    flags = ("--corruptions=contrast,shot_noise", "--severities=1,5")
    # Corruptions need 32 pixels; the smallest image has 29.
    flags = (*flags, "--min_resize_value=40", "--max_resize_value=200")
    out, metrics = evaluate(trained / "logs", tmp_path, *flags)
    robustness = metrics["robustness"]
    assert robustness["clean"] == metrics["miou"]
    assert robustness["severities"] == [1, 5]
    assert list(robustness["miou"]) == ["contrast", "shot_noise"]
    scores = {*robustness["miou"]["contrast"], *robustness["miou"]["shot_noise"]}
    assert len(scores - {metrics["miou"]}) > 1
    assert f"contrast: 1: {robustness['miou']['contrast'][0]:.4f}, 5: " in out
    assert "shot_noise" in (tmp_path / "report.html").read_text()


def test_a_corruption_that_fails_leaves_the_metrics_before_it(trained, tmp_path):
    pytest.importorskip("imagecorruptions", reason="needs imagecorruptions-imaug")
    where = (f"--checkpoint_dir={trained}/logs", f"--eval_logdir={tmp_path}")
    # The smaller image has 29 rows.
    message = "corruptions need images of at least 32x32 pixels; received 64x29$"
    assert_refused(message, EVAL, *where, "--corruptions=fog", "--severities=1")
    assert "miou" in json.loads((tmp_path / "metrics.json").read_text())


def test_every_new_checkpoint_of_a_folder_is_scored(trained, tmp_path):
    folder = tmp_path / "logs"
    follow = ("--eval_interval_secs=1", "--max_number_of_evaluations=2")
    where = (f"--checkpoint_dir={folder}", f"--eval_logdir={tmp_path}/eval")
    command = [*SHALLOW_EVAL, *where, *follow]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"waiting for a checkpoint in {folder}\n"
        # As in the official archives, no file tells which one is the latest.
        shutil.copytree(trained / "logs", folder)
        assert any("waiting" in line for line in process.stdout)
        assert (tmp_path / "eval/metrics.json").exists()
        for path in sorted(folder.glob("model.ckpt-7.*"), reverse=True):
            shutil.copy(path, folder / path.name.replace("ckpt-7", "ckpt-9"))
        assert process.wait(120) == 0
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text())
    assert metrics["protocol"]["checkpoint"] == f"{folder}/model.ckpt-9"


def test_a_file_cannot_be_followed(tmp_path):
    (tmp_path / "file").write_text("")
    where = (f"--checkpoint_dir={tmp_path}/file", f"--dataset_dir={tmp_path}")
    assert_refused("file is not a folder", EVAL, *where, "--eval_interval_secs=1")


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
def test_mistakes_are_told_before_anything_is_written(flag, message, trained, tmp_path):
    where = (f"--checkpoint_dir={trained}/logs", f"--eval_logdir={tmp_path}/new")
    assert_refused(message, EVAL, *where, *flag.split())
    assert not os.listdir(tmp_path)
