"""python -m deeplab_tf.pretrain: trains a classifier as a backbone for train.py."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from golden_case import manifest
from program_runs import assert_refused, run
from small_tfds import make_class_examples, prepare_color_classes

from deeplab_tf import ModelConfig, build_model
from deeplab_tf.checkpoints.restore import last_layer_scopes
from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.training.resume import read_experiment

PROGRAM = "deeplab_tf.pretrain.program"
STEPS = 12
TRAINING = (
    *("--dataset=tfds:colors", "--train_crop_size=33,33", "--train_batch_size=6"),
    *(f"--training_number_of_steps={STEPS}", "--save_interval_steps=2"),
    *("--log_steps=1", "--base_learning_rate=0.005", "--batch_norm_momentum=0.5"),
)
RESNET = "--model_variant=resnet_v1_18"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data_dir with the colors dataset."""
    folder = str(tmp_path_factory.mktemp("classes"))
    prepare_color_classes(
        folder,
        {"train": make_class_examples(24, 0), "validation": make_class_examples(10, 1)},
    )
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--dataset=imagenet2012"],
            "must be a classification dataset in tensorflow-d",
        ),
        (["--dataset=tfds:nosuch"], "is not in tensorflow-datasets"),
        (["--dataset=tfds:colors:image:mask"], "has no ClassLabel feature 'mask'"),
        (["--eval_split=test"], "has no split 'test': .* has train, validation"),
        (["--model_variant=mobilenet_v2"], "one of resnet_v1_18, .* to be pre-train"),
        (["--learning_rate_decay_epochs=0"], "number above 0; received 0"),
        (["--learning_rate_decay_epochs=inf"], "number above 0; received inf"),
        (["--multi_grid=1,2"], "multi_grid of xception_65 needs 3 positive rates"),
        (
            ["--train_batch_size=5", "--accumulate_steps=2"],
            "5 images cannot be divided",
        ),
        (["--batch_norm=freeze"], "--batch_norm=freeze: it must be auto, "),
        (["--output_stride=16"], "there is no flag --output_stride"),
    ],
)
def test_invalid_flags_are_refused(folder, tmp_path, flags, message):
    paths = (f"--dataset_dir={folder}", f"--train_logdir={tmp_path}/logs")
    assert_refused(message, PROGRAM, *TRAINING, *paths, *flags)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "name", ["dataset", "train_logdir", "training_number_of_steps"]
)
def test_missing_required_flag_is_refused(name):
    flags = [f for f in (*TRAINING, "--train_logdir=logs") if f"--{name}=" not in f]
    assert_refused(f"--{name} is required: ", PROGRAM, *flags)


def training_command(folder, logs, *flags):
    paths = (f"--dataset_dir={folder}", f"--train_logdir={logs}")
    module = (sys.executable, "-m", "deeplab_tf.pretrain")
    return [*module, *TRAINING, *paths, "--deterministic", *flags]


def saved_steps(logs):
    """Returns the steps of the checkpoints in a folder."""
    names = " ".join(os.listdir(logs)) if logs.exists() else ""
    return sorted(map(int, re.findall(r"model\.ckpt-(\d+)\.index", names)))


def read_values(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    keys = [k for k in reader.get_variable_to_shape_map() if k.endswith(VALUE)]
    return {key: np.asarray(reader.get_tensor(key)) for key in keys}


def interrupt_training(folder, logs, number, *flags):
    """Starts a training and sends it a signal after its first save."""
    before = saved_steps(logs)
    process = subprocess.Popen(training_command(folder, logs, *flags), cwd=ROOT)
    end = time.monotonic() + 300
    while saved_steps(logs) == before:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait(120)


@pytest.fixture(scope="module")
def trained_folder(folder, tmp_path_factory):
    """The `train_logdir` of an uninterrupted training."""
    logs = tmp_path_factory.mktemp("uninterrupted") / "logs"
    subprocess.run(training_command(folder, logs, RESNET), check=True, cwd=ROOT)
    return logs


@pytest.mark.slow
def test_resume_is_bit_exact_after_sigkill_and_sigterm(
    trained_folder, folder, tmp_path
):
    logs = tmp_path / "logs"
    assert interrupt_training(folder, logs, signal.SIGKILL, RESNET) == -signal.SIGKILL
    killed = saved_steps(logs)[-1]
    assert interrupt_training(folder, logs, signal.SIGTERM, RESNET) == 143
    assert killed < saved_steps(logs)[-1] < STEPS
    subprocess.run(training_command(folder, logs, RESNET), check=True, cwd=ROOT)
    checkpoints = [
        read_values(f / f"model.ckpt-{STEPS}") for f in (logs, trained_folder)
    ]
    assert checkpoints[0].keys() == checkpoints[1].keys()
    assert [
        k
        for k, v in checkpoints[0].items()
        if v.tobytes() != checkpoints[1][k].tobytes()
    ] == []
    histories = [(f / "history.jsonl").read_text() for f in (logs, trained_folder)]
    assert histories[0] == histories[1]


@pytest.mark.slow
def test_training_learns_and_records_metrics(trained_folder):
    rows = [
        json.loads(r)
        for r in (trained_folder / "history.jsonl").read_text().split("\n")[:-1]
    ]
    losses = [row["data_loss"] for row in rows if "data_loss" in row]
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    # Without --eval_interval_steps, it evaluates only at the end.
    assert [row["step"] for row in rows if "top1" in row] == [STEPS]
    metrics = json.loads((trained_folder / "best/metrics.json").read_text())
    assert (metrics["images"], metrics["top5"]) == (10, 1.0)
    assert metrics["top1"] > 0.9
    assert metrics["protocol"] == {
        "split": "validation",
        "crop_size": [33, 33],
        "central_share": 0.875,
    }
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    # Two epochs of 24 images are 8 batches of 6.
    assert rates == pytest.approx(8 * [0.005] + 4 * [0.94 * 0.005])
    experiment = read_experiment(str(trained_folder))
    assert experiment.model.backbone == "resnet_v1_18"
    assert experiment.model.output_stride == 32
    assert experiment.train.optimizer == "nesterov"
    assert experiment.train.ignore_label == -1  # 255 is one of the 1000 classes
    assert (experiment.train.momentum, experiment.train.weight_decay) == (0.9, 4e-5)


@pytest.mark.slow
def test_folder_of_other_model_is_refused(trained_folder, folder):
    flags = (f"--dataset_dir={folder}", f"--train_logdir={trained_folder}")
    message = (
        "different model: --model_variant was resnet_v1_18 and is resnet_v1_18_beta"
    )
    assert_refused(
        message, PROGRAM, *TRAINING, *flags, "--model_variant=resnet_v1_18_beta"
    )


def assert_initialises_segmentation(backbone, logs):
    """Asserts that a segmentation model restores the backbone but not the head."""
    model = build_model(ModelConfig(backbone=backbone))
    report = load_tf1_checkpoint(model, str(logs))
    assert set(report.restored) == set(manifest(backbone))
    assert not report.skipped
    assert report.missing
    assert all(n.startswith(last_layer_scopes(False)) for n in report.missing)
    scope = backbone.removesuffix("_beta")
    assert set(report.unexpected) == {
        f"{scope}/logits/weights",
        f"{scope}/logits/biases",
    }


@pytest.mark.slow
def test_segmentation_starts_from_pretrained_backbone(
    trained_folder, tiny_records, tmp_path
):
    assert_initialises_segmentation("resnet_v1_18", trained_folder)
    out = run(
        "deeplab_tf.programs.train",
        *(f"--dataset_dir={tiny_records}", f"--train_logdir={tmp_path}/logs"),
        *(
            f"--tf_initial_checkpoint={trained_folder}",
            RESNET,
            "--train_crop_size=33,33",
        ),
        *("--train_batch_size=2", "--training_number_of_steps=1"),
    )
    assert f"{trained_folder}: 100 restored, " in out
    assert "2 not in the model (resnet_v1_18/logits/weights" in out


@pytest.mark.slow
def test_xception_pretraining_initialises_segmentation(folder, tmp_path):
    flags = ("--model_variant=xception_41", "--training_number_of_steps=2")
    logs = tmp_path / "logs"
    subprocess.run(training_command(folder, logs, *flags), check=True, cwd=ROOT)
    assert_initialises_segmentation("xception_41", logs)


@pytest.mark.slow
def test_two_replicas_score_each_image_once(folder, tmp_path):
    logs = tmp_path / "logs"
    flags = (RESNET, "--num_clones=2", "--batch_norm=sync", "--ema_decay=0.5")
    subprocess.run(training_command(folder, logs, *flags), check=True, cwd=ROOT)
    metrics = json.loads((logs / "best/metrics.json").read_text())
    assert metrics["images"] == 10
    assert metrics["top1"] > 0.9
